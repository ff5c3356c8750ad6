"""Which points a study takes: every solver over steps or tolerances, every adjoint, every competitor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, exp, floor, log
from typing import TypeVar

from adjoint_meta.inner_solvers import ADAPTIVE, IMPLICIT
from adjoint_meta.solvers import TABLEAUS, RungeKutta

from .case import Case, Point
from .competitors import MISSING, has_torchode, released_scheme, torchdiffeq_solve, torchode_solve
from .subject import Solve

S = TypeVar("S", int, float)

EXPLICIT = ("euler", "heun", "bosh3", "rk4", "dopri5", "tsit5")
TARGETS = (1e-2, 1e-3)


@dataclass(frozen=True)
class Budget:
    """How much a study may take.

    Args:
        horizons: T.
        meta_steps: of the training that makes the trained initialisation.
        tolerances: of adaptive solvers, the most wanted first.
        implicit_steps: of implicit solvers.
        point: most evaluations of a point; what is predicted to take more is skipped.
        sweep: most evaluations of all points of a sweep; the point that passes it is the last.
        floor: error at which a sweep over steps ends.
        adjoint: most evaluations of a solve that is differentiated in every way.
        reference: relative tolerance of the reference.
        mixed_tasks, mixed_horizon, mixed_solvers: of the comparison of own and shared step sizes.
    """

    horizons: tuple[float, ...]
    meta_steps: int
    tolerances: tuple[float, ...]
    implicit_steps: tuple[int, ...]
    point: int
    sweep: int
    floor: float
    adjoint: int
    reference: float
    mixed_tasks: int = 64
    mixed_horizon: float = 2.0
    mixed_solvers: tuple[str, ...] = ("bosh3", "tsit5", "rkc")


BUDGETS = {
    "quick": Budget(
        horizons=(0.5, 2.0, 10.0),
        meta_steps=30,
        tolerances=(1e-2, 1e-3),
        implicit_steps=(2,),
        point=300,
        sweep=200,
        floor=1e-3,
        adjoint=120,
        reference=1e-7,
        mixed_horizon=1.0,
        mixed_solvers=("bosh3", "rkc"),
    ),
    "full": Budget(
        horizons=(0.5, 2.0, 10.0, 50.0),
        meta_steps=300,
        tolerances=(1e-2, 1e-3, 1e-1, 1e-4, 3e-2, 3e-3, 3e-4),
        implicit_steps=(1, 2, 4, 8, 16),
        point=6000,
        sweep=3000,
        floor=3e-5,
        adjoint=2000,
        reference=1e-9,
    ),
}


def sweeps(case: Case, budget: Budget) -> list[tuple[str, Callable[[], None]]]:
    """Return all sweeps of a case by name, to be run in this order."""
    found: list[tuple[str, Callable[[], None]]] = [("auto", partial(_automatic, case, budget))]
    found += [(solver, partial(_fixed, case, budget, solver)) for solver in EXPLICIT]
    found += [(f"{solver} adaptive", partial(_adaptive, case, budget, solver)) for solver in ADAPTIVE]
    found += [(solver, partial(_implicit, case, budget, solver)) for solver in IMPLICIT]
    found += [("adjoints", partial(_adjoints, case, budget))]
    found += [("torchdiffeq", partial(_torchdiffeq, case, budget)), ("torchode", partial(_torchode, case, budget))]
    found += [("released A-MAML", partial(_released, case, budget))]
    return found


def missing() -> list[str]:
    """Return a line for each competitor that is not installed."""
    return [] if has_torchode() else [MISSING.format("torchode")]


def _automatic(case: Case, budget: Budget) -> None:
    _walk(case, budget, "auto", budget.tolerances, lambda rtol: case.point("auto", rtol=rtol))


def _adaptive(case: Case, budget: Budget, solver: str) -> None:
    _walk(case, budget, f"{solver} adaptive", budget.tolerances, lambda rtol: case.point(solver, rtol=rtol))


def _implicit(case: Case, budget: Budget, solver: str) -> None:
    _walk(case, budget, solver, budget.implicit_steps, lambda steps: case.point(solver, steps=steps))


def _walk(case: Case, budget: Budget, curve: str, settings: Sequence[S], take: Callable[[S], Point]) -> None:
    """Take one point a setting until the sweep's evaluations are spent; a second failure spends them, too."""
    spent = 0
    for index, setting in enumerate(settings):
        point = take(setting)
        spent += point.evaluations if point.failed is None else ceil(budget.sweep / 2)
        if spent >= budget.sweep and index + 1 < len(settings):
            rest = ", ".join(f"{left:g}" for left in settings[index + 1 :])
            case.skipped.append(f"{curve}: {rest}, the sweep's evaluations being spent")
            return


def least_stable_steps(case: Case, solver: str) -> int:
    """Return the fewest steps that may be stable; the largest ‖H‖ met on the way decides."""
    limit = RungeKutta(TABLEAUS[solver]).limit()
    return max(1, floor(case.horizon * case.reference.radius / limit))


