"""What the points say: evaluations to an accuracy, the best choice in hindsight, and gradients worse than their φ."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from typing import Any

from .case import Case, Point
from .sweeps import TARGETS

# A meta-gradient should be off by at most so many times what φ(T) is off, or its solve should say so.
TOLERATED = 10.0


def judge(cases: Sequence[Case]) -> dict[str, Any]:
    """Return the parts ``summary`` and ``trust`` of the study's result."""
    return {"summary": [summary(case) for case in cases], "trust": trust(cases)}


def summary(case: Case) -> dict[str, Any]:
    """Return what each curve needs for each target, the best of ours in hindsight, and auto and Euler against them."""
    curves: dict[str, list[Point]] = {}
    for point in case.points:
        if point.adjoint == "discrete" or not point.own:
            curves.setdefault(point.curve, []).append(point)
    reached = {curve: {f"{target:g}": reach(points, target) for target in TARGETS} for curve, points in curves.items()}
    own = {curve: reached[curve] for curve, points in curves.items() if points[0].own and curve != "auto"}
    return {
        "start": case.start,
        "horizon": case.horizon,
        "radius": case.reference.radius,
        "reached": reached,
        "best": {f"{target:g}": _best(own, f"{target:g}") for target in TARGETS},
        "auto": {f"{target:g}": _auto(curves["auto"], _best(own, f"{target:g}"), target) for target in TARGETS},
        "rkc_to_euler": _ratio(reached, "rkc adaptive", "euler", f"{TARGETS[0]:g}"),
    }


def reach(points: Sequence[Point], target: float) -> dict[str, Any] | None:
    """Return what it takes to reach the target: at the coarsest point from which on all finer ones do.

    Between that point and the next coarser one the evaluations of an adaptive solver are interpolated on a log-log
    scale; where they stand for steps, they are whole steps.

    Returns:
        evaluations (a task), and n_grad, n_hvp, steps and rtol of the point itself; ``None`` if it is not reached.
    """
    ordered = sorted(points, key=_fineness)
    passing = len(ordered)
    while passing > 0 and ordered[passing - 1].reaches(target):
        passing -= 1
    if passing == len(ordered):
        return None
    point = ordered[passing]
    evaluations = point.evaluations_a_task
    if passing and point.rtol is not None:
        evaluations = _interpolated(ordered[passing - 1], point, target)
    return {
        "evaluations": evaluations,
        "n_grad": point.n_grad,
        "n_hvp": point.n_hvp,
        "steps": point.steps,
        "rtol": point.rtol,
        "coarsest": passing == 0,
    }


def _fineness(point: Point) -> float:
    return float(point.steps) if point.steps is not None else -(point.rtol or 0.0)


def _interpolated(coarse: Point, fine: Point, target: float) -> float:
    if coarse.gradient_error is None or fine.gradient_error is None or fine.gradient_error <= 0:
        return fine.evaluations_a_task
    if not 0 < coarse.evaluations_a_task < fine.evaluations_a_task:
        return fine.evaluations_a_task
    share = log(coarse.gradient_error / target) / log(coarse.gradient_error / fine.gradient_error)
    return exp((1 - share) * log(coarse.evaluations_a_task) + share * log(fine.evaluations_a_task))


def _best(reached: dict[str, dict[str, Any]], target: str) -> dict[str, Any] | None:
    found = {curve: targets[target] for curve, targets in reached.items() if targets[target] is not None}
    if not found:
        return None
    curve = min(found, key=lambda name: float(found[name]["evaluations"]))
    return {"curve": curve, **found[curve]}


def _auto(points: Sequence[Point], best: dict[str, Any] | None, target: float) -> dict[str, Any] | None:
    """Return how ``solver="auto"`` did when it was asked for the target, beside the best choice in hindsight."""
    asked = [point for point in points if point.rtol == target]
    if not asked:
        return None
    (point,) = asked
    return {
        "met": point.reaches(target),
        "gradient_error": point.gradient_error,
        "evaluations": point.evaluations_a_task,
        "n_grad": point.n_grad,
        "n_hvp": point.n_hvp,
        "choice": point.choice,
        "to_best": point.evaluations_a_task / best["evaluations"] if best and point.failed is None else None,
    }


def _ratio(reached: dict[str, dict[str, Any]], curve: str, other: str, target: str) -> float | None:
    first, second = (reached.get(name, {}).get(target) for name in (curve, other))
    return first["evaluations"] / second["evaluations"] if first and second else None


def trust(cases: Sequence[Case]) -> dict[str, Any]:
    """Return the points of ours whose meta-gradient is worse than ten times φ(T), relative to the distance moved.

    ``exceptions`` are those among them that did not say that they are not to be trusted. Errors below what the
    reference resolves count as that.
    """
    points = [(case, point) for case in cases for point in case.points if point.own and point.failed is None]
    worse = [(case, point) for case, point in points if _excess(case, point) > TOLERATED]
    return {
        "points": len(points),
        "untrusted": sum(not point.trusted for _, point in points),
        "worse": len(worse),
        "exceptions": [
            {
                "start": point.start,
                "horizon": point.horizon,
                "curve": point.curve,
                "adjoint": point.adjoint,
                "steps": point.steps,
                "rtol": point.rtol,
                "phi_error_moved": point.phi_error_moved,
                "gradient_error": point.gradient_error,
                "stability": point.stability,
            }
            for _, point in worse
            if point.trusted
        ],
    }


def _excess(case: Case, point: Point) -> float:
    floor = case.errors_resolved()
    return (point.gradient_error or 0.0) / max(point.phi_error_moved or 0.0, floor)
