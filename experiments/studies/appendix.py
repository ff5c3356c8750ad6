"""Tables 4 and 5 of the A-MAML paper's appendix again: how accurate gradients are at a number of states."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adjoint_meta.adaptation import GradientFlow
from adjoint_meta.meta_gradients import AdjointMAML
from adjoint_meta.meta_gradients.base import Adapted, Pullback
from adjoint_meta.parameters import ParameterRows
from adjoint_meta.problem import Problem
from adjoint_meta.solvers import TABLEAUS, VJP, Discrete, Interpolating, RungeKutta, UniformGrid, UniformSteps
from adjoint_meta.solvers.adjoints import Adjoint, Solve
from adjoint_meta.solvers.stepper import Time
from adjoint_meta.tasks import generator

from ..models import HalfMSELoss, mlp
from ..regression import CosMixture, RegressionTasks
from .appendix_report import report
from .published import ADJOINT_4, ADJOINT_5, AUTODIFF_4, SCHEME, STATES_4, STATES_5
from .results import make_directory, write
from .subject import Solve as InnerSolve
from .subject import Subject, by_method


@dataclass(frozen=True)
class Extent:
    """How much of the tables is made.

    Args:
        count: initial states, and initialisations.
        points: support and query points of a task.
        states4, states5: numbers of states.
        horizons5: T of Table 5.
        own_states: of the own gradient that Table 5 compares with.
        reference: relative tolerance of the reference; the solve that checks it has ten times of it.
    """

    count: int = 20
    points: int = 50
    states4: tuple[int, ...] = STATES_4
    states5: tuple[int, ...] = STATES_5
    horizons5: tuple[float, ...] = tuple(ADJOINT_5)
    own_states: int = 1000
    reference: float = 1e-11


EXTENT = Extent()

# Sees how far the study is: (done, of how many, what comes next).
Observer = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Scheme:
    """A solver and an adjoint, over as many equal steps as there are states.

    Args:
        solver: forward.
        adjoint: backward; both keep one state a step.
    """

    solver: str
    adjoint: Adjoint

    def solve(self, field: Any, y0: Tensor, horizon: float, states: int) -> Solve:
        """Solve from 0 to the horizon."""
        plan = UniformSteps(RungeKutta(TABLEAUS[self.solver]), UniformGrid(0.0, horizon, states))
        return self.adjoint.solve(plan, field, y0)


SCHEMES = {
    "rk4": Scheme("rk4", Discrete("steps")),
    "tsit5": Scheme("tsit5", Discrete("steps")),
    "dopri5": Scheme("dopri5", Discrete("steps")),
    SCHEME: Scheme("dopri5", Interpolating(RungeKutta(TABLEAUS["heun"]))),
}


class ClosedForm:
    """dy/dt = −2t³ − 2ty on rows, solved by y = 1 − t² + (y(0) − 1) e^{−t²}."""

    def __call__(self, t: Time, y: Tensor) -> Tensor:
        """Return the slope."""
        return -2 * t**3 - 2 * t * y

    def vjp(self, t: Time, y: Tensor, w: Tensor) -> VJP:
        """Return the slope and the pullback of w."""
        return VJP(self(t, y), -2 * t * w, time=(w * (-6 * t**2 - 2 * y)).sum(dim=1))

    @staticmethod
    def end(y0: Tensor, horizon: float) -> Tensor:
        """Return y(T)."""
        return 1 - horizon**2 + (y0 - 1) * math.exp(-(horizon**2))

    @staticmethod
    def outer(y: Tensor) -> Tensor:
        """Return dL/dy of L = (y − 3)⁶."""
        return 6 * (y - 3) ** 5


def closed_form_errors(scheme: Scheme, horizon: float, states: int, count: int = 20) -> Tensor:
    """Return the relative errors of dL/dy(0) = 6 (y(T) − 3)⁵ e^{−T²}, one an initial state, uniform in [−1, 1]."""
    uniform = torch.rand((count, 1), generator=generator(0, 4), dtype=torch.float64)
    y0 = 2 * uniform - 1
    solved = scheme.solve(ClosedForm(), y0, horizon, states)
    found = solved.pullback(ClosedForm.outer(solved.end)).start
    exact = ClosedForm.outer(ClosedForm.end(y0, horizon)) * math.exp(-(horizon**2))
    return ((found - exact).abs() / exact.abs()).squeeze(1)


def initialisations(count: int, points: int) -> Subject:
    """Return a random network for each of as many CosMixture tasks: rows that differ in θ and in their task."""
    source, _, _, _ = RegressionTasks(
        CosMixture(), train_tasks=count, test_tasks=1, shots=points, queries=points
    ).build()
    networks = [mlp(CosMixture.inputs, 32, 2, 1, seed=seed).double() for seed in range(count)]
    theta = torch.stack([ParameterRows(network).read(network)[0] for network in networks])
    return Subject(networks[0], HalfMSELoss(), source.tasks, theta)


def meta_gradients(subject: Subject, scheme: Scheme, horizon: float, states: int) -> Tensor:
    """Return each row's meta-gradient, ``[rows, P]``."""

    def solve(problem: Problem, theta: Tensor) -> Adapted:
        solved = scheme.solve(GradientFlow(problem, theta), theta, horizon, states)
        return Adapted(solved.end, lambda c: Pullback(solved.pullback(c).start, theta.new_empty(0), {}), solved.stats)

    return _gradient(subject, solve)


