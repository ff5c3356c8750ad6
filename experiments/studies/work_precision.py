"""The work-precision study: error of φ(T) and of the meta-gradient against evaluations, every solver and adjoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from adjoint_meta.solvers import checks
from adjoint_meta.tasks import TaskBatch

from .. import plots
from ..config import RunConfig
from ..prepare import Prepared, prepare
from ..registry import resolve
from ..run import fit
from ..run_directory import RunDirectory
from . import shared_steps
from .case import Case, Reference
from .results import make_directory, write
from .subject import Subject
from .sweeps import BUDGETS, Budget, missing, sweeps
from .verdicts import judge
from .work_precision_plot import draw
from .work_precision_report import report

TASKS, POINTS = 5, 100

# Sees how far the study is: (done, of how many, what comes next).
Observer = Callable[[int, int, str], None]


def meta_steps(budget: str) -> int:
    """Return the meta-steps that the trained initialisation takes.

    Raises:
        ValueError: for an unknown budget.
    """
    return BUDGETS[checks.one_of("budget", budget, BUDGETS)].meta_steps


def train(budget: str, out: Path, observe: Callable[[dict[str, Any]], None] = lambda record: None) -> Prepared:
    """Return the trained initialisation, by the experiment's default method, or what lies in the directory.

    Args:
        budget: a name of `BUDGETS`.
        out: the study's directory; what was begun there is finished.
        observe: sees every meta-step.

    Raises:
        ValueError: for an unknown budget or a directory that cannot be used.
    """
    config = _config(meta_steps(budget))
    directory = RunDirectory(out / f"trained-{config.meta_steps}")
    if directory.config.exists() and directory.read_config() != config:
        raise ValueError(f"{directory.path} holds the run of another configuration; remove it or choose another --out")
    return fit(config, directory, resume=True, observe=observe).prepared


def study(
    budget: str = "quick",
    out: Path = Path("runs/bench-solvers"),
    *,
    observe: Observer = lambda done, total, what: None,
) -> dict[str, Any]:
    """Run the study on CosMixture and write solvers.json, solvers.md and the pictures.

    Args:
        budget: a name of `BUDGETS`.
        out: the directory; the trained initialisation is kept there, and used again.
        observe: sees each sweep before it runs.

    Raises:
        ValueError: for an unknown budget or a directory that cannot be used.
    """
    steps = meta_steps(budget)
    chosen = BUDGETS[budget]
    started = time.perf_counter()
    make_directory(out)
    prepared = {"random": prepare(_config(steps)), "trained": train(budget, out)}
    cases = _cases(prepared, prepared["random"].experiment.test[:TASKS], chosen, observe)
    result: dict[str, Any] = {
        "study": "solvers",
        "budget": budget,
        "experiment": "cosmixture",
        "tasks": TASKS,
        "points_a_task": POINTS,
        "meta_steps": steps,
        "torch": torch.__version__,
        "missing": missing(),
        "references": [_reference(case) for case in cases],
        "points": [asdict(point) | {"trusted": point.trusted} for case in cases for point in case.points],
        "skipped": [f"{case.start}, T = {case.horizon:g}: {what}" for case in cases for what in case.skipped],
        **judge(cases),
        "shared_step": _mixed(prepared["random"], chosen),
        "seconds": time.perf_counter() - started,
        "out": str(out),
    }
    write(out, "solvers", result, report(result))
    plots.save(draw(result, "gradient_error"), out / "work_precision.png")
    plots.save(draw(result, "phi_error_moved"), out / "work_precision_phi.png")
    return result


def _config(steps: int) -> RunConfig:
    keys = {
        "task": {"shots": POINTS, "queries": POINTS, "test_queries": POINTS},
        "meta_steps": steps,
        "dtype": "float64",
        "device": "cpu",
        "test": {"adam_epochs": 0},
    }
    return resolve(keys, "cosmixture", "adjoint")


def _cases(prepared: dict[str, Prepared], tasks: TaskBatch, budget: Budget, observe: Observer) -> list[Case]:
    where = [(start, horizon) for start in prepared for horizon in budget.horizons]
    cases = []
    for done, (start, horizon) in enumerate(where):
        observe(done, len(where), f"reference: {start} initialisation, T = {horizon:g}")
        experiment = prepared[start].experiment
        subject = Subject(experiment.model, experiment.loss, tasks)
        reference = Reference.find(subject, horizon, budget.reference)
        cases.append(Case(start, subject, horizon, reference, 2 * budget.point))
    work = [(case, name, run) for case in cases for name, run in sweeps(case, budget)]
    for done, (case, name, run) in enumerate(work):
        observe(done, len(work), f"{case.start} initialisation, T = {case.horizon:g}: {name}")
        run()
    observe(len(work), len(work), "own and shared step sizes")
    return cases


def _reference(case: Case) -> dict[str, Any]:
    reference = case.reference
    return {
        "start": case.start,
        "horizon": case.horizon,
        "radius": reference.radius,
        "moved": reference.moved,
        "evaluations": reference.evaluations,
        "self_consistency": {"phi": reference.phi_check, "gradient": reference.gradient_check},
    }


def _mixed(prepared: Prepared, budget: Budget) -> list[dict[str, Any]]:
    experiment = prepared.experiment
    tasks = experiment.test[: budget.mixed_tasks]
    return shared_steps.compare(experiment.model, tasks, budget.mixed_horizon, budget.mixed_solvers)
