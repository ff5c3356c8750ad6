"""One stabilised explicit Runge-Kutta-Chebyshev step, as many stages a row as its stiffness asks, and its transpose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .stepper import DifferentiableField, Field, Step, StepCotangents, Time, add, stretch

# With fewer stages there is no second-order method.
_FEWEST = 2
_STRONGEST = 20


class Stage(NamedTuple):
    """c_{j−1}, μ_j, ν_j, μ̃_j and γ̃_j, which lead from D_{j−1} to D_j: numbers, or one a row of shape ``[rows, 1]``."""

    node: float | Tensor
    mu: float | Tensor
    nu: float | Tensor
    mu_tilde: float | Tensor
    gamma_tilde: float | Tensor


# The stage of a row that is done: D_j = D_{j−1}, and so its transpose is the identity, too.
_IDLE = Stage(node=1.0, mu=1.0, nu=0.0, mu_tilde=0.0, gamma_tilde=0.0)


@dataclass(frozen=True)
class Chebyshev:
    """The damped Runge-Kutta-Chebyshev method of second order, with any number s of stages.

    Written in the increments D_j = Y_j − y, which keep more digits than the states Y_j do,

        D_j = μ_j D_{j−1} + ν_j D_{j−2} + h (μ̃_j F_{j−1} + γ̃_j F_0),   F_j = f(t + c_j h, y + D_j),   y⁺ = y + D_s

    with D_{−1} = D_0 = 0. On y' = λy it multiplies by R(hλ) = a_s + b_s T_s(w0 + w1 hλ), T_s being Chebyshev's
    polynomial, so that the real stability interval is about 0.65 s² for s evaluations (Sommeijer, Shampine, Verwer,
    RKC: an explicit solver for parabolic PDEs, J. Comput. Appl. Math. 88 (1997); Hairer and Wanner, Solving ODEs II,
    IV.2). Rounding grows slowly with s: in float32 a step of 200 stages keeps four digits.

    Args:
        damping: ε in w0 = 1 + ε/s². Behind its first minimum ``|R|`` stays at or below a_s + b_s, which is about
            1 − ε/3 for small ε, and costs about 2ε/15 of the interval. ε = 10 gives ``|R| ≤ 0.25`` on half of it.
        max_stages: the most stages that a step may have.
        default_stages: those of a step that is not told how many, clipped to ``max_stages``.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if damping is not in [0, 20], or there are fewer than 2 stages.
    """

    damping: float = 2 / 13
    max_stages: int = 200
    default_stages: int = 10

    def __post_init__(self) -> None:
        checks.at_least("damping", self.damping, 0)
        # Beyond some 35 three stages reach further than four, and `stages` could no longer search.
        if self.damping > _STRONGEST:
            raise ValueError(f"damping must be at most {_STRONGEST}, got {self.damping}; 2/13 is usual, 10 is strong")
        checks.count("max_stages", self.max_stages, least=_FEWEST)
        checks.count("default_stages", self.default_stages, least=_FEWEST)

    @property
    def name(self) -> str:
        """Its usual abbreviation."""
        return "rkc"

    @property
    def order(self) -> int:
        """Order of convergence."""
        return 2

    @property
    def estimate_order(self) -> int:
        """The estimate of the local error is O(h³)."""
        return 2

    def stages(self, z: Tensor) -> Tensor:
        """Return the fewest stages whose stability interval holds z, at most ``max_stages``; ``[rows]``, integers.

        Args:
            z: h·‖J‖, shape ``[rows]``; where it is not a number, ``max_stages`` are returned.

        Raises:
            TypeError: if z is not a floating-point tensor.
            ValueError: if it does not have shape ``[rows]``.
        """
        if not isinstance(z, Tensor) or not z.is_floating_point():
            raise TypeError(f"z must be a floating-point tensor of shape [rows], got {_kind(z)}")
        if z.ndim != 1:
            raise ValueError(f"z must have shape [rows], got {list(z.shape)}")
        index = torch.searchsorted(self._intervals(z), z.contiguous())  # which warns of a z that is not contiguous
        return (index + _FEWEST).clamp(max=self.max_stages)

    def stability(self, stages: Tensor) -> Tensor:
        """Return the length of the real stability interval for each number of stages, in the default dtype.

        Args:
            stages: integers in [2, ``max_stages``], of any shape (their bounds are read back from the device).

        Raises:
            TypeError: if they are not integers.
            ValueError: if they are out of bounds.
        """
        self._check(stages)
        if stages.numel():
            self._check_range(*torch.stack(torch.aminmax(stages)).tolist())
        return self._intervals(torch.empty((), device=stages.device))[stages.long() - _FEWEST]

    def limit(self, stages: Tensor | None = None) -> float | Tensor:
        """Return the length of the real stability interval, with ``max_stages`` stages when ``None``."""
        return interval(self.max_stages, self.damping) if stages is None else self.stability(stages)

    def step(
        self,
        field: Field,
        t: Time,
        h: Time,
        y: Tensor,
        *,
        slope: Tensor | None = None,
        stages: Tensor | None = None,
        estimate: bool = False,
    ) -> Step:
        """Take one step of size h from (t, y), with as many evaluations as the row with the most stages needs.

        Args:
            y: state, shape ``[rows, P]``.
            slope: f(t, y), if it is known; saves an evaluation.
            stages: stages a row, integers ``[rows]`` (read back from the device); ``default_stages`` if ``None``.
            estimate: whether to evaluate f at the end too, and estimate the local error with it, by
                0.8 (y − y⁺) + 0.4 h (f(t, y) + f(t + h, y⁺)).

        Returns:
            A `Step` whose states are Y_0, Y_1, …: of a row those up to its number of stages count, and the ones that
            pad it are its end.

        Raises:
            TypeError: if ``stages`` are not integers.
            ValueError: if they do not have shape ``[rows]`` or do not lie in [2, ``max_stages``].
        """
        first = field(t, y) if slope is None else slope
        increment = previous = torch.zeros_like(y)
        states: list[Tensor] = []
        end = y
        for stage in self._plan(stages, y):
            value = field(t + stage.node * h, end) if states else first
            states.append(end)
            drive = h * (stage.mu_tilde * value + stage.gamma_tilde * first)
            increment, previous = stage.mu * increment + stage.nu * previous + drive, increment
            end = y + increment
        if not estimate:
            return Step(end, states)
        last = field(t + h, end)
        return Step(end, states, 0.4 * h * (first + last) - 0.8 * increment, last)

    def states(self, field: Field, t: Time, h: Time, y: Tensor, *, stages: Tensor | None = None) -> Sequence[Tensor]:
        """Return only the states that the transpose of a step from (t, y) needs."""
        return self.step(field, t, h, y, stages=stages).states

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
        """Pull the cotangent w of a step's end back through that step, exactly; one product a stage.

        With δ_j the cotangent of D_j, κ_j that of h F_j and Ȳ_j = J(Y_j)ᵀ h κ_j, from δ_s = w down to j = 0,

            κ_j = μ̃_{j+1} δ_{j+1} (and + Σ_i γ̃_i δ_i for j = 0),   δ_j = μ_{j+1} δ_{j+1} + ν_{j+2} δ_{j+2} + Ȳ_j,
            ȳ = w + Σ_j Ȳ_j,   h̄ = Σ_j ⟨κ_j, F_j⟩ + h c_j ⟨κ_j, ∂f/∂t⟩,   t̄ = Σ_j h ⟨κ_j, ∂f/∂t⟩

        which is reverse accumulation written out (Griewank and Walther, Evaluating Derivatives, ch. 3). Stages in
        which a row idles have κ = 0 there and add nothing to any cotangent.

        Args:
            states: Y_0, Y_1, … of the step, as `step` returned them; what follows the largest number of stages is
                not looked at, and what pads a row need only be finite.
            w: cotangent of the step's end, shape ``[rows, P]``.
            stages: those that the step was taken with.

        Raises:
            TypeError: if ``stages`` are not integers.
            ValueError: if there are fewer states than stages, or ``stages`` are not as in `step`.
        """
        plan = self._plan(stages, w)
        if len(states) < len(plan):
            raise ValueError(f"states must hold one state for each of {len(plan)} stages, got {len(states)}")
        parameters: tuple[Tensor, ...] = ()
        size = time = largest = w.new_zeros(w.shape[0])
        timed = False
        start = delta = w
        behind = first = torch.zeros_like(w)  # ν_{j+1} δ_{j+1} and Σ_{i≥j} γ̃_i δ_i
        for j in reversed(range(len(plan))):
            stage = plan[j]
            first = first + stage.gamma_tilde * delta
            kappa = stage.mu_tilde * delta if j else stage.mu_tilde * delta + first
            pulled = field.vjp(t + stage.node * h, states[j], h * kappa)
            delta, behind = stage.mu * delta + behind + pulled.state, stage.nu * delta
            start = start + pulled.state
            size = size + (kappa * pulled.value).sum(dim=1)
            largest = torch.maximum(largest, stretch(pulled.state, kappa))
            if pulled.time is not None:
                timed = True
                time = time + pulled.time
                node = stage.node[:, 0] if isinstance(stage.node, Tensor) else stage.node
                size = size + node * pulled.time
            parameters = add(parameters, pulled.parameters)
        return StepCotangents(start, parameters, size, time if timed else None, largest)

    def _plan(self, stages: Tensor | None, like: Tensor) -> Sequence[Stage]:
        """Return the stages to go through; rows of different length are filled up with idle ones."""
        if stages is None:
            return coefficients(min(self.default_stages, self.max_stages), self.damping)
        self._check(stages)
        if stages.shape != like.shape[:1]:
            raise ValueError(f"stages must have shape [rows] = {list(like.shape[:1])}, got {list(stages.shape)}")
        different, index = torch.unique(stages, return_inverse=True)
        counts = different.tolist()
        self._check_range(counts[0], counts[-1])
        plans = [coefficients(count, self.damping) for count in counts]
        if len(plans) == 1:
            return plans[0]
        padded = [plan + (_IDLE,) * (counts[-1] - len(plan)) for plan in plans]
        table = torch.tensor(padded, dtype=like.dtype, device=like.device)
        columns = table[index].permute(1, 2, 0).unsqueeze(-1).contiguous()
        return [Stage(*column.unbind()) for column in columns.unbind()]

    def _intervals(self, like: Tensor) -> Tensor:
        lengths = [interval(count, self.damping) for count in range(_FEWEST, self.max_stages + 1)]
        return torch.tensor(lengths, dtype=like.dtype, device=like.device)

    def _check(self, stages: Tensor) -> None:
        if not isinstance(stages, Tensor) or stages.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"stages must be a tensor of integers, got {_kind(stages)}; use what stages(z) returns")

    def _check_range(self, least: int, most: int) -> None:
        if least < _FEWEST or most > self.max_stages:
            raise ValueError(f"stages must lie in [{_FEWEST}, max_stages = {self.max_stages}], got {least} to {most}")


@cache
def coefficients(stages: int, damping: float) -> tuple[Stage, ...]:
    """Return the coefficients of all stages, to rounding.

    With b_j = T″_j(w0) / T′_j(w0)², b_0 = b_1 = b_2, a_j = 1 − b_j T_j(w0) and w1 = T′_s(w0) / T″_s(w0),

        μ_j = 2 w0 b_j/b_{j−1},  ν_j = −b_j/b_{j−2},  μ̃_j = 2 w1 b_j/b_{j−1},  γ̃_j = −a_{j−1} μ̃_j,  μ̃_1 = b_1 w1

    and c_j = b_j w1 T′_j(w0), that is where stage j takes y' = 1 (Sommeijer, Shampine, Verwer 1997, section 2).
    """
    w0, w1, value, slope, curvature = _polynomials(stages, damping)
    b = [second / first**2 for first, second in zip(slope[2:], curvature[2:], strict=True)]
    b = [b[0], b[0], *b]
    found = [Stage(0.0, 0.0, 0.0, b[1] * w1, 0.0)]
    for j in range(2, stages + 1):
        ratio = b[j] / b[j - 1]
        mu_tilde = 2 * w1 * ratio
        a = 1 - b[j - 1] * value[j - 1]
        node = b[j - 1] * w1 * slope[j - 1]
        found.append(Stage(node, 2 * w0 * ratio, -b[j] / b[j - 2], mu_tilde, -a * mu_tilde))
    return tuple(found)


@cache
def interval(stages: int, damping: float) -> float:
    """Return the largest β with |R| ≤ a_s + b_s from R's first minimum to −β; before it, R falls from 1.

    T_s(x) lies in [−1, 1] for w0 + w1 z = x ≥ −1, and R in a_s ± b_s. Behind, an even T_s grows and takes R above
    a_s + b_s at once, but an odd one falls, and R with it, to −(a_s + b_s) where −T_s = 1 + 2 a_s/b_s. A little
    further on, |R| passes 1.
    """
    w0, w1, value, slope, curvature = _polynomials(stages, damping)
    b = curvature[-1] / slope[-1] ** 2
    a = 1 - b * value[-1]
    edge = 1.0 if stages % 2 == 0 else math.cosh(math.acosh(1 + 2 * a / b) / stages)
    return (w0 + edge) / w1


def _polynomials(stages: int, damping: float) -> tuple[float, float, list[float], list[float], list[float]]:
    """Return w0, w1 and T_j, T′_j, T″_j at w0 for j = 0 … s, by the recursion T_j = 2x T_{j−1} − T_{j−2}."""
    w0 = 1 + damping / stages**2
    value, slope, curvature = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, stages + 1):
        curvature.append(4 * slope[-1] + 2 * w0 * curvature[-1] - curvature[-2])
        slope.append(2 * value[-1] + 2 * w0 * slope[-1] - slope[-2])
        value.append(2 * w0 * value[-1] - value[-2])
    return w0, slope[-1] / curvature[-1], value, slope, curvature


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