def _gradient(subject: Subject, solve: InnerSolve) -> Tensor:
    return subject.measure(solve, each=True).gradient


def spread(errors: Tensor) -> dict[str, float]:
    """Return mean and standard deviation."""
    return {"mean": float(errors.mean()), "std": float(errors.std())}


def relative(found: Tensor, reference: Tensor) -> dict[str, float]:
    """Return the spread of each row's relative error."""
    return spread((found - reference).norm(dim=1) / reference.norm(dim=1))


def table4(extent: Extent) -> list[dict[str, Any]]:
    """Return Table 4, an entry a horizon and number of states: the paper's two columns, and every scheme's errors."""
    return [
        {
            "horizon": horizon,
            "states": count,
            "paper": {name: _printed(table, STATES_4, horizon, count) for name, table in _COLUMNS_4.items()},
            **{
                name: spread(closed_form_errors(scheme, horizon, count, extent.count))
                for name, scheme in SCHEMES.items()
            },
        }
        for horizon in ADJOINT_4
        for count in extent.states4
    ]


_COLUMNS_4 = {"autodiff": AUTODIFF_4, "adjoint": ADJOINT_4}


def _printed(table: dict[float, tuple[float, ...]], states: Sequence[int], horizon: float, count: int) -> float | None:
    """Return what the paper prints, if it has that entry."""
    return table[horizon][states.index(count)] if horizon in table and count in states else None


def table5(extent: Extent, observe: Observer = lambda done, total, what: None) -> list[dict[str, Any]]:
    """Return Table 5: errors of rk4's transpose and of the paper's scheme, an entry a horizon and number of states.

    Each is compared with its own gradient at ``own_states`` states, as in the paper, and with a tight reference
    (tsit5, checked by dopri5: ``reference_check``).
    """
    subject = initialisations(extent.count, extent.points)
    entries = []
    work = len(extent.horizons5) * 2 * (len(extent.states5) + 1)
    done = 0
    for horizon in extent.horizons5:
        tight, check = (
            _gradient(subject, by_method(AdjointMAML(horizon=horizon, solver=solver, rtol=rtol)))
            for solver, rtol in (("tsit5", extent.reference), ("dopri5", 10 * extent.reference))
        )
        rows: list[dict[str, Any]] = [
            {
                "horizon": horizon,
                "states": count,
                "paper": _printed(ADJOINT_5, STATES_5, horizon, count),
                "reference_check": relative(check, tight)["mean"],
            }
            for count in extent.states5
        ]
        for name in ("rk4", SCHEME):
            observe(done, work, f"table 5: {name}, T = {horizon:g}, {extent.own_states} states")
            own = meta_gradients(subject, SCHEMES[name], horizon, extent.own_states)
            done += 1
            for row in rows:
                observe(done, work, f"table 5: {name}, T = {horizon:g}, {row['states']} states")
                found = meta_gradients(subject, SCHEMES[name], horizon, row["states"])
                row[name] = {"own": relative(found, own), "reference": relative(found, tight)}
                done += 1
        entries += rows
    return entries


def study(
    out: Path = Path("runs/bench-tables"), *, observe: Observer = lambda done, total, what: None
) -> dict[str, Any]:
    """Make both tables and write tables.json and tables.md.

    Args:
        out: the directory.
        observe: sees what comes next.

    Raises:
        ValueError: if the directory cannot be used.
    """
    started = time.perf_counter()
    make_directory(out)
    observe(0, 1, "table 4")
    first, second = table4(EXTENT), table5(EXTENT, observe)
    result = {
        "study": "tables",
        "initialisations": EXTENT.count,
        "points": EXTENT.points,
        "own_states": EXTENT.own_states,
        "table4": first,
        "table5": second,
        "targets": targets(first, second),
        "torch": torch.__version__,
        "seconds": time.perf_counter() - started,
        "out": str(out),
    }
    write(out, "tables", result, report(result))
    return result


def targets(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the largest error of Table 4 at 100 states up to T = 1, and the least gain over the paper in Table 5."""
    at_100 = [entry for entry in first if entry["states"] == 100 and entry["horizon"] <= 1]
    printed = [entry for entry in second if entry["paper"] is not None]
    largest = {name: max((entry[name]["mean"] for entry in at_100), default=None) for name in SCHEMES}
    gain = {
        against: min((entry["paper"] / entry["rk4"][against]["mean"] for entry in printed), default=None)
        for against in ("own", "reference")
    }
    return {"table4_largest_at_100": largest, "table5_least_gain": gain}
