"""What a method's name and options mean: rows that step at their own pace, or a fixed grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import checks
from .function_field import FunctionField
from .interpolation import Interpolant
from .pytree import Layout
from .readings import GridReadings, Readings
from .row_steps import RowRecorder, RowSteps
from .runge_kutta import RungeKutta
from .solution import finite_codes
from .step_size import Constant, PIController, Verdict
from .stepper import Field, Time
from .tableaus import MORE_TABLEAUS, TABLEAUS
from .tape import Tape

ADAPTIVE = {
    "dopri5": TABLEAUS["dopri5"],
    "tsit5": TABLEAUS["tsit5"],
    "bosh3": TABLEAUS["bosh3"],
    "adaptive_heun": MORE_TABLEAUS["adaptive_heun"],
    "fehlberg2": MORE_TABLEAUS["fehlberg2"],
}
# By the names of torchdiffeq, whose rk4 is the 3/8 rule.
FIXED = {
    "euler": TABLEAUS["euler"],
    "midpoint": TABLEAUS["midpoint"],
    "heun2": TABLEAUS["heun"],
    "heun3": MORE_TABLEAUS["heun3"],
    "rk4": MORE_TABLEAUS["rk4_38"],
}
ADAPTIVE_OPTIONS = (
    "norm", "first_step", "safety", "ifactor", "dfactor", "max_num_steps", "min_step", "max_step", "step_t", "jump_t",
    "dtype",
)  # fmt: skip
FIXED_OPTIONS = ("norm", "step_size", "grid_constructor", "interp", "perturb")

# Returns the ends of the steps ``[steps + 1]`` for output times ``[count]``, differentiably.
Grid = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StateController(PIController):
    """A `PIController` that knows the form of the state.

    Args:
        rtol, atol: numbers, or one for each element ``[P]``.
        modulus: the absolute values of a state's elements, as complex numbers have them.
        first_step: size of the first step, in place of the estimate.
    """

    rtol: Any = 1e-3
    atol: Any = 1e-6
    modulus: Callable[[Tensor], Tensor] = torch.abs
    first_step: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not isinstance(value, Tensor):
                checks.at_least(name, value, 0.0)
            elif not bool((torch.isfinite(value) & (value >= 0)).all()):
                raise ValueError(f"{name} must be finite and at least 0 everywhere, got {value.min().item():g} in it")
        if self.first_step is not None:
            checks.positive("first_step", self.first_step)
        numbers = {
            name: value for name, value in (("rtol", self.rtol), ("atol", self.atol)) if not isinstance(value, Tensor)
        }
        defaults = {"rtol": 1.0, "atol": 1.0} | (numbers if len(numbers) == 2 else {})
        PIController(**defaults, safety=self.safety, shrink=self.shrink, grow=self.grow)

    def first(self, field: Field, t0: Time, duration: Tensor, y: Tensor, slope: Tensor, order: int) -> Tensor:
        """Return the size of each row's first step, ``[rows]``."""
        if self.first_step is None:
            return super().first(field, t0, duration, y, slope, order)
        return (torch.sign(duration) * self.first_step).expand(len(y))

    def judge(self, error: Tensor, y: Tensor, end: Tensor, before: Tensor, order: int) -> Verdict:
        """Judge steps by integral control alone, for which users of ``safety`` and the factors set these."""
        ratio = self.norm(error / self._scale(y, end))
        accept = (ratio <= 1) & torch.isfinite(end).all(dim=1)
        bounded = torch.where(torch.isfinite(ratio), ratio, torch.inf).clamp(min=1e-6)
        factor = (self.safety * bounded ** (-1 / (order + 1))).clamp(self.shrink, self.grow)
        return Verdict(accept, torch.where(accept, factor, factor.clamp(max=self.safety)), bounded)

    def _scale(self, y: Tensor, end: Tensor) -> Tensor:
        scale: Tensor = self.atol + self.rtol * torch.maximum(self.modulus(y), self.modulus(end))
        return scale.clamp(min=torch.finfo(y.dtype).tiny)


# Status codes [rows] and statistics besides the end [rows, P].
Solved: TypeAlias = "tuple[Tensor, Tensor, dict[str, Any]]"


