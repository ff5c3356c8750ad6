"""Implicit steppers of gradient flows: stages by Newton-CG, transposes by conjugate gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from . import checks
from .linear import conjugate_gradient
from .linearised import linearise
from .newton_cg import NewtonInfo, NewtonResult, Stage, newton_cg
from .solution import Status, raise_if_failed
from .stepper import DifferentiableField, Step, StepCotangents, Time, add, stretch


@dataclass(frozen=True)
class _Implicit(ABC):
    """What implicit steppers share: their tolerances, the two kinds of solves, and what is the same in each step."""

    newton_tol: float = 1e-10
    newton_steps: int = 100
    cg_tol: float = 1e-10
    cg_steps: int = 1000

    def __post_init__(self) -> None:
        checks.positive("newton_tol", self.newton_tol)
        checks.count("newton_steps", self.newton_steps)
        checks.positive("cg_tol", self.cg_tol)
        checks.count("cg_steps", self.cg_steps)

    @property
    def estimate_order(self) -> int:
        """Zero: there is no estimate of the error."""
        return 0

    def stages(self, z: Tensor) -> None:  # noqa: B027
        """Return ``None``: the stages are fixed."""

    def limit(self, stages: Tensor | None = None) -> float:
        """Return infinity: the method is stable on the whole negative real axis."""
        return math.inf

    def step(
        self,
        field: DifferentiableField,
        t: Time,
        h: Time,
        y: Tensor,
        *,
        slope: Tensor | None = None,
        stages: Tensor | None = None,
        estimate: bool = False,
    ) -> Step:
        """Take one step of size h from (t, y).

        Newton's method starts at each stage's b, not at y + h·slope: from there Φ can only fall, however large h.

        Args:
            field: with a symmetric Jacobian; it may have `linearise` and `potential`.
            h: a number, or one a row of shape ``[rows, 1]``; a negative one steps backward.
            y: state, shape ``[rows, P]``.
            slope, stages, estimate: not used.

        Returns:
            A `Step` without an error estimate, whose states are y and the stages, whose slope is f at its end, and
            whose codes say in which rows Newton's method failed. It carries no graph: its derivative is `transpose`.

        Raises:
            TypeError, ValueError: if an argument has the wrong kind or shape, or the field has no `vjp`.
        """
        return self.solve(field, t, h, y)[0]

    def states(
        self, field: DifferentiableField, t: Time, h: Time, y: Tensor, *, stages: Tensor | None = None
    ) -> Sequence[Tensor]:
        """Return only the states that the transpose of a step from (t, y) needs, which takes the whole step."""
        return self.step(field, t, h, y).states

    def solve(self, field: DifferentiableField, t: Time, h: Time, y: Tensor) -> tuple[Step, tuple[NewtonInfo, ...]]:
        """Take one step as `step` does, and return the statistics of its stages with it."""
        checks.rows("the state", y)
        if not callable(getattr(field, "vjp", None)):
            raise TypeError(f"an implicit step needs a field with vjp(t, y, w), and {type(field).__name__} has none")
        return self._solve(field, t, _size(h, y), y.detach())

    def transpose(
        self,
        field: DifferentiableField,
        t: Time,
        h: Time,
        states: Sequence[Tensor],
        w: Tensor,
        *,
        stages: Tensor | None = None,
    ) -> StepCotangents:
        """Pull the cotangent w of a step's end back through that step, as exactly as ``cg_tol`` says.

        The class says by which equations.

        Args:
            states: those of the step, as `step` or `states` returned them.
            w: cotangent of the step's end, shape ``[rows, P]``.
            stages: not used.

        Raises:
            SolverError: if a linear solve fails: at a stage that is no minimum of its Φ, for example.
            TypeError, ValueError: if an argument has the wrong kind or shape.
        """
        if len(states) != self.order + 1:
            raise ValueError(
                f"a step of {self.name} has {self.order + 1} states, got {len(states)}; pass on all of them"
            )
        checks.rows("the cotangent", w)
        for state in states:
            checks.like("the cotangent", w, state)
        return self._pull(field, t, _size(h, w), states, w)

    @property
    @abstractmethod
    def name(self) -> str:
        """What users call it."""

    @property
    @abstractmethod
    def order(self) -> int:
        """Order of convergence, which is the number of stages too."""

    @abstractmethod
    def _solve(
        self, field: DifferentiableField, t: Time, h: Time, y: Tensor
    ) -> tuple[Step, tuple[NewtonInfo, ...]]: ...

    @abstractmethod
    def _pull(
        self, field: DifferentiableField, t: Time, h: Time, states: Sequence[Tensor], w: Tensor
    ) -> StepCotangents: ...

    def _stage(self, field: DifferentiableField, t: Time, c: Time, b: Tensor) -> NewtonResult:
        tolerances: dict[str, Any] = {"tol": self.newton_tol, "max_steps": self.newton_steps, "cg_steps": self.cg_steps}
        return newton_cg(Stage(field, t, c, b), b, **tolerances)

    def _transposed(self, field: DifferentiableField, t: Time, c: Time, y: Tensor, w: Tensor) -> Tensor:
        """Return (I − c Jᵀ)⁻¹ w, shape ``[rows, P]``, or raise `SolverError`."""
        linear = linearise(field, t, y)
        tol = max(self.cg_tol, 8 * torch.finfo(w.dtype).eps)
        kappa, info = conjugate_gradient(
            lambda v: v - c * linear.product(v).detach(), w, tol=tol, max_steps=self.cg_steps
        )
        raise_if_failed("the transposed solve of an implicit step, whose proximal strength is 1/h,", info.codes)
        return kappa


@dataclass(frozen=True)
class ImplicitEuler(_Implicit):
    """The implicit Euler method, y⁺ = y + h f(t + h, y⁺): of order 1, and L-stable.

    On f = −∇E its step is the proximal point of E with strength 1/h, and the transpose (I + h∇²E)⁻¹: one step of
    1/λ is iMAML (Rajeswaran, Finn, Kakade, Levine 2019). With k = f(t + h, y⁺) the pullback of w is

        (I − h J(y⁺)ᵀ) κ = w,   ȳ = κ,   h̄ = ⟨κ, k⟩ + t̄,   t̄ = h ⟨κ, ∂f/∂t⟩.

    Args:
        newton_tol, newton_steps: tolerance of the stage, relative to how far it moves, and most Newton steps.
        cg_tol: relative residual of the transposed solve, eight roundings of the dtype at least.
        cg_steps: most steps of a linear solve, be it Newton's or transposed.

    Raises:
        TypeError, ValueError: if one of them is not a positive number or count.
    """

    @property
    def name(self) -> str:
        """What users call it."""
        return "implicit_euler"

    @property
    def order(self) -> int:
        """Order of convergence."""
        return 1

    def _solve(self, field: DifferentiableField, t: Time, h: Time, y: Tensor) -> tuple[Step, tuple[NewtonInfo, ...]]:
        end, slope, info = self._stage(field, t + h, h, y)
        return Step(end, [y, end], slope=slope, codes=info.codes), (info,)

    def _pull(
        self, field: DifferentiableField, t: Time, h: Time, states: Sequence[Tensor], w: Tensor
    ) -> StepCotangents:
        _, end = states
        kappa = self._transposed(field, t + h, h, end, w)
        return _cotangents(field, t, h, [(1.0, end, kappa)], kappa)


# γ of SDIRK2.
_GAMMA = 1 - math.sqrt(0.5)


@dataclass(frozen=True)
class SDIRK2(_Implicit):
    """The two-stage, stiffly accurate SDIRK method of order 2, L-stable with γ = 1 − 1/√2.

    Y_1 = y + hγ k_1,   Y_2 = y + h(1−γ) k_1 + hγ k_2,   y⁺ = Y_2,   k_i = f(t + c_i h, Y_i),   c = (γ, 1)
    (Alexander, SIAM J. Numer. Anal. 14 (1977), 1006–1021; Hairer and Wanner, Solving ODEs II, IV.6). With κ_2 = γμ
    the pullback of w is

        (I − hγ J(Y_2)ᵀ) μ = w,   (I − hγ J(Y_1)ᵀ) κ_1 = (1−γ) μ,
        ȳ = (κ_1 − (1−2γ) μ) / γ,   h̄ = Σ_i ⟨κ_i, k_i⟩ + h c_i ⟨κ_i, ∂f/∂t⟩,   t̄ = Σ_i h ⟨κ_i, ∂f/∂t⟩,

    as of any Runge-Kutta step, whose ȳ = w + Σ_i J(Y_i)ᵀ h κ_i would cancel where h‖J‖ is large.

    Args:
        newton_tol, newton_steps: tolerance of a stage, relative to how far it moves, and most Newton steps of it.
        cg_tol: relative residual of the transposed solves, eight roundings of the dtype at least.
        cg_steps: most steps of a linear solve, be it Newton's or transposed.

    Raises:
        TypeError, ValueError: if one of them is not a positive number or count.
    """

    @property
    def name(self) -> str:
        """What users call it."""
        return "sdirk2"

    @property
    def order(self) -> int:
        """Order of convergence."""
        return 2

    def _solve(self, field: DifferentiableField, t: Time, h: Time, y: Tensor) -> tuple[Step, tuple[NewtonInfo, ...]]:
        c = _GAMMA * h
        middle, _, first = self._stage(field, t + c, c, y)
        b = y + (1 - _GAMMA) / _GAMMA * (middle - y)  # h k_1 = (Y_1 − y) / γ, without an evaluation
        end, slope, second = self._stage(field, t + h, c, b)
        codes = torch.where(first.codes == Status.SUCCESS.code, second.codes, first.codes)
        return Step(end, [y, middle, end], slope=slope, codes=codes), (first, second)

    def _pull(
        self, field: DifferentiableField, t: Time, h: Time, states: Sequence[Tensor], w: Tensor
    ) -> StepCotangents:
        _, middle, end = states
        c = _GAMMA * h
        mu = self._transposed(field, t + h, c, end, w)
        kappa = self._transposed(field, t + c, c, middle, (1 - _GAMMA) * mu)
        start = (kappa - (1 - 2 * _GAMMA) * mu) / _GAMMA
        return _cotangents(field, t, h, [(_GAMMA, middle, kappa), (1.0, end, _GAMMA * mu)], start)


def _cotangents(
    field: DifferentiableField, t: Time, h: Time, stages: Sequence[tuple[float, Tensor, Tensor]], start: Tensor
) -> StepCotangents:
    """Return what the stages (c_i, Y_i, κ_i) add up to, given the cotangent of the start."""
    parameters: tuple[Tensor, ...] = ()
    size = time = largest = start.new_zeros(start.shape[0])
    timed = False
    for node, state, kappa in stages:
        pulled = field.vjp(t + node * h, state, h * kappa)
        parameters = add(parameters, pulled.parameters)
        size = size + (kappa * pulled.value).sum(dim=1)
        largest = torch.maximum(largest, stretch(pulled.state, kappa))
        if pulled.time is not None:
            timed = True
            time = time + pulled.time
            size = size + node * pulled.time
    return StepCotangents(start, parameters, size, time if timed else None, largest)


def _size(h: Any, y: Tensor) -> Time:
    """Return the step size like y, without a graph."""
    if not isinstance(h, Tensor):
        if isinstance(h, bool) or not isinstance(h, Real):
            raise TypeError(f"h must be a number or a tensor, got {h!r}")
        return float(h)
    if h.ndim > 0 and h.shape != (y.shape[0], 1):
        raise ValueError(f"h must be a number, or one a row of shape {[y.shape[0], 1]}, got {list(h.shape)}")
    return h.detach() if h.ndim == 0 else h.detach().to(y.dtype)
