"""A field near one state, ready for any number of products with its Jacobian."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from .stepper import DifferentiableField, Time


class Linearised(Protocol):
    """A field near one (t, y), ready for any number of products."""

    @property
    def value(self) -> Tensor:
        """f(t, y), shape ``[rows, P]``."""
        ...

    def product(self, w: Tensor, /) -> Tensor:
        """Return wᵀ ∂f/∂y, shape ``[rows, P]``."""
        ...


class LinearisableField(DifferentiableField, Protocol):
    """A field that keeps one graph for all products at a state; without `linearise` each product is a `vjp`."""

    def linearise(self, t: Time, y: Tensor, /) -> Linearised:
        """Return the field near (t, y)."""
        ...


class PotentialField(DifferentiableField, Protocol):
    """A field f = −∇E that knows E; without `potential` the line search estimates its differences from f."""

    def potential(self, t: Time, y: Tensor, /) -> Tensor:
        """Return E(t, y), shape ``[rows]``."""
        ...


class _Pullbacks(NamedTuple):
    """A field near (t, y), by one pullback a product."""

    field: DifferentiableField
    t: Time
    y: Tensor

    @property
    def value(self) -> Tensor:
        return self.field(self.t, self.y)

    def product(self, w: Tensor) -> Tensor:
        return self.field.vjp(self.t, self.y, w).state


def linearise(field: Any, t: Time, y: Tensor) -> Linearised:
    """Return the field near (t, y): by its own `linearise`, or else by one pullback a product."""
    if callable(getattr(field, "linearise", None)):
        linear: Linearised = field.linearise(t, y)
        return linear
    return _Pullbacks(field, t, y)
