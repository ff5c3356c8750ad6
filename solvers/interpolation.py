"""The solution between the ends of a step: linear, or the dense output of a Runge-Kutta method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .runge_kutta import combine
from .stepper import Step
from .tableaus import ButcherTableau


class Interpolant(NamedTuple):
    """y(t + ϑh) ≈ y + h Σ_p ϑ^p q_p, p = 1, 2, …, with q_p = Σ_i B_pi k_i from the stage slopes k_i of the step.

    Args:
        weights: the rows B_p.
    """

    weights: tuple[tuple[float, ...], ...]

    @classmethod
    def linear(cls, tableau: ButcherTableau) -> Interpolant:
        """Return the straight line between the ends, y + ϑ(y⁺ − y)."""
        return cls((tableau.floats[1],))

    @classmethod
    def dense(cls, tableau: ButcherTableau) -> Interpolant:
        """Return the tableau's dense output (see `ButcherTableau`)."""
        return cls(tuple(tuple(map(float, power)) for power in zip(*tableau.dense_polynomials, strict=True)))

    def coefficients(self, y: Tensor, h: Tensor, taken: Step) -> list[Tensor]:
        """Return the q_p of steps from y of size h ``[rows, 1]``, each ``[rows, P]``."""
        if len(self.weights) == 1:
            return [(taken.end - y) / h]
        return [combine(row, taken.slopes) for row in self.weights]


def value(y: Tensor, h: Tensor, coefficients: Sequence[Tensor], theta: Tensor) -> Tensor:
    """Return y + h Σ_p ϑ^p q_p; θ and h broadcast against y."""
    total = coefficients[-1]
    for q in reversed(coefficients[:-1]):
        total = q + theta * total
    return y + (theta * h) * total


def slope(coefficients: Sequence[Tensor], theta: Tensor) -> Tensor:
    """Return dy/dt = Σ_p p ϑ^(p−1) q_p."""
    total = coefficients[-1] * len(coefficients)
    for p in reversed(range(1, len(coefficients))):
        total = p * coefficients[p - 1] + theta * total
    return total


class DenseOutput(NamedTuple):
    """A solution between any two of its times, each row on its own steps.

    A row that took fewer steps than another has steps of size 0 after its last.

    Args:
        nodes: the ends of the steps ``[steps + 1, rows]``.
        starts: the states at which the steps start, ``[steps, rows, P]``, at least one step.
        coefficients: the q_p of each step, ``[steps, powers, rows, P]``.
    """

    nodes: Tensor
    starts: Tensor
    coefficients: Tensor

    def __call__(self, t: Tensor) -> Tensor:
        """Return the solution at times ``[count, rows]``, shape ``[count, rows, P]``.

        Raises:
            ValueError: if a time lies outside of the steps taken.
        """
        if not bool(self._known(t).all()):
            low, high = torch.minimum(self.nodes[0], self.nodes[-1]), torch.maximum(self.nodes[0], self.nodes[-1])
            raise ValueError(
                f"the solution is known from t = {low.max().item():g} to {high.min().item():g}, "
                f"got times from {t.min().item():g} to {t.max().item():g}"
            )
        return self._at(t)

    def where_known(self, t: Tensor) -> Tensor:
        """Return the solution at times ``[count, rows]``, NaN outside of the steps taken."""
        return torch.where(self._known(t)[..., None], self._at(t), torch.nan)

    def ends(self) -> Tensor:
        """Return the states at the ends of all steps, ``[steps, rows, P]``."""
        return self._at(self.nodes[1:])

    def _known(self, t: Tensor) -> Tensor:
        first, last = self.nodes[0], self.nodes[-1]
        return (t >= torch.minimum(first, last)) & (t <= torch.maximum(first, last))

    def _at(self, t: Tensor) -> Tensor:
        # The direction of time is that of the nodes.
        sign = torch.where(self.nodes[-1] >= self.nodes[0], 1, -1).to(t)
        index = torch.searchsorted((self.nodes[1:] * sign).T.contiguous(), (t * sign).T.contiguous()).T
        rows = torch.arange(t.shape[1], device=t.device).expand_as(index)
        index = index.clamp(max=len(self.starts) - 1)
        start = self.nodes[index, rows]
        size = self.nodes[index + 1, rows] - start
        theta = (t - start) / torch.where(size == 0, 1, size)
        coefficients = self.coefficients[index, :, rows].unbind(2)
        return value(self.starts[index, rows], size[..., None], coefficients, theta[..., None])
