"""An implicit stage of a gradient flow, solved by Newton-CG with a line search on its proximal objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks
from .linear import conjugate_gradient
from .linearised import Linearised, linearise
from .solution import Status, statuses
from .stepper import DifferentiableField, Time, stretch

# A stage far from its solution is linearised roughly; once the residual is down to a hundredth, four digits a step.
_NEAR, _FAR_TOL, _NEAR_TOL = 1e-2, 1e-1, 1e-4
# Sufficient decrease (Nocedal and Wright, 3.1), and how often a step may be shortened, at most tenfold each time.
_ARMIJO, _SHORTENINGS = 1e-4, 30


@dataclass(frozen=True)
class Stage:
    """The equation Y = b + c f(t, Y) of an implicit stage, every row its own.

    Where f = −∇E its solutions are the stationary points of Φ(Y) = ½‖Y − b‖² + c E(t, Y), whose gradient
    Y − b − c f is the residual and whose Hessian is I − c J.

    Args:
        field: with a symmetric Jacobian J; `linearise` and `potential` are used if it has them.
        t: time of the stage.
        c: its share of the step, a number or ``[rows, 1]``.
        b: what is known beforehand, shape ``[rows, P]``.
    """

    field: DifferentiableField
    t: Time
    c: Time
    b: Tensor


@dataclass(frozen=True)
class NewtonInfo:
    """Statistics of a stage's solve, one entry a row.

    Args:
        steps: Newton steps that moved the row, ``[rows]``.
        cg_steps: steps of conjugate gradients in all of them, ``[rows]``.
        residual: ‖Y − b − c f(Y)‖ at the end, ``[rows]``.
        codes: status codes, ``[rows]``.
        products: number of batched products with J.
    """

    steps: Tensor
    cg_steps: Tensor
    residual: Tensor
    codes: Tensor
    products: int

    @property
    def status(self) -> list[Status]:
        """One `Status` a row."""
        return statuses(self.codes)


class NewtonResult(NamedTuple):
    """A stage's solution Y ``[rows, P]``, f(t, Y) ``[rows, P]``, and how it was found."""

    y: Tensor
    value: Tensor
    info: NewtonInfo


def newton_cg(
    stage: Stage,
    start: Tensor,
    *,
    tol: float = 1e-10,
    fall: float = 0.0,
    max_steps: int = 100,
    cg_steps: int = 1000,
    cg_tol: float | None = None,
) -> NewtonResult:
    """Solve a stage by Newton's method with truncated CG and backtracking, every row on its own.

    (I − c J) d = −residual is solved by CG, which stops at negative curvature, so that d leads downhill on Φ whether
    or not Φ is convex (Nocedal and Wright, Numerical Optimization, algorithm 7.1), and roughly while that is enough
    (Dembo, Eisenstat, Steihaug 1982). Backtracking is on Φ. Without a `potential` its change along a step is taken
    from the slopes at both ends by the trapezoidal rule: the approximate Wolfe condition of Hager and Zhang (2005).

    A row is done when ‖residual‖ ≤ tol · ‖Y − b‖ up to a rounding of Y: errors then add up to at most tol times the
    length of the path, in however many steps. Rounding Y changes the residual by up to ε‖I − c J‖‖Y‖, so a residual
    below that is also done when a correction small against Y no longer halves it. Rows that are done do not move.

    Args:
        stage: the equation.
        start: where to start, shape ``[rows, P]``.
        tol: as above.
        fall: share of its first ‖residual‖ at which a row is done, too.
        max_steps: most Newton steps.
        cg_steps: most steps of each linear solve, 2P at most; one cut short still leads downhill.
        cg_tol: relative residual of each linear solve; ``None`` is rough, and more so far from the solution.

    Returns:
        The solution, f there, and a `NewtonInfo`, which reports the rows that failed: ``NEWTON``, or ``NON_FINITE``
        if f was not finite at the start. Nothing carries a graph.
    """
    at = _Point(stage, start.detach())
    operator = _Operator(at)
    eps = torch.finfo(start.dtype).eps
    first = at.norm
    steps = cg = torch.zeros_like(first, dtype=torch.long)
    unusable = stuck = ~torch.isfinite(first)
    bound = fall * first
    done = at.converged(tol) | (at.norm <= bound)
    for _ in range(max_steps):
        running = ~(done | stuck)
        if not running.any():
            break
        d, taken = _direction(operator, _linear_solves(running, at.norm <= _NEAR * first, cg_tol), cg_steps)
        after, moved = _backtrack(at, d, running)
        steps, cg = steps + moved, cg + taken
        stalled = ~(after.norm <= 0.5 * at.norm) & (_norm(d) <= math.sqrt(eps) * after.size)
        at = operator.at = after
        reached = at.converged(tol) | (at.norm <= bound)
        done = done | (running & (reached | (stalled & (at.norm <= eps * operator.norm * at.size))))
        stuck = stuck | (running & ~moved & ~done)
    codes = torch.where(unusable, Status.NON_FINITE.code, Status.NEWTON.code)
    codes = torch.where(done, Status.SUCCESS.code, codes)
    return NewtonResult(at.y, at.value, NewtonInfo(steps, cg, at.norm, codes, operator.products))


