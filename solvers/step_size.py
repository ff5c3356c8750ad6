"""How large a step is: constant, or judged by its error, every row on its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import checks
from .stepper import Field, Time

# The size of scaled errors: [rows, P] → [rows].
Norm = Callable[[Tensor], Tensor]


def rms(scaled: Tensor) -> Tensor:
    """Return the root mean square of each row, shape ``[rows]`` (Hairer, Nørsett, Wanner II.4, eq. 4.11)."""
    length: Tensor = torch.linalg.vector_norm(scaled, dim=1)
    return length / math.sqrt(max(scaled.shape[1], 1))


class Verdict(NamedTuple):
    """Which steps are accepted ``[rows]``, by which factor the next ones differ ``[rows]``, and their error ratios."""

    accept: Tensor
    factor: Tensor
    ratio: Tensor


class Controller(Protocol):
    """Judges steps."""

    @property
    def adaptive(self) -> bool:
        """Whether it wants an estimate of the error."""
        ...

    def first(self, field: Field, t0: Time, duration: Tensor, y: Tensor, slope: Tensor, order: int) -> Tensor:
        """Return the size of each row's first step, ``[rows]``, with the sign of ``duration``."""
        ...

    def judge(self, error: Tensor, y: Tensor, end: Tensor, before: Tensor, order: int) -> Verdict:
        """Judge steps from y to end by their error; ``before`` holds the ratios of the last accepted steps."""
        ...


@dataclass(frozen=True)
class Constant:
    """n equal steps, accepted whatever their error.

    Args:
        steps: n.
    """

    steps: int
    adaptive = False

    def __post_init__(self) -> None:
        checks.count("steps", self.steps)

    def first(self, field: Field, t0: Time, duration: Tensor, y: Tensor, slope: Tensor, order: int) -> Tensor:
        """Return duration / n for each row."""
        return (duration / self.steps).expand(y.shape[0])

    def judge(self, error: Tensor, y: Tensor, end: Tensor, before: Tensor, order: int) -> Verdict:
        """Accept every step and change no size."""
        one = torch.ones_like(before)
        return Verdict(torch.ones_like(before, dtype=torch.bool), one, one)


@dataclass(frozen=True)
class PIController:
    """Proportional-integral control of the local error, one step size a row.

    A step is accepted when its ratio ‖error / (atol + rtol·max(``|y|``, ``|y⁺|``))‖ is at most 1. The next step is
    safety · ratio^(−α) · ratio_before^β times as long, α = 0.7/k, β = 0.4/k, k the order of the error
    (Gustafsson 1991; Hairer, Nørsett, Wanner II.4 and IV.2, eq. 2.43c); after a rejection only the integral part
    ratio^(−1/k) acts.

    Args:
        rtol: relative tolerance a step.
        atol: absolute tolerance a step.
        norm: size of a row of scaled errors.
        safety: what a step is aimed short of.
        shrink, grow: least and largest factor between two steps.
    """

    rtol: float = 1e-3
    atol: float = 1e-6
    norm: Norm = rms
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 5.0
    adaptive = True

    def __post_init__(self) -> None:
        checks.at_least("rtol", self.rtol, 0.0)
        checks.at_least("atol", self.atol, 0.0)
        if self.rtol == 0 and self.atol == 0:
            raise ValueError("rtol and atol are both 0, which no step can meet; set one of them")
        checks.positive("safety", self.safety)
        checks.positive("shrink", self.shrink)
        checks.at_least("grow", self.grow, 1.0)
        if not (self.safety <= 1 and self.shrink < 1):
            raise ValueError(
                f"safety must be at most 1 and shrink below 1, got safety={self.safety}, shrink={self.shrink}"
            )

    def first(self, field: Field, t0: Time, duration: Tensor, y: Tensor, slope: Tensor, order: int) -> Tensor:
        """Return a first step whose error is about a hundredth of the tolerance, by one Euler probe.

        Hairer, Nørsett, Wanner II.4, "starting step size": h₀ from ‖y‖ and ‖f‖, then the second derivative from the
        change of f over h₀; ``order`` is that of the error estimate.
        """
        span = duration.abs().expand(y.shape[0])
        sign = torch.sign(duration)
        scale = self._scale(y, y)
        d0, d1 = self.norm(y / scale), self.norm(slope / scale)
        small = (d0 < 1e-5) | (d1 < 1e-5) | torch.isinf(d1)
        h0 = torch.where(small, 1e-6, 0.01 * d0 / torch.where(small, 1.0, d1)).minimum(span)
        probe = (sign * h0)[:, None]
        d2 = self.norm((field(t0 + probe, y + probe * slope) - slope) / scale) / h0
        steepest = torch.maximum(d1, d2)
        flat = ~(steepest > 1e-15)
        h1 = (0.01 / torch.where(flat, 1.0, steepest)) ** (1 / (order + 1))
        h1 = torch.where(flat, torch.clamp(h0 * 1e-3, min=1e-6), h1)
        # A probe that is not finite says nothing; the loop shortens the step until it is.
        return sign * torch.where(torch.isfinite(d2), torch.minimum(100 * h0, h1), h0).minimum(span)

    def judge(self, error: Tensor, y: Tensor, end: Tensor, before: Tensor, order: int) -> Verdict:
        """Judge steps; one whose error is not finite is rejected and shortened as far as allowed."""
        ratio = self.norm(error / self._scale(y, end))
        accept = (ratio <= 1) & torch.isfinite(end).all(dim=1)
        # A ratio below 1e-4 is mostly rounding, and the memory of it would hold back the steps that follow.
        bounded = torch.where(torch.isfinite(ratio), ratio, torch.inf).clamp(min=1e-4)
        k = order + 1
        steady = self.safety * bounded ** (-0.7 / k) * before ** (0.4 / k)
        retry = self.safety * bounded ** (-1 / k)
        factor = torch.where(accept, steady, retry.clamp(max=self.safety)).clamp(self.shrink, self.grow)
        return Verdict(accept, factor, bounded)

    def _scale(self, y: Tensor, end: Tensor) -> Tensor:
        # Where y and atol are both 0 the scale would be 0: the smallest normal number rejects any error there.
        scale = self.atol + self.rtol * torch.maximum(y.abs(), end.abs())
        return scale.clamp(min=torch.finfo(y.dtype).tiny)
