"""Omniglot as in Table 2 of iMAML and Table 3 of A-MAML: the methods side by side on handwritten characters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..report import Report
from .few_shot_table import Account, Column, episode, study
from .grid import Cell
from .published_images import OMNIGLOT
from .study import Setting, Study

HEAD = {"adapt": ["head.*"]}
HEADS = ("ANIL", "A-MAML (head)", "memory-reduced")


@dataclass(frozen=True)
class Budget:
    """How long the study takes.

    Args:
        meta_steps: of every method.
        tasks: of a meta-step.
        filters: of each of the four convolutions; the papers take 64.
        queries: images of a class that an episode is judged by.
        lr: of the outer Adam.
        whole: (ways, shots) at which all methods run.
        heads: (ways, shots) at which those run that adapt the head alone.
        test_tasks: episodes of the test.
        backend: of the engine; compiling takes longer than a short run.
    """

    meta_steps: int
    tasks: int
    filters: int
    queries: int
    lr: float
    whole: tuple[tuple[int, int], ...]
    heads: tuple[tuple[int, int], ...] = ()
    test_tasks: int = 600
    backend: str = "auto"


BUDGETS = {
    "quick": Budget(100, 4, 32, 5, 3e-3, whole=((5, 1),), heads=((20, 1),), backend="eager"),
    "full": Budget(20_000, 32, 64, 15, 1e-3, whole=((5, 1), (5, 5), (20, 1), (20, 5))),
}


def methods(ways: int) -> dict[str, dict[str, Any]]:
    """Return every method's options where they differ from the experiment's, which are those of 5 classes."""
    hard = ways >= 20
    maml = {"steps": 5, "inner_lr": 0.1} if hard else {}
    descent = {"steps": 25} if hard else {}
    return {
        "MAML": {"name": "maml", **maml},
        "FOMAML": {"name": "fomaml", **maml},
        "Reptile": {"name": "reptile", **descent},
        "iMAML-GD": {"name": "imaml", **descent},
        "iMAML-HF": {"name": "imaml", "inner": "newton-cg", "steps": 3},
        "A-MAML (T = 0.5)": {"name": "adjoint"},
        "A-MAML (T = 1)": {"name": "adjoint", "horizon": 1.0, "steps": 20},
        "ANIL": {"name": "anil"},
        "A-MAML (head)": {"name": "adjoint", "horizon": 2.0, "solver": "rk4", "steps": 10},
        "memory-reduced": {"name": "memory-reduced"},
    }


def columns(budget: Budget) -> dict[str, Column]:
    """Return the sizes of episodes, and what is trained at each."""
    found = {}
    for ways, shots in (*budget.whole, *budget.heads):
        chosen = methods(ways)
        if (ways, shots) not in budget.whole:
            chosen = {name: chosen[name] for name in HEADS}
        cell = Cell("omniglot", _keys(budget, ways, shots), chosen, {"A-MAML (head)": HEAD})
        found[episode(ways, shots)] = Column(cell, ways, OMNIGLOT.get((ways, shots), {}))
    return found


def _keys(budget: Budget, ways: int, shots: int) -> Mapping[str, Any]:
    return {
        "meta_steps": budget.meta_steps,
        "tasks_per_step": budget.tasks,
        "model": {"filters": budget.filters},
        "optimizer": {"lr": budget.lr},
        "backend": budget.backend,
        "task": {
            "ways": ways,
            "shots": shots,
            "queries": budget.queries,
            "rotations": True,
            "test_tasks": budget.test_tasks,
        },
    }


def run(setting: Setting) -> Report:
    """Train all methods, and compare with the papers' tables."""
    budget = BUDGETS[setting.budget]
    account = Account(
        title="Few-shot classification of Omniglot's characters: Table 2 of iMAML and Table 3 of A-MAML",
        question=(
            "An episode shows a few characters that were not trained on, and a few drawings of each; adapted to them, "
            "the network tells further drawings of the same characters apart. ANIL, A-MAML on the head and "
            "memory-reduced meta-learning adapt the last layer alone, the others all layers. Larger is better."
        ),
        size=_size(budget),
        departures=_departures(budget),
        setting={
            "meta-steps": budget.meta_steps,
            "outer": f"Adam {budget.lr:g}, {budget.tasks} tasks",
            "network": f"four strided convolutions of {budget.filters} filters, batch norm with the batch's statistics",
        },
    )
    return study(setting, columns(budget), account)


def _size(budget: Budget) -> str:
    size = f"{budget.meta_steps} meta-steps of {budget.tasks} tasks, {budget.filters} filters"
    if budget.meta_steps >= BUDGETS["full"].meta_steps:
        return f"Every method took {size}."
    return (
        f"A short run: every method took {size}, where the papers take 20,000 meta-steps or more of 32 tasks and 64 "
        "filters. It shows how fast the methods learn, not where they end."
    )


def _departures(budget: Budget) -> list[str]:
    lines = [
        "A-MAML prints neither steps nor rates for images: T = 0.5 and 1 are its horizons, Heun's steps of 1/20 ours. "
        "The test takes the same inner solve as training.",
        "All methods share Adam, its rate and the number of tasks; in the papers each has its own.",
        "Reptile takes plain steps on the episode's own support; its authors take Adam without momentum, 10 images of "
        "a class and 100,000 meta-steps.",
        "iMAML-HF: five CG steps for a direction and a line search, as printed, three times, which is not. Where CG "
        "meets negative curvature a task keeps its last iterate.",
        "iMAML solves its proximal problem and I + H/λ as its text has them; its code does not.",
        "memory-reduced has a damping of 0.1, since a head with more features than images has a singular Hessian; its "
        "paper has no Omniglot. A-MAML on the head (T = 2, rk4) is in no paper.",
        f"Episodes are judged by {budget.queries} drawings of each class; classes are Vinyals', turned ones included. "
        "Of the 1200 that the papers train on 172 validate, so that ours learn from 1028.",
    ]
    if budget.meta_steps < BUDGETS["full"].meta_steps:
        lines.insert(0, f"{budget.meta_steps} meta-steps instead of 20,000 or more (--budget full).")
    return lines


OMNIGLOT_TABLE = Study(
    "Table 2 of iMAML, Table 3 of A-MAML: Omniglot, 5 and 20 ways, all methods",
    run,
    BUDGETS,
    side_by_side=True,
    on_gpu=True,
)
