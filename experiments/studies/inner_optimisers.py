"""iMAML's inner solver: gradient descent, momentum, Adam or Newton-CG, by accuracy, evaluations, time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adjoint_meta.adaptation import GradientFlow
from adjoint_meta.batched_model import twice_differentiable
from adjoint_meta.problem import Problem
from adjoint_meta.solvers import conjugate_gradient
from adjoint_meta.solvers.newton_cg import Stage, newton_cg

from ..measure import peak_memory_bytes, reset_peak_memory
from ..models import HalfMSELoss, mlp
from ..regression import CosMixture, RegressionTasks
from ..report import Report
from .inner_optimisers_report import report
from .study import Setting, Study
from .subject import Subject

NEWTON = "Newton-CG"
# One optimiser over the rows is one a task: all of them work entry by entry.
OPTIMISERS: dict[str, Callable[[Tensor, float], Optimizer]] = {
    "GD": lambda phi, lr: torch.optim.SGD([phi], lr=lr),
    "momentum": lambda phi, lr: torch.optim.SGD([phi], lr=lr, momentum=0.9),
    "Adam": lambda phi, lr: torch.optim.Adam([phi], lr=lr),
}
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Budget:
    """How long the study takes.

    Args:
        proximal: values of λ.
        rates: learning rates of each first-order optimiser, among which the best is shown.
        steps: of the first-order optimisers.
        newton: steps of Newton-CG.
        tasks, points: how many tasks, and their support and query points.
        width: hidden units of each of two layers.
        memory_tasks: how many tasks memory is measured with; it is proportional to them.
    """

    proximal: tuple[float, ...] = (0.1, 1.0)
    rates: tuple[tuple[str, tuple[float, ...]], ...] = (
        ("GD", (0.05, 0.1, 0.2, 0.3)),
        ("momentum", (0.03, 0.1, 0.2, 0.4)),
        ("Adam", (0.001, 0.003, 0.01, 0.03)),
    )
    steps: tuple[int, ...] = (3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 1000)
    newton: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 20)
    tasks: int = 10
    points: int = 25
    width: int = 32
    memory_tasks: int = 200


BUDGETS = {
    "quick": Budget(),
    "full": Budget(
        (0.1, 1.0, 10.0),
        steps=(3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 1000, 2000),
        newton=tuple(range(1, 31)),
        tasks=50,
        points=50,
    ),
}


@dataclass(frozen=True)
class Reached:
    """Where an inner solver stands: φ ``[tasks, P]``, and what it took to get there, in seconds of the processor."""

    steps: int
    phi: Tensor
    evaluations: int
    seconds: float


def run(setting: Setting) -> Report:
    """Run every solver on every λ, and compare where it gets."""
    budget = BUDGETS[setting.budget]
    rates = [(name, rate) for name, of in budget.rates for rate in of] + [(NEWTON, None)]
    wanted = [(proximal, *each) for proximal in budget.proximal for each in rates]
    names = [*OPTIMISERS, NEWTON]
    total, records = len(wanted) + len(names), []
    subject = make_subject(budget.tasks, budget)
    solve = cache(lambda proximal: Minimum.find(subject, proximal))
    for number, (proximal, name, rate) in enumerate(wanted):
        setting.observe(number, total, f"{name}, λ = {proximal:g}")
        records += setting.cell(
            f"{name}-{rate or 0:g}-{proximal:g}",
            partial(lambda p, n, r: measure(subject, solve(p), n, r, budget), proximal, name, rate),
        )
    memory = {}
    for number, name in enumerate(names):
        setting.observe(len(wanted) + number, total, f"memory of {name}")
        memory[name] = setting.cell(f"memory-{name}", partial(peak_memory, name, budget))
    setting.observe(total, total, "done")
    return report(records, memory, vars(budget) | {"budget": setting.budget, "seed": 0})


def make_subject(tasks: int, budget: Budget) -> Subject:
    """Return a random network on so many CosMixture tasks, float64."""
    source, _, _, _ = RegressionTasks(
        CosMixture(), train_tasks=tasks, test_tasks=1, shots=budget.points, queries=budget.points
    ).build()
    return Subject(mlp(CosMixture.inputs, budget.width, 2, 1, seed=0).double(), HalfMSELoss(), source.tasks)


@dataclass(frozen=True)
class Minimum:
    """The minimiser of L_s + ½λ‖φ − θ‖² that Newton-CG finds to rounding, and the implicit meta-gradient there.

    Args:
        proximal: λ.
        phi, gradient: ``[tasks, P]`` each.
    """

    proximal: float
    phi: Tensor
    gradient: Tensor

    @classmethod
    def find(cls, subject: Subject, proximal: float) -> Minimum:
        """Solve until rounding, and see that every task has got there."""
        result = newton_cg(stage(subject.problem(), subject.theta, proximal), subject.theta, tol=1e-11)
        if set(result.info.codes.tolist()) != {0}:
            raise RuntimeError(f"the reference was not found: {sorted({s.name for s in result.info.status})}")
        return cls(proximal, result.y, implicit_gradient(subject, result.y, proximal))


def stage(problem: Problem, theta: Tensor, proximal: float) -> Stage:
    """Return the stationarity condition φ = θ − ∇L_s(φ)/λ as the stage of a backward Euler step of 1/λ."""
    return Stage(GradientFlow(problem, theta), 0.0, 1 / proximal, theta)


def implicit_gradient(subject: Subject, phi: Tensor, proximal: float) -> Tensor:
    """Return (I + H/λ)⁻¹ ∇L_q at φ, ``[tasks, P]``, by CG to 1e-10."""
    problem = subject.problem()
    with twice_differentiable():
        c = problem.curvature.gradients(phi, problem.psi, subject.tasks.query).phi
        linear = problem.linearise(phi)
        found, _ = conjugate_gradient(
            lambda v: v + linear.product(v, keep=True)[1].phi / proximal, c, tol=1e-10, max_steps=300
        )
    return found.detach()


def path(
    problem: Problem, theta: Tensor, proximal: float, name: str, rate: float | None, places: Sequence[int]
) -> Iterator[Reached]:
    """Yield where a solver stands after these numbers of steps.

    Newton-CG starts anew for each, since its state is not ours to keep.
    """
    if name == NEWTON:
        for steps in places:
            before, started = _spent(problem), time.process_time()
            with twice_differentiable():
                phi = newton_cg(stage(problem, theta, proximal), theta, tol=1e-11, max_steps=steps).y
            yield Reached(steps, phi, _spent(problem) - before, time.process_time() - started)
        return
    phi = theta.clone().requires_grad_()
    optimizer = OPTIMISERS[name](phi, rate or 0.0)
    flow, seconds = GradientFlow(problem, theta, proximal), 0.0
    for step in range(1, max(places) + 1):
        started = time.process_time()
        with twice_differentiable():
            phi.grad = -flow(0.0, phi.detach())
        optimizer.step()
        seconds += time.process_time() - started
        if step in places:
            yield Reached(step, phi.detach().clone(), step, seconds)


def _spent(problem: Problem) -> int:
    spent = problem.evaluations
    return spent.n_grad + spent.n_hvp + spent.n_loss


def measure(subject: Subject, minimum: Minimum, name: str, rate: float | None, budget: Budget) -> list[dict[str, Any]]:
    """Return a record a place and task: how far φ is from the minimiser, and its meta-gradient from the exact one."""
    places = budget.newton if name == NEWTON else budget.steps
    proximal = minimum.proximal
    moved = (minimum.phi - subject.theta).norm(dim=1)
    records = []
    for reached in path(subject.problem(), subject.theta, proximal, name, rate, places):
        gradient = implicit_gradient(subject, reached.phi, proximal)
        distance = (reached.phi - minimum.phi).norm(dim=1) / moved
        error = (gradient - minimum.gradient).norm(dim=1) / minimum.gradient.norm(dim=1)
        slope = (subject.problem().gradient(reached.phi) + proximal * (reached.phi - subject.theta)).norm(dim=1)
        if not bool(torch.isfinite(torch.stack([distance, error, slope])).all()):  # it diverges at this rate
            break
        shared = {"optimiser": name, "rate": rate, "lambda": proximal, "steps": reached.steps}
        cost = {"evaluations": reached.evaluations, "seconds": reached.seconds}
        records += [
            {**shared, "task": task, "distance": d, "error": e, "slope": s, **cost}
            for task, (d, e, s) in enumerate(zip(distance.tolist(), error.tolist(), slope.tolist(), strict=True))
        ]
    return records


def peak_memory(name: str, budget: Budget) -> dict[str, float]:
    """Return by how much the process's peak grows during a few steps, and what one φ takes, in bytes."""
    subject = make_subject(budget.memory_tasks, budget)
    rate = None if name == NEWTON else dict(budget.rates)[name][0]

    def solve() -> None:
        for _ in path(subject.problem(), subject.theta, 1.0, name, rate, [2]):
            pass

    solve()
    reset_peak_memory(_CPU)
    before = peak_memory_bytes(_CPU)
    solve()
    size = subject.theta.numel() * subject.theta.element_size()
    return {"bytes": float(max(peak_memory_bytes(_CPU) - before, 0)), "phi_bytes": float(size)}


INNER_OPTIMISERS = Study(
    "iMAML's inner solver: GD, momentum, Adam, Newton-CG by accuracy, time and memory", run, BUDGETS
)
