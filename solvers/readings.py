"""The solution read at given times while it is computed: which step a time lies in, and what was found there."""

from __future__ import annotations

import torch
from torch import Tensor

from .interpolation import Interpolant, slope, value
from .stepper import Step


class Readings:
    """The states at given times ``[count]``, filled in step by step.

    The first is y0, the last the end of the solve. An inner one at t + ϑh lies in the step from t to t + h, and is
    y + h Σ_p ϑ^p q_p; at the end of the step (ϑ = 1) it is the end itself.

    Args:
        t: the times, strictly monotone, at least two.
        interpolant: the solution inside a step.
        y0: ``[rows, P]``.
        timed: whether to note dy/dt as well.

    Attributes:
        values: the states, ``[count, rows, P]``; NaN where the solve did not get.
        owner: of each inner time and row, in which of the row's steps it lies, ``[count − 2, rows]``, or −1.
        theta: where in that step it lies, ``[count − 2, rows]``.
        slopes: dy/dt there, ``[count − 2, rows, P]``, if timed.
    """

    def __init__(self, t: Tensor, interpolant: Interpolant, y0: Tensor, timed: bool) -> None:
        self.interpolant = interpolant
        self.values = y0.new_full((len(t), *y0.shape), torch.nan)
        self.values[0] = y0
        inner = (len(t) - 2, len(y0))
        self.owner = torch.full(inner, -1, device=y0.device)
        self.theta = y0.new_zeros(inner)
        self.slopes = y0.new_zeros((*inner, y0.shape[1])) if timed else None
        self._t, self._backward = t[1:-1], bool(t[1] < t[0])

    def take(self) -> Tensor:
        """Return the values and forget them: autograd's node holds the rest, and must not hold its own result."""
        values = self.values
        del self.values
        return values

    def read(self, rows: Tensor, index: Tensor, t: Tensor, h: Tensor, taken: Step) -> None:
        """Read what lies in a step of some rows.

        Args:
            rows, index, t, h: the rows ``[n]``, the number of this step of theirs, where it starts and its size.
            taken: the step.
        """
        if len(self._t) == 0:
            return
        ahead = t - self._t[:, None] if self._backward else self._t[:, None] - t
        # The next step starts at t + h up to rounding: a time in between is read twice, and the later one counts.
        slack = 4 * torch.finfo(t.dtype).eps * torch.maximum(t.abs(), (t + h).abs())
        k, at = ((ahead > 0) & (ahead <= h.abs() + slack)).nonzero(as_tuple=True)
        if len(k) == 0:
            return
        y, row = taken.states[0], rows[at]
        theta = (self._t[k] - t[at]) / h[at]
        coefficients = [q[at] for q in self.interpolant.coefficients(y, h[:, None], taken)]
        found = value(y[at], h[at, None], coefficients, theta[:, None])
        self.values[k + 1, row] = torch.where(theta[:, None] == 1, taken.end[at], found)
        self.owner[k, row] = index[at]
        self.theta[k, row] = theta
        if self.slopes is not None:
            self.slopes[k, row] = slope(coefficients, theta[:, None])


class GridReadings(Readings):
    """Readings of steps that all rows take from node to node of a grid, so that it is known which times lie where.

    Args:
        nodes: the ends of the steps, ``[steps + 1]``.
    """

    def __init__(self, t: Tensor, nodes: Tensor, interpolant: Interpolant, y0: Tensor, timed: bool) -> None:
        super().__init__(t, interpolant, y0, timed)
        sign = -1 if self._backward else 1
        owner = torch.searchsorted((sign * nodes[1:]).contiguous(), (sign * self._t).contiguous())
        theta = (self._t - nodes[owner]) / (nodes[owner + 1] - nodes[owner])
        self.owner[:], self.theta[:] = owner[:, None], theta[:, None]
        # Read from the device once, and not at every step.
        self._first = torch.searchsorted(owner, torch.arange(len(nodes), device=t.device)).tolist()
        self._at_end = (theta == 1).tolist()
        self._step = 0

    def read(self, rows: Tensor, index: Tensor, t: Tensor, h: Tensor, taken: Step) -> None:
        """Read what lies in the next step."""
        first, last = self._first[self._step], self._first[self._step + 1]
        self._step += 1
        if first == last:
            return
        inner = slice(first, last)
        if self.slopes is None and all(self._at_end[inner]):
            self.values[first + 1 : last + 1] = taken.end
            return
        y, size = taken.states[0], h[:, None]
        coefficients = self.interpolant.coefficients(y, size, taken)
        theta = self.theta[inner, :, None]
        self.values[first + 1 : last + 1] = torch.where(theta == 1, taken.end, value(y, size, coefficients, theta))
        if self.slopes is not None:
            self.slopes[inner] = slope(coefficients, theta)
