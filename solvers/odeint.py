"""torchdiffeq's interface over these solvers, and torchdiffeq itself for what they do not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import checks, handover
from . import odeint_arguments as arguments
from .adjoints import Adjoint, Checkpointed, Discrete
from .function_field import FunctionField, WritesToStateError, differentiable
from .outputs import OutputPlan
from .pytree import Layout
from .schemes import ADAPTIVE, Adaptive, Fixed, adaptive, fixed
from .solve_node import Outputs, check_solved


def odeint(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    batched: bool = False,
) -> Any:
    """Solve dy/dt = func(t, y), y(t[0]) = y0, and return y at the times t, as `torchdiffeq.odeint` does.

    The gradient is the exact transpose of the steps taken, over their stored stages: each is one evaluation of func
    and one pullback through it on the way back, whatever the number of outputs. It reaches y0, t, and the tensors
    that func depends on: in modules, in closures, in the object of a bound method. Second derivatives work too
    (``create_graph=True``); they replay the steps. The ends of the steps that error control chose are held fixed.
    Since func is evaluated again on the way back, it has to return the same there: one that draws random numbers is
    left to torchdiffeq, and so is one that writes to its y; one that has changed since the solve is an error.

    Args:
        func: the derivative. It gets t 0-dimensional, in the precision of y0, and y in the form of y0, and returns
            that form. It may differentiate by itself.
        y0: a tensor, or a tuple or dict of tensors, real or complex, of any shapes. Tensors of different precision are
            raised to the highest one.
        t: times ``[count]``, strictly increasing or decreasing, converted to the precision of y0.
        rtol, atol: tolerances of a step: numbers, tensors that broadcast to y0, or one for each tensor of y0.
        method: ``"dopri5"`` (the default), ``"tsit5"``, ``"bosh3"``, ``"adaptive_heun"`` or ``"fehlberg2"``, which
            control the error; ``"euler"``, ``"midpoint"``, ``"heun2"``, ``"heun3"`` or ``"rk4"`` (the 3/8 rule) on
            the grid t or that of the options; and ``"dopri8"``, ``"explicit_adams"``, ``"implicit_adams"`` or
            ``"scipy_solver"``, which torchdiffeq solves.
        options: ``norm`` (of a state; the default is the root mean square, of a tuple the largest one),
            ``first_step``, ``safety``, ``ifactor``, ``dfactor``, ``max_num_steps`` (times the number of outputs), or
            for the fixed-step methods ``step_size``, ``grid_constructor`` and ``interp`` (``"linear"`` or
            ``"cubic"``). With ``min_step``, ``max_step``, ``step_t``, ``jump_t``, ``perturb`` or another ``dtype`` for
            time, torchdiffeq solves.
        event_fn: handed to torchdiffeq, which returns the time of the event too.
        batched: let each row of y0 take its own steps. t and the result of func then have the rows in front
            (`FunctionField`), and so has what ``norm`` gets and returns.

    Returns:
        y at the times, of y0's form, each tensor ``[count, *shape]``.

    Raises:
        TypeError, ValueError: if an argument, or what func returns, is not as described.
        SolverError: if the solve fails; the message says why.
    """
    options = arguments.mapping("options", options)
    call = _Call("odeint", func, y0, t, rtol, atol, method or "dopri5", options, event_fn, batched, {})
    return call.solve(Discrete())


def odeint_adjoint(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    batched: bool = False,
) -> Any:
    """Solve like `odeint`, with a gradient in bounded memory, as `torchdiffeq.odeint_adjoint` does.

    The gradient is the same as that of `odeint`, the exact transpose of the steps taken: of n steps only ⌈√(2n)⌉
    states, 10 at most, are kept, and the others computed again (`Checkpointed`). No equation is solved backward in
    time, so that nothing drifts, and ``adjoint_rtol``, ``adjoint_atol``, ``adjoint_method`` and the other
    ``adjoint_options`` are only checked, unless torchdiffeq solves.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn, batched: as in `odeint`. func need not be a module.
        adjoint_rtol, adjoint_atol, adjoint_method: not needed by this adjoint.
        adjoint_options: ``snapshots`` is how many states to keep; the others are not needed by this adjoint.
        adjoint_params: the parameters that get gradients; all that func depends on unless given.

    Returns:
        y at the times, of y0's form, each tensor ``[count, *shape]``.

    Raises:
        TypeError, ValueError: if an argument, or what func returns, is not as described.
        SolverError: if the solve fails; the message says why.
    """
    backward = {
        "adjoint_rtol": adjoint_rtol,
        "adjoint_atol": adjoint_atol,
        "adjoint_method": adjoint_method,
        "adjoint_options": None if adjoint_options is None else arguments.mapping("adjoint_options", adjoint_options),
        "adjoint_params": arguments.parameters(adjoint_params),
    }
    method, options = method or "dopri5", arguments.mapping("options", options)
    call = _Call("odeint_adjoint", func, y0, t, rtol, atol, method, options, event_fn, batched, backward)
    arguments.check_backward(method, backward)
    return call.solve(Checkpointed((adjoint_options or {}).get("snapshots")))


def odeint_event(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[..., Any],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> Any:
    """Solve until ``event_fn(t, y)`` vanishes, and return the time and the states, by `torchdiffeq.odeint_event`."""
    from torchdiffeq import odeint_event as theirs

    return theirs(
        func, y0, t0, event_fn=event_fn, reverse_time=reverse_time, odeint_interface=odeint_interface, **kwargs
    )


def odeint_dense(func: Callable[[Tensor, Any], Any], y0: Tensor, t0: Tensor, t1: Tensor, **kwargs: Any) -> Any:
    """Return the solution as a function of time, by `torchdiffeq.odeint_dense`; see `solve_ivp` for ours."""
    from torchdiffeq import odeint_dense as theirs

    return theirs(func, y0, t0, t1, **kwargs)


class _Left(Exception):
    """What is left to torchdiffeq, noticed on the way."""


@dataclass(frozen=True)
class _Call:
    """The arguments of a call.

    Args:
        name: of the function.
        backward: what the adjoint got, empty for `odeint`.
    """

    name: str
    func: Callable[[Tensor, Any], Any]
    y0: Any
    t: Tensor
    rtol: Any
    atol: Any
    method: str
    options: dict[str, Any]
    event_fn: Callable[..., Any] | None
    batched: bool
    backward: dict[str, Any]

    def __post_init__(self) -> None:
        if not callable(self.func):
            raise TypeError(f"func must be a function of t and y, got {type(self.func).__name__}")
        checks.one_of("method", self.method, arguments.METHODS)
        arguments.check_options("option", self.method, self.options)
        for name in ("rtol", "atol"):
            arguments.check_tolerance(name, getattr(self, name))

    def solve(self, adjoint: Adjoint) -> Any:
        """Solve here, or have torchdiffeq solve."""
        if handover.transformed():
            return self._hand_over("a transform of torch.func or forward-mode differentiation")
        try:
            with differentiable():
                return self._solve(adjoint)
        except WritesToStateError:
            reason = "a func that writes to its y"
        except _Left as left:
            reason = str(left)
        return self._hand_over(reason)

    def _solve(self, adjoint: Adjoint) -> Any:
        layout = Layout(self.y0, self.batched)
        t = arguments.times(self.t, layout)
        y0 = layout.start(self.y0)
        reason = handover.reason(self.func, self.method, self.options, self.event_fn, layout)
        if reason is not None:
            field = FunctionField(self.func, layout, t[0], y0)
            # One evaluation, for what torchdiffeq does not say of a result of the wrong form.
            handover.draws(partial(field, field.t0, field.start), layout.device)
            raise _Left(reason)
        if len(t) == 1:
            return layout.unflatten(y0[None])
        plan = OutputPlan(self._scheme(t.detach(), layout))
        recording = torch.is_grad_enabled()
        field = FunctionField(self.func, layout, t[0], y0, timed=recording and t.requires_grad)
        if recording:
            given = self.backward.get("adjoint_params")
            find = field.find_parameters if given is None else partial(field.restrict_parameters, given)
            field.random = handover.draws(find, layout.device)
        if field.random and not self.backward:
            # The way back would meet other numbers; torchdiffeq's graph keeps the ones that there were.
            raise _Left("a func that draws random numbers")
        if recording and (field.parameters or y0.requires_grad or t.requires_grad):
            outputs = Outputs.apply(plan, adjoint, field, bool(self.backward), y0, t, *field.parameters)
        else:
            outputs, codes = plan.read(field, field.start)
            check_solved(field, codes)
        return layout.unflatten(outputs)

    def _scheme(self, t: Tensor, layout: Layout) -> Adaptive | Fixed:
        if self.method in ADAPTIVE:
            return adaptive(t, self.method, self.options, self.rtol, self.atol, layout)
        return fixed(t, self.method, self.options, self.func, self.y0)

    def _hand_over(self, what: str) -> Any:
        return handover.solve_there(
            self.name,
            what,
            self.func,
            self.y0,
            self.t,
            rtol=self.rtol,
            atol=self.atol,
            method=self.method,
            options=self.options,
            event_fn=self.event_fn,
            batched=self.batched,
            backward=self.backward,
        )