@dataclass(frozen=True)
class Adaptive:
    """Every row steps at its own pace from the first to the last output time, its error controlled.

    Args:
        t: the output times ``[count]``.
        stepper: with f at the end of the step as its last stage.
        controller: judges the steps.
        max_steps: most steps that a row may try.
    """

    t: Tensor
    stepper: RungeKutta
    controller: StateController
    max_steps: int

    def readings(self, y0: Tensor, timed: bool) -> Readings:
        """Return where the outputs are to be noted."""
        return Readings(self.t, Interpolant.dense(self.stepper.tableau), y0, timed)

    @property
    def steps(self) -> RowSteps:
        """The steps, whose sizes are found on the way."""
        return RowSteps(self.stepper, self.t[0], self.t[-1], self.controller, max_steps=self.max_steps)

    def solve(self, field: FunctionField, y0: Tensor, record: RowRecorder) -> Solved:
        """Solve from y0 at t[0] to t[−1], and return the end, status codes and statistics."""
        solved = self.steps.integrate(field, y0, record)
        return solved.end, solved.codes, solved.statistics._asdict()

    def nodes(self, t: Tensor, tape: Tape) -> Tensor:
        """Return the ends of the steps ``[steps + 1, rows]``: the first and the last move with t, the others stay."""
        last = tape.count
        index = torch.arange(tape.steps + 1, device=last.device)[:, None]
        inner = t.new_zeros((tape.steps + 1, len(last)))
        for step in range(1, tape.steps):
            piece = tape.piece(step)
            rows = slice(None) if piece.rows is None else piece.rows
            inner[step, rows] = piece.t[:, 0]
        return torch.where(index == 0, t[0], torch.where(index >= last, t[-1], inner))


class Fixed:
    """Steps from node to node of a grid.

    Args:
        t: the output times ``[count]``.
        stepper: what steps.
        interpolant: the solution between nodes.
        grid: returns the nodes for the output times, differentiably.
    """

    def __init__(self, t: Tensor, stepper: RungeKutta, interpolant: Interpolant, grid: Grid) -> None:
        self.t, self.stepper, self._interpolant, self._grid = t, stepper, interpolant, grid
        with torch.no_grad():
            self._nodes = grid(t)

    @property
    def steps(self) -> RowSteps:
        """The steps, as if rows could have chosen them."""
        return RowSteps(self.stepper, self.t[0], self.t[-1], Constant(len(self._nodes) - 1))

    def readings(self, y0: Tensor, timed: bool) -> Readings:
        """Return where the outputs are to be noted."""
        return GridReadings(self.t, self._nodes, self._interpolant, y0, timed)

    def solve(self, field: FunctionField, y0: Tensor, record: RowRecorder) -> Solved:
        """Solve from y0 at t[0] to t[−1], and return the end, status codes and statistics."""
        rows = torch.arange(len(y0), device=y0.device)
        sizes = self._nodes.diff()
        dense = len(self._interpolant.weights) > 1
        y, slope = y0, None
        # f at the end of a step is f at the next node only if rounding leaves that end on it: func may jump there.
        meets = (self._nodes[:-1] + sizes == self._nodes[1:]).tolist()
        for step in range(len(sizes)):
            t, h = self._nodes[step], sizes[step]
            taken = self.stepper.step(field, t, h, y, slope=slope, estimate=dense)
            record(rows, t.expand(len(rows)), h.expand(len(rows)), None, taken)
            y, slope = taken.end, taken.slope if meets[step] else None
        return y, finite_codes(y), {}

    def nodes(self, t: Tensor, tape: Tape) -> Tensor:
        """Return the ends of the steps ``[steps + 1, rows]``.

        Raises:
            ValueError: if the grid is not the one that was stepped on.
        """
        nodes = self._grid(t)
        if not torch.equal(nodes, self._nodes):
            raise ValueError("grid_constructor must return the same grid for the same times; it returned another one")
        return nodes[:, None].expand(-1, len(tape.count))


