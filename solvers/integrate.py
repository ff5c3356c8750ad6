"""The loop: a stepper over a grid of times. No coefficients and no tolerances in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from . import checks
from .stepper import Field, Step, Stepper, Time

# Sees every step before it is forgotten: (its index, the step).
Recorder = Callable[[int, Step], None]


@dataclass(frozen=True)
class UniformGrid:
    """n equal steps from t0 to t1 (t1 < t0 runs backward).

    Args:
        t0, t1: ends of the interval; a 0-dimensional tensor stays on its device, so nothing is synchronised.
        steps: number of steps n.
    """

    t0: Time
    t1: Time
    steps: int

    def __post_init__(self) -> None:
        checks.count("steps", self.steps)

    @property
    def step_size(self) -> Time:
        """The size h = (t1 − t0) / n, negative when the grid runs backward."""
        return (self.t1 - self.t0) / self.steps

    def time(self, index: int) -> Time:
        """Return the time at which step ``index`` starts."""
        return self.t0 + index * self.step_size


def integrate(
    stepper: Stepper,
    field: Field,
    grid: UniformGrid,
    y: Tensor,
    *,
    first: int = 0,
    last: int | None = None,
    record: Recorder | None = None,
) -> Tensor:
    """Take the steps first … last−1 of the grid from y, and return the state they end in.

    Args:
        y: state at the start of step ``first``, shape ``[rows, P]``.
        record: sees every step before it is forgotten.
    """
    h = grid.step_size
    for index in range(first, grid.steps if last is None else last):
        taken = stepper.step(field, grid.time(index), h, y)
        if record is not None:
            record(index, taken)
        y = taken.end
    return y
