"""How often the assumptions of iMAML's theory hold along real training: convexity, smoothness, Lipschitz Hessians."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adjoint_meta.meta_gradients import ImplicitMAML
from adjoint_meta.solvers.solution import Status

from ..data.errors import MissingDataError
from ..outer import build_outer
from ..prepare import Prepared, prepare
from ..registry import resolve
from ..report import Report
from .assumptions_report import report
from .inner_curvature import extremes, trajectory
from .study import Setting, Study


@dataclass(frozen=True)
class Budget:
    """How long the study takes.

    Args:
        probes: meta-steps at which curvature is looked at; the last one ends the training.
        tasks: looked at, the same ones at each probe.
        products: Hessian-vector products a point.
        proximal: values of λ, each with a training of its own.
        experiments: by name.
        shares: points of the inner trajectory, as shares of its steps.
    """

    probes: tuple[int, ...] = (0, 10, 50)
    tasks: int = 40
    products: int = 25
    proximal: tuple[float, ...] = (0.1, 1.0, 10.0)
    experiments: tuple[str, ...] = ("cosmixture", "movielens-100k")
    shares: tuple[float, ...] = (0.0, 0.1, 0.5, 1.0)


BUDGETS = {
    "quick": Budget(),
    "full": Budget((0, 10, 100, 1000, 5000), tasks=100, products=40, proximal=(0.1, 1.0, 10.0, 100.0)),
}
# What stands in for a data set of ratings that is not at hand.
EMBEDDED = "ratings-toy"


def run(setting: Setting) -> Report:
    """Train iMAML with each λ, and look at the inner problem's curvature on the way."""
    budget = BUDGETS[setting.budget]
    names = {_available(name, setting.data_dir): name for name in budget.experiments}
    cells = [(name, proximal) for name in names for proximal in budget.proximal]
    total = len(cells) * (budget.probes[-1] + 1)
    records: list[dict[str, Any]] = []
    for number, (name, proximal) in enumerate(cells):

        def show(
            step: int, done: int = number * (budget.probes[-1] + 1), what: str = f"{name}, λ = {proximal:g}"
        ) -> None:
            setting.step(done + step, total, f"{what}: meta-step {step}")

        show(0)
        records += setting.cell(f"{name}-{proximal:g}", partial(train, setting, name, proximal, budget, show))
    setting.observe(total, total, "done")
    missing = [wanted for name, wanted in names.items() if name != wanted]
    return report(records, missing, vars(budget) | {"budget": setting.budget})


def _available(name: str, data_dir: Path | None) -> str:
    """Return the experiment, or the embedded one where its data set is not here."""
    try:
        prepare(resolve({"backend": "eager"}, name, "imaml"), data_dir)
    except MissingDataError:
        return EMBEDDED
    return name


def train(setting: Setting, name: str, proximal: float, budget: Budget, show: Any) -> list[dict[str, Any]]:
    """Train with this λ, and return a record a probe, place and task."""
    keys = {"method": {"name": "imaml", "proximal": proximal}, "backend": "eager", "dtype": "float64"}
    prepared = prepare(resolve({**keys, "device": setting.device}, name, "imaml"), setting.data_dir)
    learner = prepared.learner
    optimizer, _ = build_outer(prepared.config, list(learner.parameters()))
    records: list[dict[str, Any]] = []
    failed = met = 0
    for step in range(budget.probes[-1] + 1):
        show(step)
        if step in budget.probes:
            share = failed / met if met else None
            shared = {"experiment": name, "lambda": proximal, "meta_step": step, "cg_failed": share}
            records += [{**shared, **each} for each in probe(prepared, budget)]
        if step == budget.probes[-1]:
            break
        tasks = prepared.place(prepared.experiment.train.meta_batch(step, prepared.config.tasks_per_step, 0))
        with warnings.catch_warnings():  # tasks in which CG failed are counted here
            warnings.simplefilter("ignore", RuntimeWarning)
            found = learner.meta_gradient(tasks)
        codes = found.stats["cg_status"]
        failed += int(sum((codes == s.code).sum() for s in (Status.NEGATIVE_CURVATURE, Status.BREAKDOWN)))
        met += len(codes)
        for key, parameter in learner.model.named_parameters():
            parameter.grad = found.grad[key]
        optimizer.step()
    return records


def probe(prepared: Prepared, budget: Budget) -> list[dict[str, Any]]:
    """Return a record a place and task: extremes of H, and how fast H changed since the place before."""
    method = prepared.learner.method
    if not isinstance(method, ImplicitMAML):
        raise TypeError(f"the assumptions are those of ImplicitMAML, got {type(method).__name__}")
    source = prepared.experiment.train
    count = budget.tasks if source.size is None else min(budget.tasks, source.size)
    support = prepared.place(source[0:count]).support
    places = [round(share * method.steps) for share in budget.shares]
    problem = prepared.learner.support_problem(support)
    theta = prepared.learner.initial(count)
    points = trajectory(problem, theta, method.proximal, method.inner_lr, places)
    found = extremes(problem, points, min(budget.products, theta.shape[1]))
    records = []
    for index, place in enumerate(places):
        for task in range(count):
            change = float(found.lipschitz[index - 1, task]) if index else None
            records.append({
                "inner_step": place,
                "task": task,
                "smallest": float(found.smallest[index, task]),
                "largest": float(found.largest[index, task]),
                "lipschitz": change if change is not None and torch.isfinite(torch.tensor(change)) else None,
                "inner_lr": method.inner_lr,
            })  # fmt: skip
    return records


ASSUMPTIONS = Study(
    "What iMAML's theory assumes, measured along training: convexity, smoothness, Hessians", run, BUDGETS, on_gpu=True
)