class _Point:
    """A stage at one Y, where everything is evaluated when it is first asked for."""

    def __init__(self, stage: Stage, y: Tensor) -> None:
        self.stage, self.y = stage, y

    @cached_property
    def linear(self) -> Linearised:
        return linearise(self.stage.field, self.stage.t, self.y)

    @cached_property
    def value(self) -> Tensor:
        value = self.linear.value.detach()
        checks.like("the field's value", value, self.y)
        return value

    @cached_property
    def residual(self) -> Tensor:
        return self.y - self.stage.b - self.stage.c * self.value

    @cached_property
    def norm(self) -> Tensor:
        return _norm(self.residual)

    @cached_property
    def size(self) -> Tensor:
        """The larger of ‖Y‖ and ‖b‖, ``[rows]``."""
        return torch.maximum(_norm(self.y), _norm(self.stage.b))

    @property
    def rounding(self) -> Tensor:
        """What rounding Y and b makes of Y − b, ``[rows]``."""
        return 2 * torch.finfo(self.y.dtype).eps * self.size

    def converged(self, tol: float) -> Tensor:
        return self.norm <= tol * _norm(self.y - self.stage.b) + self.rounding

    @cached_property
    def objective(self) -> tuple[Tensor, Tensor]:
        """Φ, and how far rounding may have put it off, ``[rows]`` both."""
        field: Any = self.stage.field
        energy = field.potential(self.stage.t, self.y).detach()
        if energy.shape != self.y.shape[:1]:
            raise ValueError(
                f"potential must return one value a row, {list(self.y.shape[:1])}, not {list(energy.shape)}"
            )
        moved = 0.5 * (self.y - self.stage.b).square().sum(dim=1)
        energy = _a_row(self.stage.c) * energy
        return moved + energy, 8 * torch.finfo(self.y.dtype).eps * (moved + energy.abs())

    def rise(self, at: _Point, alpha: Tensor, d: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return by how much Φ is higher here than at the other end of α d, and the rounding of that, ``[rows]``."""
        if callable(getattr(self.stage.field, "potential", None)):
            (here, rounding), (there, other) = self.objective, at.objective
            return here - there, torch.maximum(rounding, other)
        return 0.5 * alpha * (slope + _dot(self.residual, d)), alpha * _norm(d) * self.rounding


class _Operator:
    """v ↦ (I − c J) v at a point; keeps the largest ‖(I − c J) v‖ / ‖v‖ that it saw, which costs nothing."""

    def __init__(self, at: _Point) -> None:
        self.at, self.norm, self.products = at, torch.ones_like(at.norm), 0

    def __call__(self, v: Tensor) -> Tensor:
        self.products += 1
        product = v - self.at.stage.c * self.at.linear.product(v).detach()
        self.norm = torch.maximum(self.norm, stretch(product, v).nan_to_num(0.0, 0.0))
        return product


def _linear_solves(running: Tensor, near: Tensor, tol: float | None) -> Sequence[tuple[Tensor, float]]:
    """Return the rows that are solved for together, and how far: CG has one tolerance for all its rows."""
    return ((running & ~near, _FAR_TOL), (running & near, _NEAR_TOL)) if tol is None else ((running, tol),)


def _direction(operator: _Operator, solves: Sequence[tuple[Tensor, float]], cg_steps: int) -> tuple[Tensor, Tensor]:
    """Return a direction downhill on Φ, ``[rows, P]``, and the steps of CG, ``[rows]``; zero where nothing runs."""
    g = operator.at.residual
    d = torch.zeros_like(g)
    running = torch.zeros_like(g[:, 0], dtype=torch.bool)
    steps = torch.zeros_like(running, dtype=torch.long)
    for chosen, tol in solves:
        running = running | chosen
        if chosen.any():
            b = torch.where(chosen[:, None], -g, 0.0)
            part, info = conjugate_gradient(operator, b, tol=tol, max_steps=min(cg_steps, 2 * g.shape[1]))
            d, steps = d + part, steps + info.steps
    failed = running & (steps == 0)
    if failed.any():
        # Steepest descent, as long as Newton's step along g if its curvature had the other sign, but not longer than g.
        curvature = _dot(g, operator(g)) / torch.where(failed, _dot(g, g), 1.0)
        length = 1 / curvature.abs().nan_to_num(1.0).clamp(min=1.0)
        d = torch.where(failed[:, None], -length[:, None] * g, d)
    return d, steps


def _backtrack(at: _Point, d: Tensor, running: Tensor) -> tuple[_Point, Tensor]:
    """Return the point reached along d, and the rows that moved: those in which Φ fell far enough.

    A step too long is shortened to the minimum of the parabola through what is known (Nocedal and Wright, eq. 3.58).
    """
    slope = _dot(at.residual, d)
    alpha = torch.ones_like(slope)
    pending, trial = running, at
    for _ in range(_SHORTENINGS):
        trial = _Point(at.stage, torch.where(pending[:, None], at.y + alpha[:, None] * d, trial.y))
        rise, rounding = trial.rise(at, alpha, d, slope)
        # Near the solution Φ falls by less than its rounding; but a step that had to become tiny must show its fall.
        slack = torch.where(alpha > 1e-3, rounding, 0.0)
        pending = pending & ~(rise <= _ARMIJO * alpha * slope + slack)
        if not pending.any():
            return trial, running
        ratio = -0.5 * alpha * slope / (rise - alpha * slope)
        alpha = torch.where(pending, alpha * ratio.nan_to_num(0.1).clamp(0.1, 0.5), alpha)
    return _Point(at.stage, torch.where(pending[:, None], at.y, trial.y)), running & ~pending


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(dim=1)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=1)
    return norm


def _a_row(c: Time) -> Time:
    """Return a step size as a factor of ``[rows]``."""
    return c.squeeze(1) if isinstance(c, Tensor) and c.ndim == 2 else c
