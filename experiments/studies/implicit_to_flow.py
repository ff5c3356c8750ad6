"""From iMAML to the flow: n proximal implicit steps to T = 1/λ, from n = 1, which is iMAML, to n → ∞."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adjoint_meta.meta_gradients import AdjointMAML, ImplicitMAML
from adjoint_meta.solvers import SolverError

from .. import comparison, crew
from ..crew import Finished
from ..models import HalfMSELoss
from ..prepare import prepare
from ..report import Report
from ..run import fit
from ..run_directory import RunDirectory
from . import imaml_accuracy
from .imaml_accuracy import linear_tasks
from .implicit_to_flow_findings import FLOW, Findings
from .implicit_to_flow_report import report
from .study import Setting
from .subject import Outcome, Subject, by_method

LINEAR, RANDOM, TRAINED = "linear regression", "CosMixture, random θ", "CosMixture, trained θ"


@dataclass(frozen=True)
class Budget:
    """How much is measured.

    Args:
        tasks: test tasks that distances are measured on.
        horizons: T = 1/λ.
        implicit_euler, sdirk2: numbers of steps n.
        rtol: of the flow's reference, by tsit5; dopri5 with ten times of it checks that.
        meta_steps: of each meta-training.
        trained: numbers of implicit Euler steps that are meta-trained with, beside the flow.
        train_horizon: their T.
        seeds: of the meta-trainings.
        task: options of CosMixture.
    """

    tasks: int
    horizons: tuple[float, ...]
    implicit_euler: tuple[int, ...]
    sdirk2: tuple[int, ...]
    rtol: float
    meta_steps: int
    trained: tuple[int, ...]
    train_horizon: float
    seeds: int
    task: tuple[tuple[str, int], ...] = (("shots", 50), ("queries", 50))


BUDGETS = {
    "quick": Budget(12, (1.0, 4.0), (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16), 1e-8, 200, (1, 2, 4, 8), 2.0, 1),
    "full": Budget(
        100,
        (0.5, 1.0, 2.0, 5.0),
        (1, 2, 4, 8, 16, 32, 64, 128),
        (1, 2, 4, 8, 16, 32),
        1e-10,
        5000,
        (1, 2, 4, 8, 16),
        2.0,
        3,
    ),
}


def run(setting: Setting) -> Report:
    """Meta-train with some n, measure distances from the flow at every n, and report."""
    budget = BUDGETS[setting.budget]
    trained = _train(budget, setting)
    distances: list[dict[str, Any]] = []
    work = [(name, horizon) for name in (LINEAR, RANDOM, TRAINED) for horizon in budget.horizons]
    start = _Starts(budget, trained[-1])
    solves = [("implicit_euler", n) for n in budget.implicit_euler] + [("sdirk2", n) for n in budget.sdirk2]
    total = len(work) * (1 + len(solves))
    for number, (name, horizon) in enumerate(work):
        where = f"{name}, T = {horizon:g}"
        setting.observe(number * (1 + len(solves)), total, f"{where}: the flow")
        key = f"{number // len(budget.horizons)}-{horizon:g}"
        target = setting.cell(f"{key}-flow", partial(_flow_from, start, name, horizon, budget.rtol))
        for done, (solver, n) in enumerate(solves, 1):
            setting.observe(number * (1 + len(solves)) + done, total, f"{where}: {solver}, n = {n}")
            compute = partial(_distance, start, name, horizon, solver, n, target)
            found = setting.cell(f"{key}-{solver}-{n}", compute)
            distances.append({"problem": name, "horizon": horizon, "solver": solver, "n": n, **found})
        distances.append(
            {
                "problem": name,
                "horizon": horizon,
                "solver": FLOW,
                "n": None,
                "radius": target["radius"],
                **target["own"],
            }
        )
    setting.observe(total, total, "report")
    facts = {"budget": setting.budget, **asdict(budget), "seed": 0, "dtype": "float64; meta-training float32"}
    return report(Findings(distances, comparison.Comparison.of(trained)), facts)


def _train(budget: Budget, setting: Setting) -> list[Finished]:
    """Meta-train with each number of implicit Euler steps, and last with the flow."""
    horizon = budget.train_horizon
    implicit = {"name": "adjoint", "horizon": horizon, "solver": "implicit_euler"}
    methods: dict[str, dict[str, Any]] = {f"n = {n}": {**implicit, "steps": n} for n in budget.trained}
    methods[FLOW] = {"name": "adjoint", "horizon": horizon, "solver": "rk4", "steps": max(10, round(10 * horizon))}
    keys = {
        "meta_steps": budget.meta_steps,
        "task": dict(budget.task),
        "test": {"adam_epochs": 0},
        "device": setting.device,
    }
    jobs = comparison.jobs("cosmixture", methods, range(budget.seeds), keys, setting.out)
    return crew.work(jobs, processes=setting.jobs, observe=setting.observe, should_stop=setting.should_stop)


class _Starts:
    """The problems by name, each built when it is first needed.

    Args:
        finished: the meta-training whose initialisation counts as trained.
    """

    def __init__(self, budget: Budget, finished: Finished) -> None:
        self._budget, self._finished = budget, finished
        self._built: dict[str, Subject] = {}

    def __getitem__(self, name: str) -> Subject:
        if name not in self._built:
            self._built[name] = self._linear() if name == LINEAR else self._cosmixture(name == TRAINED)
        return self._built[name]

    def _linear(self) -> Subject:
        sizes = imaml_accuracy.Budget(tasks=self._budget.tasks, steps=())
        model = nn.Linear(sizes.dimension, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(model.weight)
        return Subject(model, HalfMSELoss(), linear_tasks(sizes))

    def _cosmixture(self, trained: bool) -> Subject:
        job = self._finished.job
        prepared = fit(job.config, RunDirectory(job.path), resume=True).prepared if trained else prepare(job.config)
        tasks = prepared.experiment.test[: self._budget.tasks].to(dtype=torch.float64)
        return Subject(prepared.learner.model.to("cpu", torch.float64), HalfMSELoss(), tasks)


def _flow_from(start: _Starts, name: str, horizon: float, rtol: float) -> dict[str, Any]:
    return _flow(start[name], horizon, rtol)


def _flow(subject: Subject, horizon: float, rtol: float) -> dict[str, Any]:
    """Return φ(T), the meta-gradients and ‖H‖ of the flow, and how far a second solve is from them."""
    found, other = (
        subject.measure(by_method(AdjointMAML(horizon=horizon, solver=solver, rtol=tolerance)), each=True)
        for solver, tolerance in (("tsit5", rtol), ("dopri5", 10 * rtol))
    )
    return {
        "phi": found.phi.tolist(),
        "gradient": found.gradient.tolist(),
        "radius": float(found.stats["radius"].max()),
        "own": {
            "gradient": _relative(other.gradient, found.gradient).tolist(),
            "rmse": _rmse(subject, found.phi),
            "evaluations": _evaluations(found),
        },
    }


def _distance(start: _Starts, name: str, horizon: float, solver: str, n: int, target: dict[str, Any]) -> dict[str, Any]:
    """Return how far n implicit steps are from the flow, a value a task; one Euler step is held beside iMAML."""
    subject = start[name]
    phi, gradient = (torch.tensor(target[key], dtype=torch.float64) for key in ("phi", "gradient"))
    try:
        found = subject.measure(by_method(AdjointMAML(horizon=horizon, solver=solver, steps=n)), each=True)
    except SolverError as error:
        return {"failed": str(error)}
    moved = (phi - subject.theta).norm(dim=1)
    distances = {
        "gradient": _relative(found.gradient, gradient).tolist(),
        "cosine": torch.cosine_similarity(found.gradient, gradient, dim=1).tolist(),
        "phi": ((found.phi - phi).norm(dim=1) / moved).tolist(),
        "rmse": _rmse(subject, found.phi),
        "evaluations": _evaluations(found),
    }
    if (solver, n) == ("implicit_euler", 1):
        distances["imaml"] = _beside_imaml(subject, horizon, target["radius"], found)
    return distances


def _beside_imaml(subject: Subject, horizon: float, radius: float, found: Outcome) -> list[float] | None:
    """Return the relative difference of iMAML's own meta-gradient, by gradient descent to rest and CG."""
    proximal = 1 / horizon
    # Curvature may grow on the way to the minimiser beyond what the flow met.
    method = ImplicitMAML(proximal, 3000, 1 / (1.5 * radius + proximal), inner_tol=1e-10, cg_steps=1000, cg_tol=1e-11)
    try:
        return _relative(subject.measure(by_method(method), each=True).gradient, found.gradient).tolist()
    except SolverError:
        return None


def _relative(found: Tensor, reference: Tensor) -> Tensor:
    error: Tensor = (found - reference).norm(dim=1) / reference.norm(dim=1)
    return error


def _rmse(subject: Subject, phi: Tensor) -> list[float]:
    """Return the root mean squared error of each task's query."""
    errors: list[float] = (2 * subject.query_losses(phi)).sqrt().tolist()
    return errors


def _evaluations(found: Outcome) -> int:
    return found.evaluations.n_grad + found.evaluations.n_hvp