def _fixed(case: Case, budget: Budget, solver: str) -> None:
    """More and more steps from the fewest that may be stable, then those between which the targets are reached."""
    tableau = TABLEAUS[solver]
    cost = 2 * tableau.solution_stages
    growth = 2.0 if tableau.order < 3 else 1.5
    steps, spent = least_stable_steps(case, solver), 0
    points: list[Point] = []
    while steps * cost <= budget.point and spent < budget.sweep:
        points.append(case.point(solver, steps=steps))
        spent += points[-1].evaluations
        if points[-1].reaches(budget.floor):
            break
        steps = max(steps + 1, ceil(growth * steps))
    if not points or not points[-1].reaches(budget.floor):
        case.skipped.append(f"{solver}: {steps} steps and more, {steps * cost} evaluations")
    for target in TARGETS:
        _refine(case, solver, target)


def _refine(case: Case, solver: str, target: float) -> None:
    """Narrow down the fewest steps that reach the target to 3 %, by secants on the logarithms."""
    for _ in range(8):
        points = sorted(
            (p for p in case.points if p.curve == solver and p.adjoint == "discrete"), key=lambda p: p.steps or 0
        )
        failing = [index for index, point in enumerate(points) if not point.reaches(target)]
        last = failing[-1] if failing else -1
        if last + 1 >= len(points) or last < 0:
            return
        low, high = points[last], points[last + 1]
        fewest, enough = low.steps or 0, high.steps or 0
        if enough - fewest <= max(1, 0.03 * enough):
            return
        case.point(solver, steps=_between(low, high, target))


def _between(low: Point, high: Point, target: float) -> int:
    """Return a number of steps strictly between two points, where a power law through them meets the target."""
    first, last = low.steps or 0, high.steps or 0
    share = 0.5
    if low.gradient_error is not None and high.gradient_error is not None:
        share = log(low.gradient_error / target) / log(low.gradient_error / high.gradient_error)
    steps = ceil(first * exp(min(max(share, 0.0), 1.0) * log(last / first)))
    return min(max(steps, first + 1), last - 1)


def _adjoints(case: Case, budget: Budget) -> None:
    """Every adjoint on a few solves: those of heun and rk4 that just reach the first target, tsit5 and rkc at 1e-3."""
    known = [point for point in case.points if point.adjoint == "discrete" and point.failed is None]
    chosen = []
    for solver in ("heun", "rk4"):
        chosen += sorted(
            (p for p in known if p.curve == solver and p.reaches(TARGETS[0])), key=lambda p: p.evaluations
        )[:1]
    chosen += [p for p in known if p.curve in ("tsit5 adaptive", "rkc adaptive") and p.rtol == 1e-3]
    for point in chosen:
        if point.evaluations > budget.adjoint:
            case.skipped.append(f"other adjoints of {point.curve}: its solve takes {point.evaluations} evaluations")
            continue
        for adjoint in ("checkpointed", "interpolating", "backsolve"):
            case.point(point.curve.split()[0], adjoint=adjoint, steps=point.steps, rtol=point.rtol)


def _torchdiffeq(case: Case, budget: Budget) -> None:
    for name, adjoint in (("torchdiffeq dopri5", False), ("torchdiffeq odeint_adjoint", True)):

        def take(rtol: float, name: str = name, adjoint: bool = adjoint) -> Point:
            solve = torchdiffeq_solve(case.horizon, rtol, adjoint=adjoint)
            return case.take(solve, name, "backward solve" if adjoint else "autograd", None, rtol, own=False)

        _walk(case, budget, name, budget.tolerances, take)


def _torchode(case: Case, budget: Budget) -> None:
    if not has_torchode():
        return
    for method in ("Tsit5", "Dopri5"):
        name = f"torchode {method.lower()}"

        def take(rtol: float, name: str = name, method: str = method) -> Point:
            solve = torchode_solve(case.horizon, rtol, method)
            return case.take(solve, name, "autograd", None, rtol, own=False)

        _walk(case, budget, name, budget.tolerances, take)


def _released(case: Case, budget: Budget) -> None:
    """Its steps of 0.01, and others from the fewest at which its Euler steps back may be stable."""
    paper = round(case.horizon / 0.01)
    fewest = least_stable_steps(case, "euler")
    wanted = sorted({paper, *(fewest * 2**k for k in range(1, 6))})
    affordable = [steps for steps in wanted if 5 * steps + 1 <= budget.point]
    if len(affordable) < len(wanted):
        left = ", ".join(map(str, wanted[len(affordable) :]))
        case.skipped.append(f"released A-MAML: {left} steps, 5 evaluations each")

    def take(steps: int) -> Point:
        solve: Solve = released_scheme(case.horizon, steps)
        return case.take(solve, "released A-MAML code", "Euler", steps, None, own=False)

    _walk(case, budget, "released A-MAML", affordable, take)
