"""A running estimate of ‖J‖ of every row, by Lanczos once and power iteration from then on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import checks
from .linear import lanczos
from .stepper import RowField, Time


@dataclass(frozen=True)
class Guard:
    """Keeps explicit steps inside the stability interval, which error control alone does not.

    Args:
        safety: share of the interval that may be used: h·‖J‖ ≤ safety · limit. The estimate of ‖J‖ bounds it from
            below, and it changes over a step.
        lanczos: products spent on the first estimate.
        every: evaluations of the field after which the estimate is renewed, so that it costs an eighth of them.
        start: in place of the Lanczos steps, the direction ``[rows, P]`` with which power iteration starts, such as
            an earlier solve ended with; or an estimate made at the initial state, which costs nothing more.
    """

    safety: float = 0.9
    lanczos: int = 6
    every: int = 8
    start: Tensor | SpectralRadius | None = None

    def __post_init__(self) -> None:
        checks.positive("safety", self.safety)
        if self.safety > 1:
            raise ValueError(f"safety must be at most 1, the whole interval, got {self.safety}")
        checks.count("lanczos", self.lanczos)
        checks.count("every", self.every)

    def begin(self, field: RowField, t: Time, y: Tensor, slope: Tensor) -> SpectralRadius:
        """Return the first estimate at (t, y), where the slope is known."""
        if self.start is None:
            return SpectralRadius.start(field, t, y, slope, self.lanczos)
        if isinstance(self.start, SpectralRadius):
            checks.like("the guard's start", self.start.vector, y)
            return SpectralRadius(self.start.vector, self.start.value)
        checks.like("the guard's start", self.start, y)
        # A row that failed or was at rest left no direction behind.
        vector = torch.where(self.start.any(dim=1, keepdim=True), self.start, slope)
        radius = SpectralRadius(_unit(vector), y.new_zeros(y.shape[0]))
        radius.update(field, t, y)
        return radius


class SpectralRadius:
    """The spectral radius of a field's Jacobian along a solution, one estimate a row.

    It is meant for symmetric Jacobians, as gradient flow has them: then a product with a unit vector v bounds the
    radius from below, ‖Jv‖ ≤ ρ, and repeating v ← Jv / ‖Jv‖ along the solution follows the steepest direction while
    it turns (Golub, Van Loan, Matrix Computations, 8.2). The first estimate is the largest Ritz value of a few
    Lanczos steps from f(y), in which steep directions dominate. Every product counts as one evaluation of the field's
    pullback, and gives f(y) as well.

    Args:
        vector: where power iteration stands, shape ``[rows, P]``, each row of length 1.
        value: the estimate, shape ``[rows]``.
    """

    def __init__(self, vector: Tensor, value: Tensor) -> None:
        self.vector = vector
        self.value = value

    @classmethod
    def start(cls, field: RowField, t: Time, y: Tensor, slope: Tensor, steps: int = 4) -> SpectralRadius:
        """Estimate by ``steps`` Lanczos products from the slope.

        Args:
            slope: f(t, y), shape ``[rows, P]``.
        """
        checks.count("steps", steps)
        found = lanczos(lambda v: field.vjp(t, y, v).state, slope, steps)
        values, vectors = found.ritz()
        steepest = values.abs().argmax(dim=1)
        chosen = vectors.gather(2, steepest[:, None, None].expand(-1, steps, 1)).squeeze(2)
        vector = torch.einsum("krp,rk->rp", found.basis, chosen)
        return cls(_unit(vector), values.gather(1, steepest[:, None]).squeeze(1).abs())

    def update(self, field: RowField, t: Time, y: Tensor, due: Tensor | None = None) -> Tensor:
        """Take one step of power iteration at (t, y), in the rows that are ``due``, and return f(t, y)."""
        pulled = field.vjp(t, y, self.vector)
        value = torch.linalg.vector_norm(pulled.state, dim=1)
        fine = torch.isfinite(value) & (value > 0)
        fine = fine if due is None else fine & due
        self.value = torch.where(fine, value, self.value)
        # A row that started at rest had no slope to start from.
        before = torch.where(self.vector.any(dim=1, keepdim=True), self.vector, _unit(pulled.value))
        self.vector = torch.where(fine[:, None], pulled.state / value.clamp(min=_tiny(y))[:, None], before)
        return pulled.value

    def rows(self, index: Tensor) -> SpectralRadius:
        """Return the estimate of some rows."""
        return SpectralRadius(self.vector[index], self.value[index])


def _unit(vector: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    return vector / length.clamp(min=_tiny(vector))


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny
