"""Whether a meta-gradient survives float32: its relative error beside float64, by method, inner steps and rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from adjoint_meta.meta_gradients import MAML, AdjointMAML, ImplicitMAML, Method
from adjoint_meta.solvers import SolverError

from ..models import HalfMSELoss, mlp
from ..regression import CosMixture, RegressionTasks
from ..report import Report
from .precision_report import BACKSOLVE, report
from .study import Setting, Study
from .subject import Outcome, Subject, by_method


@dataclass(frozen=True)
class Budget:
    """How long the study takes.

    Args:
        steps: of gradient descent; the flow's horizon is steps · α.
        rates: values of α.
        tasks, points: how many tasks, and their support and query points.
        solver_step: of rk4.
        most: beyond so many steps of rk4 the flow is left out.
        backsolve: most gradient steps for which the flow is also solved backward in time.
    """

    steps: tuple[int, ...] = (1, 5, 20, 100, 500)
    rates: tuple[float, ...] = (0.01, 0.08, 0.2)
    tasks: int = 5
    points: int = 25
    solver_step: float = 0.1
    most: int = 400
    backsolve: int = 20


BUDGETS = {
    "quick": Budget(),
    "full": Budget((1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), (0.01, 0.04, 0.08, 0.12, 0.2), 20, 50, most=2000),
}


def run(setting: Setting) -> Report:
    """Take every meta-gradient twice, and compare."""
    budget = BUDGETS[setting.budget]
    pair = subjects(budget)
    wanted = [
        (rate, steps, name, method)
        for rate in budget.rates
        for steps in budget.steps
        for name, method in methods(budget, steps, rate).items()
    ]
    records: list[dict[str, Any]] = []
    for number, (rate, steps, name, method) in enumerate(wanted):
        setting.observe(number, len(wanted), f"{name}, α = {rate:g}, {steps} steps")
        key = f"{name.replace(', ', '-')}-{rate:g}-{steps}"
        shared = {"method": name, "inner_lr": rate, "steps": steps}
        records += [{**shared, **each} for each in setting.cell(key, partial(compare, *pair, method))]
    setting.observe(len(wanted), len(wanted), "done")
    return report(records, vars(budget) | {"budget": setting.budget, "seed": 0})


def methods(budget: Budget, steps: int, rate: float) -> dict[str, Method]:
    """Return the methods for an inner solve of this length."""
    horizon = steps * rate
    solver_steps = math.ceil(horizon / budget.solver_step)
    found: dict[str, Method] = {
        "MAML": MAML(steps=steps, inner_lr=rate),
        "iMAML": ImplicitMAML(proximal=1.0, steps=steps, inner_lr=rate, cg_steps=5, cg_tol=0.0),
    }
    if solver_steps <= budget.most:
        found["A-MAML"] = AdjointMAML(horizon=horizon, solver="rk4", steps=solver_steps)
        if steps <= budget.backsolve:
            found[BACKSOLVE] = AdjointMAML(horizon=horizon, solver="rk4", steps=solver_steps, adjoint="backsolve")
    return found


def subjects(budget: Budget) -> tuple[Subject, Subject]:
    """Return the same θ and tasks, every number of them a float32, in float64 and in float32."""
    options = {"train_tasks": budget.tasks, "test_tasks": 1, "shots": budget.points, "queries": budget.points}
    source, _, _, _ = RegressionTasks(CosMixture(), **options).build()
    single = source.tasks.to(dtype=torch.float32)

    def subject(dtype: torch.dtype) -> Subject:
        model = mlp(CosMixture.inputs, 32, 2, 1, seed=0).to(torch.float32).to(dtype)
        return Subject(model, HalfMSELoss(), single.to(dtype=dtype))

    return subject(torch.float64), subject(torch.float32)


def compare(double: Subject, single: Subject, method: Method) -> list[dict[str, Any]]:
    """Return a record a task: relative errors of float32 in φ(T) and in the meta-gradient, or why there are none."""
    try:
        exact = double.measure(by_method(method), each=True)
        found = single.measure(by_method(method), each=True)
    except SolverError as error:
        return [{"task": None, "error": None, "phi_error": None, "stability": None, "failed": str(error)}]
    stability = exact.stats.get("stability")
    shares = [None] * len(exact.phi) if stability is None else stability.tolist()
    return [
        {"task": task, "error": error, "phi_error": phi_error, "stability": share, "failed": None}
        for task, (error, phi_error, share) in enumerate(zip(*errors(exact, found), shares, strict=True))
    ]


def errors(exact: Outcome, found: Outcome) -> tuple[list[float], list[float]]:
    """Return ‖g − g_exact‖ / ‖g_exact‖ and the same of φ, one a task."""
    pairs = ((found.gradient, exact.gradient), (found.phi, exact.phi))
    gradient, phi = (((a.double() - b).norm(dim=1) / b.norm(dim=1)).tolist() for a, b in pairs)
    return gradient, phi


PRECISION = Study(
    "Whether MAML's gradient is numerically unstable: float32 beside float64, by inner steps", run, BUDGETS
)
