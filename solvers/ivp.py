"""One initial value problem, solved once and looked at anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any

import torch
from torch import Tensor

from . import checks
from .function_field import FunctionField, differentiable
from .interpolation import DenseOutput, Interpolant
from .pytree import Layout
from .schemes import ADAPTIVE, Adaptive, adaptive
from .solution import Status, raise_if_failed, statuses
from .stepper import Step
from .tape import Tape


@dataclass(frozen=True)
class Solution:
    """The solution of an initial value problem.

    With ``batched`` what is said to be a number is a tensor ``[rows]``.

    Args:
        ts: the times ``[count]`` asked for; without any, the ends of the steps, ``[count, rows]`` if batched, where a
            row that took fewer steps than another stays at its end.
        ys: the states there, of y0's form, each tensor ``[count, *shape]``; NaN where the solve did not get.
        accepted, rejected: numbers of steps.
        evaluations: number of evaluations that the steps needed; func is called that often, or batched as often as
            the row that needed most.
        status: how the solve ended; batched, a list with one `Status` a row.
        reached: the time that was reached.
    """

    ts: Tensor
    ys: Any
    accepted: int | Tensor
    rejected: int | Tensor
    evaluations: int | Tensor
    status: Status | list[Status]
    reached: float | Tensor
    _layout: Layout = attribute(repr=False)
    _dense: DenseOutput = attribute(repr=False)
    _codes: Tensor = attribute(repr=False)

    @property
    def success(self) -> bool:
        """Whether all rows got to the end."""
        return bool((self._codes == Status.SUCCESS.code).all())

    def raise_if_failed(self) -> None:
        """Raise `SolverError` with advice if any row failed."""
        raise_if_failed("solve_ivp", self._codes)

    def sol(self, t: float | Tensor) -> Any:
        """Return the solution at any time on the way, by the method's dense output.

        Args:
            t: a time, times ``[count]``, or batched also times a row ``[count, rows]``.

        Returns:
            The state, of y0's form; its tensors start with the axis ``[count]`` if t does.

        Raises:
            ValueError: if a time was not reached.
        """
        at = torch.as_tensor(t, dtype=self._layout.dtype, device=self._layout.device)
        rows = self._layout.rows
        if at.ndim > 2 or (at.ndim == 2 and (at.shape[1] != rows or not self._layout.batched)):
            wanted = f"[], [count] or [count, {rows}]" if self._layout.batched else "[] or [count]"
            raise ValueError(f"t must have shape {wanted}, got {list(at.shape)}")
        found = self._dense(at if at.ndim == 2 else at.reshape(-1, 1).expand(-1, rows))
        return self._layout.unflatten(found if at.ndim > 0 else found[0])


def solve_ivp(
    func: Callable[[Tensor, Any], Any],
    t_span: tuple[float, float] | Tensor,
    y0: Any,
    *,
    method: str = "tsit5",
    rtol: Any = 1e-3,
    atol: Any = 1e-6,
    t_eval: Tensor | None = None,
    batched: bool = False,
    max_steps: int = 10_000,
    first_step: float | None = None,
    norm: Callable[[Any], Any] | None = None,
) -> Solution:
    """Solve dy/dt = func(t, y) from t_span[0] to t_span[1], as `scipy.integrate.solve_ivp` does.

    A solve that fails raises nothing: the status tells, and what was found until then is there. Nothing carries a
    graph; `odeint` differentiates.

    Args:
        func: as in `odeint`.
        t_span: start and end; time runs backward if the end is the smaller one.
        y0: a tensor, or a tuple or dict of tensors, real or complex.
        method: ``"tsit5"``, ``"dopri5"``, ``"bosh3"``, ``"adaptive_heun"`` or ``"fehlberg2"``.
        rtol, atol: tolerances of a step: numbers, tensors that broadcast to y0, or one for each tensor of y0.
        t_eval: times ``[count]`` inside the span at which the states are wanted.
        batched: let each row of y0 take its own steps, as in `odeint`.
        max_steps: most steps that a row may try.
        first_step: size of the first step, in place of an estimate.
        norm: size of a state, by which errors are measured, as in `odeint`.

    Raises:
        TypeError, ValueError: if an argument, or what func returns, is not as described.
    """
    checks.one_of("method", method, ADAPTIVE)
    checks.count("max_steps", max_steps)
    layout = Layout(y0, batched)
    ends = _span(t_span, layout)
    wanted = None if t_eval is None else _inside(t_eval, ends, layout)
    options = {"max_num_steps": max_steps, "norm": norm, "first_step": first_step}
    scheme = adaptive(ends, method, options, rtol, atol, layout)
    with differentiable():
        start = layout.start(y0).detach()
        return _solved(scheme, FunctionField(func, layout, ends[0], start), wanted)


def _solved(scheme: Adaptive, field: FunctionField, wanted: Tensor | None) -> Solution:
    """Solve, and return the solution at the times ``[count]`` wanted, or at the ends of the steps."""
    layout, start = field.layout, field.start
    interpolant = Interpolant.dense(scheme.stepper.tableau)
    tape = Tape(start, "stages")

    def record(rows: Tensor, t: Tensor, h: Tensor, stages: Tensor | None, taken: Step) -> None:
        inside = interpolant.coefficients(taken.states[0], h[:, None], taken)
        tape.record(rows, t, h, None, [taken.states[0], *inside])

    _, codes, stats = scheme.solve(field, start, record)
    dense = _dense_output(tape, scheme.t, start, codes, len(interpolant.weights))
    if wanted is None:
        ts = dense.nodes[: tape.steps + 1]
        found = torch.cat([start[None], dense.ends()])[: tape.steps + 1]
        ts = ts if layout.batched else ts[:, 0]
    else:
        ts, found = wanted, dense.where_known(wanted[:, None].expand(-1, layout.rows))
    # The slope at the start and the probe of a first step that is not given come on top of the steps.
    evaluations = stats["evaluations"] + (2 if scheme.controller.first_step is None else 1)

    def of(values: Tensor) -> Any:
        return values if layout.batched else values.item()

    return Solution(
        ts,
        layout.unflatten(found),
        of(stats["accepted"]),
        of(stats["rejected"]),
        of(evaluations),
        statuses(codes) if layout.batched else statuses(codes)[0],
        of(dense.nodes[-1]),
        layout,
        dense,
        codes,
    )


def _dense_output(tape: Tape, ends: Tensor, start: Tensor, codes: Tensor, powers: int) -> DenseOutput:
    """Return the steps on the tape side by side; those that a row did not take have the size 0."""
    rows, steps = len(start), max(tape.steps, 1)
    nodes = ends[0].repeat(steps + 1, rows)
    starts = start.repeat(steps, 1, 1)
    coefficients = start.new_zeros((steps, powers, *start.shape))
    for index in range(tape.steps):
        piece = tape.piece(index)
        here = torch.arange(rows, device=start.device) if piece.rows is None else piece.rows
        nodes[index + 1 :, here] = (piece.t + piece.h)[:, 0]
        first, *inside = tape.states(index)
        starts[index, here] = first
        coefficients[index, :, here] = torch.stack(inside)
    # t + h may miss the end of the interval by a rounding.
    number = torch.arange(steps + 1, device=start.device)[:, None]
    arrived = (codes == Status.SUCCESS.code) & (number >= tape.count)
    return DenseOutput(torch.where(arrived, ends[1], nodes), starts, coefficients)


def _span(t_span: Any, layout: Layout) -> Tensor:
    try:
        ends = torch.stack([torch.as_tensor(t, dtype=layout.dtype, device=layout.device).detach() for t in t_span])
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"t_span must be two numbers or a tensor of them, start and end, got {t_span!r}") from None
    if ends.shape != (2,):
        raise ValueError(f"t_span must hold the start and the end, got {t_span!r}")
    if not bool(torch.isfinite(ends).all()) or bool(ends[0] == ends[1]):
        raise ValueError(f"t_span must hold two different finite times, got {ends.tolist()}")
    return ends


def _inside(t_eval: Any, ends: Tensor, layout: Layout) -> Tensor:
    t = torch.as_tensor(t_eval, dtype=layout.dtype, device=layout.device).detach()
    if t.ndim != 1 or len(t) == 0:
        raise ValueError(f"t_eval must have shape [count] with at least one time, got {list(t.shape)}")
    low, high = ends.min(), ends.max()
    if not bool(((t >= low) & (t <= high)).all()):
        raise ValueError(
            f"t_eval must lie between {low.item():g} and {high.item():g}, "
            f"got times from {t.min().item():g} to {t.max().item():g}"
        )
    return t