def adaptive(t: Tensor, method: str, options: dict[str, Any], rtol: Any, atol: Any, layout: Layout) -> Adaptive:
    """Return the adaptive scheme of this name for output times t."""
    limit = options.get("max_num_steps", 2**31 - 1)
    checks.count("max_num_steps", limit)
    first_step = options.get("first_step")
    controller = StateController(
        rtol=_tolerance("rtol", rtol, layout),
        atol=_tolerance("atol", atol, layout),
        norm=_norm(options.get("norm"), layout),
        safety=_number("safety", options.get("safety", 0.9)),
        shrink=_number("dfactor", options.get("dfactor", 0.2)),
        grow=_number("ifactor", options.get("ifactor", 10.0)),
        modulus=layout.modulus,
        first_step=None if first_step is None else _number("first_step", first_step),
    )
    return Adaptive(t, RungeKutta(ADAPTIVE[method].with_last_slope()), controller, limit * (len(t) - 1))


def fixed(t: Tensor, method: str, options: dict[str, Any], func: Callable[..., Any], y0: Any) -> Fixed:
    """Return the fixed-step scheme of this name for output times t."""
    tableau = FIXED[method]
    interp = checks.one_of("interpolation", options.get("interp", "linear"), ("linear", "cubic"))
    if interp == "cubic":
        tableau = tableau.with_last_slope()
    interpolant = Interpolant.linear(tableau) if interp == "linear" else Interpolant.dense(tableau)
    return Fixed(t, RungeKutta(tableau), interpolant, _grid(options, func, y0))


def _grid(options: dict[str, Any], func: Callable[..., Any], y0: Any) -> Grid:
    size, constructor = options.get("step_size"), options.get("grid_constructor")
    if size is not None and constructor is not None:
        raise ValueError("step_size and grid_constructor are two ways to say the same; give one of them")
    if size is not None:
        length = _number("step_size", size)
        return lambda t: _equidistant(t, length)
    if constructor is None:
        return lambda t: t
    return lambda t: _checked(constructor(func, y0, t), t)


def _equidistant(t: Tensor, size: float) -> Tensor:
    """Return t[0], t[0] ± size, … and t[−1]; the last step is as long as what is left."""
    span = (t[-1] - t[0]).item()
    # A quotient that is whole up to rounding makes no further step.
    count = max(1, math.ceil(abs(span) / size * (1 - 4 * torch.finfo(t.dtype).eps)))
    steps = torch.arange(count, dtype=t.dtype, device=t.device) * math.copysign(size, span)
    return torch.cat([t[0] + steps, t[-1:]])


def _checked(nodes: Any, t: Tensor) -> Tensor:
    if not isinstance(nodes, Tensor) or nodes.ndim != 1 or len(nodes) < 2:
        raise ValueError(f"grid_constructor must return a tensor of at least two times, got {nodes!r}")
    found: Tensor = nodes.to(t)
    if found[0] != t[0] or found[-1] != t[-1]:
        raise ValueError(
            f"grid_constructor must start at t[0] = {t[0].item():g} and end at t[-1] = {t[-1].item():g}, "
            f"got a grid from {found[0].item():g} to {found[-1].item():g}"
        )
    if not bool((found.diff() * torch.sign(t[-1] - t[0]) > 0).all()):
        raise ValueError("grid_constructor must return strictly monotone times in the direction of t")
    return found


def _number(name: str, value: Any) -> float:
    """Return a positive number that may have been given as a tensor."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    checks.positive(name, number)
    return float(number)


def _tolerance(name: str, value: Any, layout: Layout) -> Any:
    """Return a tolerance as a number, or as one for each element ``[P]``."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(f"{name} cannot require a gradient")
        if value.ndim == 0:
            return value.item()
    if isinstance(value, (Tensor, tuple, list, dict)):
        return layout.elements(name, value)
    return value


def _norm(norm: Callable[[Any], Any] | None, layout: Layout) -> Callable[[Tensor], Tensor]:
    """Return a user's norm of states, or the default one, as a norm of rows."""
    if norm is None:
        return layout.root_mean_square
    if not callable(norm):
        raise TypeError(f"norm must be a function of a state, got {type(norm).__name__}")

    def of_rows(rows: Tensor) -> Tensor:
        found: Tensor = torch.as_tensor(norm(layout.unflatten(rows)), device=rows.device).abs().to(rows.dtype)
        wanted = len(rows) if layout.batched else 1
        if found.numel() != wanted:
            raise ValueError(f"norm must return {wanted} number(s), one a row, got shape {list(found.shape)}")
        return found.reshape(wanted)

    return of_rows
