"""Where MAML succeeds and iMAML fails, and the reverse: small constructed problems with exact references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..report import Report
from .failure_cases import AbsoluteValues, Network, Quadratic
from .failure_modes_report import report
from .study import Setting, Study


@dataclass(frozen=True)
class Budget:
    """How long the study takes.

    Args:
        proximal: values of λ, for the indefinite inner problems.
        steps: of gradient descent there.
        long: of the kinked ones, which should converge.
        lengths: of the quadratic ones.
        size: parameters of a quadratic task.
        tasks: how many of each.
    """

    proximal: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    steps: int = 200
    long: int = 1000
    lengths: tuple[int, ...] = (10, 30, 100, 300, 1000)
    size: int = 200
    tasks: int = 12


BUDGETS = {
    "quick": Budget(),
    "full": Budget(long=10000, lengths=(10, 30, 100, 300, 1000, 3000, 10000), size=500, tasks=50),
}
METHODS = ("MAML", "MAML, checkpointed", "iMAML")


def run(setting: Setting) -> Report:
    """Measure all three kinds of problems."""
    budget = BUDGETS[setting.budget]
    planned = cells(budget)
    found: dict[str, Any] = {}
    for number, (key, compute) in enumerate(planned.items()):
        setting.observe(number, len(planned), key)
        found[key] = setting.cell(key, compute)
    setting.observe(len(planned), len(planned), "done")
    chosen = {kind: _records(found, kind) for kind in ("curvature", "length", "kinks")}
    return report(chosen, vars(budget) | {"budget": setting.budget, "seed": 0})


def cells(budget: Budget) -> dict[str, Callable[[], Any]]:
    """Return what is to be measured, by name."""
    found: dict[str, Callable[[], Any]] = {
        f"curvature-{value:g}": Network("tanh", value, budget.steps, budget.tasks).measure for value in budget.proximal
    }
    quadratic = Quadratic(budget.size, tasks=8)
    for steps in budget.lengths:
        for name in METHODS:
            slug = name.lower().replace(", ", "-")
            found[f"length-{slug}-{steps}"] = partial(quadratic.measure, name, steps)
    for activation in ("tanh", "relu"):
        found[f"kinks-{activation}"] = Network(activation, 1.0, budget.long, budget.tasks).measure
    found["kinks-l1"] = AbsoluteValues(20, budget.tasks, budget.long).measure
    return found


def _records(found: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [
        {"case": kind, "problem": key.removeprefix(f"{kind}-"), **record}
        for key, records in found.items()
        if key.startswith(kind)
        for record in records
    ]


FAILURE_MODES = Study("Where MAML succeeds and iMAML fails, and the reverse, beside exact references", run, BUDGETS)
