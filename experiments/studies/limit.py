"""How close a meta-gradient is to the sum of its evaluations, and these to the machine's matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from adjoint_meta.batched_model import twice_differentiable
from adjoint_meta.learner import MetaLearner
from adjoint_meta.meta_gradients import FOMAML, MAML, AdjointMAML, ImplicitMAML, Method
from adjoint_meta.solvers import checks

from ..prepare import choose_device
from .contestants import backends, unavailable
from .fresh_process import synchronise
from .limit_report import report
from .results import make_directory, write
from .workloads import INNER_LR, WORKLOADS, Placed, details, place

# Sees how far the study is: (done, of how many, what comes next).
Observer = Callable[[int, int, str], None]

METHODS: dict[str, Method] = {
    "MAML, 50 steps": MAML(50, INNER_LR),
    "A-MAML rk4, 5 steps": AdjointMAML(horizon=0.5, solver="rk4", steps=5),
    "A-MAML rk4, 20 steps": AdjointMAML(horizon=2.0, solver="rk4", steps=20),
    "iMAML, 50 steps, 5 CG": ImplicitMAML(steps=50, inner_lr=INNER_LR, cg_steps=5, cg_tol=0.0),
}


@dataclass(frozen=True)
class Budget:
    """How much a study may take.

    Args:
        cases: (workload, tasks, whether the methods run too or the kernels alone).
        rounds: in each, everything is timed once; medians over rounds.
        kernels: seconds of evaluations of each kind in a round, twice; their mean is that round's time.
    """

    cases: tuple[tuple[str, int, bool], ...]
    rounds: int
    kernels: float


BUDGETS = {
    "quick": Budget((("regression", 5, True), ("regression", 64, True), ("omniglot", 2, False)), 5, 0.1),
    "full": Budget(
        (("regression", 5, True), ("regression", 64, True), ("ratings", 5, True), ("omniglot", 16, False)), 11, 0.3
    ),
}


def study(
    budget: str = "quick",
    out: Path = Path("runs/bench-limit"),
    *,
    device: str = "auto",
    threads: int = 1,
    observe: Observer = lambda done, total, what: None,
) -> dict[str, Any]:
    """Measure, and write limit.json and limit.md.

    Args:
        budget: a name of `BUDGETS`.
        out: the directory.
        device: "auto", "cpu" or "cuda".
        threads: of torch.
        observe: sees each case before it is measured.

    Raises:
        ValueError: for an unknown budget, a device that is not here or a directory that cannot be used.
    """
    chosen = BUDGETS[checks.one_of("budget", budget, BUDGETS)]
    where = choose_device(device)
    checks.count("threads", threads)
    make_directory(out)
    started = time.perf_counter()
    notes = [line for backend in backends() if (line := unavailable(backend, where))]
    usable = [backend for backend in backends() if unavailable(backend, where) is None]
    work = [(case, backend) for case in chosen.cases for backend in usable]
    cases = []
    for done, ((name, tasks, whole), backend) in enumerate(work):
        observe(done, len(work), f"{WORKLOADS[name].title}, {tasks} tasks, {backend}")
        placed = place(name, tasks, where, torch.float32)
        try:
            with _threads(threads):
                found = measure(placed, backend, METHODS if whole else {}, chosen, WORKLOADS[name].layer)
        except Exception as error:  # a backend that cannot run this must not end the study
            notes.append(f"{WORKLOADS[name].title}, {tasks} tasks, {backend}: {' '.join(str(error).split())[:300]}")
            continue
        cases.append({"case": f"{WORKLOADS[name].title}, {tasks} tasks", "backend": backend, **found})
    observe(len(work), len(work), "done")
    result = {
        "study": "limit",
        "budget": budget,
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU",
        "threads": threads,
        "torch": torch.__version__,
        "rounds": chosen.rounds,
        "workloads": details(name for name, _, _ in chosen.cases),
        "cases": cases,
        "notes": notes,
        "seconds": time.perf_counter() - started,
        "out": str(out),
    }
    write(out, "limit", result, report(result))
    return result


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(
    placed: Placed, backend: str, methods: dict[str, Method], budget: Budget, layer: tuple[int, int, int]
) -> dict[str, Any]:
    """Return the kernels' seconds and rates, and each method's time over that of its evaluations.

    Args:
        methods: by name.
        layer: see `Workload`.
    """
    device = placed.parameters[0].device
    count = len(placed.tasks)
    gradient, product = kernels(placed, backend)
    rows, inner, columns = layer
    left = torch.randn(count, rows, inner, device=device)
    right = torch.randn(count, inner, columns, device=device)
    learners = {name: MetaLearner(placed.model, placed.loss, m, backend=backend) for name, m in methods.items()}
    calls = {name: (lambda learner=learner: learner.meta_gradient(placed.tasks)) for name, learner in learners.items()}
    stats = {name: call().stats for name, call in calls.items()}  # the first call warms up

    bare: dict[str, Callable[[], object]] = {
        "gradient": gradient,
        "hvp": product,
        "bmm": lambda: torch.bmm(left, right),
    }
    rounds = []
    with twice_differentiable():
        for call in bare.values():
            call()
        times = {kind: max(1, round(budget.kernels / _seconds(call, 1, device))) for kind, call in bare.items()}
        for _ in range(budget.rounds):
            # Kernels before and after the methods, so that a machine that slows down slows both.
            before = {kind: _seconds(call, times[kind], device) for kind, call in bare.items()}
            whole = {name: _seconds(call, 1, device) for name, call in calls.items()}
            after = {kind: _seconds(call, times[kind], device) for kind, call in bare.items()}
            rounds.append({kind: (before[kind] + after[kind]) / 2 for kind in bare} | whole)
    median = {kind: statistics.median(each[kind] for each in rounds) for kind in rounds[0]}
    flops = {"gradient": flops_of(placed, "gradient"), "hvp": flops_of(placed, "hvp")}
    flops["bmm"] = 2 * count * rows * inner * columns
    return {
        "kernels": {kind: {"seconds": median[kind], "flops": flops[kind]} for kind in flops},
        "hvp_to_gradient": statistics.median(each["hvp"] / each["gradient"] for each in rounds),
        "share": {kind: _share(flops, median, kind) for kind in ("gradient", "hvp")},
        "methods": [
            {
                "method": name,
                "n_grad": found["n_grad"],
                "n_hvp": found["n_hvp"],
                "seconds": median[name],
                "to_evaluations": statistics.median(
                    each[name] / (found["n_grad"] * each["gradient"] + found["n_hvp"] * each["hvp"]) for each in rounds
                ),
            }
            for name, found in stats.items()
        ],
    }


def kernels(placed: Placed, backend: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return one batched gradient, and one batched gradient with HVP, of the support losses as calls."""
    learner = MetaLearner(placed.model, placed.loss, FOMAML(1, INNER_LR), backend=backend)
    problem = learner.support_problem(placed.tasks.support)
    phi = learner.initial(len(placed.tasks))
    v = torch.ones_like(phi)
    return lambda: problem.gradient(phi), lambda: problem.linearise(phi).product(v)


def flops_of(placed: Placed, kind: str) -> int:
    """Return the floating-point operations of matrix products and convolutions in one gradient, or one with HVP."""
    call = kernels(placed, "eager")[("gradient", "hvp").index(kind)]
    with twice_differentiable(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _share(flops: dict[str, int], seconds: dict[str, float], kind: str) -> float:
    """Return the rate of a kernel over that of batched matrix products."""
    return (flops[kind] / seconds[kind]) / (flops["bmm"] / seconds["bmm"])


def _seconds(call: Callable[[], object], times: int, device: torch.device) -> float:
    synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronise(device)
    return (time.perf_counter() - started) / times
