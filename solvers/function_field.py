"""A user's function of time and state as a vector field on rows, with its pullback by autograd."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .captures import entangled, leaves_behind, reachable, shown
from .pytree import Layout
from .stepper import VJP, Time


class WritesToStateError(ValueError):
    """func wrote to the state that it was given."""


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Put `torch.no_grad` in the place of inference mode, in which a func could not differentiate by itself."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


class FunctionField:
    """dy/dt = func(t, y), with func's own form of y.

    func sees t as a 0-dimensional tensor and y in the form of y0. With a batched layout it sees all rows at once, t
    of shape ``[rows, 1, …]`` with as many axes as the largest tensor of y0, and its rows must not depend on each
    other: rows that are done rest where they started, so that data a row, which func may hold, stays in place.

    Values carry no graph. A func that differentiates by itself is evaluated with gradients enabled and y requiring
    them; of that graph only the value is kept.

    Args:
        func: the function.
        layout: of its states.
        t0, y0: where the solve starts, y0 ``[rows, P]``.
        timed: whether a cotangent of t is wanted.

    Attributes:
        parameters: the tensors whose cotangents are wanted, besides the state's.
        reached: the positions of those that any pullback reached so far.
        start: y0 without a graph, shape ``[rows, P]``.
    """

    def __init__(
        self, func: Callable[[Tensor, Any], Any], layout: Layout, t0: Tensor, y0: Tensor, *, timed: bool = False
    ) -> None:
        self.func, self.layout, self.timed = func, layout, timed
        self.parameters: tuple[Tensor, ...] = ()
        self.reached: set[int] = set()
        self.t0, self.start = t0.detach(), y0.detach()
        self._index: Tensor | None = None
        # f at the start, as it was when the solve began, and whether the next call may return that.
        self._first: Tensor | None = None
        self._fresh = False
        # Whether all that func depends on should be among the parameters, so that a stranger is an error.
        self._complete = False
        # Whether only what func holds could want a gradient, and whether nothing was found that does: the solve leaves
        # no graph then, so that a value with one is an error.
        self._untracked, self._watched = not (timed or y0.requires_grad), False
        # Whether graphs that func did not make lie before the parameters, and must outlive a pullback.
        self._retain = False
        self.differentiates = False
        # Whether func draws random numbers, so that it never returns the same.
        self.random = False
        device = layout.device.type
        self._autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def __call__(self, t: Time, y: Tensor) -> Tensor:
        """Return f(t, y) without a graph, shape ``[rows, P]``."""
        if self._first is not None and self._fresh and y is self.start:
            self._fresh = False
            return self._first
        return self._value(t, y)

    def _value(self, t: Time, y: Tensor) -> Tensor:
        with torch.set_grad_enabled(self._watched):
            value, *leaves = self._bare(t, y)
        if self._watched and self._complete and value.requires_grad:
            self._check_complete(t, y, value, *leaves)
        return value.detach()

    def _bare(self, t: Time, y: Tensor) -> tuple[Tensor, ...]:
        """Return f(t, y) of a y without gradients, or if func wants one with them, f(t, y) and the leaves t and y."""
        if not self.differentiates:
            try:
                return (self.evaluate(t, y),)
            except RuntimeError as error:
                self._note(error)
        return self._graph(t, y)

    def evaluate(self, t: Time, y: Tensor) -> Tensor:
        """Return f(t, y), shape ``[rows, P]``, with a graph where grad mode is on.

        Raises:
            TypeError, ValueError: if func returns another structure, shape, dtype or device than y0's.
            WritesToStateError: if func writes to its y.
        """
        whole = y if self._index is None else self.start.index_copy(0, self._index, y)
        at = torch.as_tensor(t, dtype=y.dtype, device=y.device)
        version = whole._version
        with self._autocasting():
            found = self.func(self._time(at, len(y)), self.layout.unflatten(whole))
        value = self.layout.flatten(found, "the result of func", cast=self._autocast is not None)
        if whole._version != version:
            raise WritesToStateError("func must leave the y that it gets as it is, got one that writes to it; copy it")
        return value if self._index is None else value[self._index]

    def vjp(self, t: Time, y: Tensor, w: Tensor) -> VJP:
        """Return f(t, y) and the pullback of w; a parameter that f did not use gets a 0 without its shape.

        Raises:
            ValueError: if f turns out to depend on a tensor that was not found when the parameters were.
        """
        value, at, here = self._graph(t, y)
        if self._complete:
            self._check_complete(t, y, value, at, here)
        inputs = (here, at, *self.parameters) if self.timed else (here, *self.parameters)
        pulled: Sequence[Tensor | None] = [None] * len(inputs)
        if value.requires_grad:
            pulled = torch.autograd.grad(value, inputs, w, allow_unused=True, retain_graph=self._retain)
        time = (torch.zeros_like(at) if pulled[1] is None else pulled[1]) if self.timed else None
        others = pulled[len(inputs) - len(self.parameters) :]
        self.reached.update(index for index, part in enumerate(others) if part is not None)
        parameters = tuple(
            parameter.new_zeros(()) if part is None else part
            for parameter, part in zip(self.parameters, others, strict=True)
        )
        return VJP(value.detach(), torch.zeros_like(y) if pulled[0] is None else pulled[0], parameters, time)

    def rows(self, index: Tensor) -> FunctionField:
        """Return the field on some rows; the others rest where they started."""
        field = self._copy()
        field._index = index
        return field

    def wanting(self, parameters: Sequence[bool], timed: bool) -> FunctionField:
        """Return the field with only these of its parameters, and with the cotangent of t or without."""
        field = self._copy()
        field.parameters = tuple(p for p, wanted in zip(self.parameters, parameters, strict=True) if wanted)
        field.timed, field.reached = timed, set()
        field._complete = self._complete and all(parameters)
        return field

    def find_parameters(self) -> None:
        """Take as parameters all that func depends on: what it can reach, and what one evaluation's graph shows.

        The evaluation is at the start, and its value is what the first call there returns. A tensor in the middle of a
        graph is a parameter itself, so that the graph behind it is traversed once and not at every stage; but where
        one parameter lies behind another, all give way to the leaves behind them. A func that needs no graph, as far as
        one can see, gets none: it may write to buffers of its own.
        """
        found = reachable(self.func)
        self._complete = True
        if self._untracked and not found:
            with torch.enable_grad():
                value, *leaves = self._bare(self.t0, self.start)
            if not shown(value, leaves):
                self._watched = True
                self._first, self._fresh = value.detach(), True
                return
        value, *leaves = self._graph(self.t0, self.start)
        extra = self._lasting(shown(value, [*found, *leaves]), found)
        if entangled([*found, *extra]):
            found, self._retain = leaves_behind(found), True
            extra = self._lasting(shown(value, [*found, *leaves]), found)
        self.parameters = (*found, *extra)
        self._retain = self._retain or bool(extra)
        self._watched = self._untracked and not self.parameters
        self._first, self._fresh = value.detach(), True

    def restrict_parameters(self, parameters: Sequence[Tensor]) -> None:
        """Take these parameters, whatever else func depends on; those that require no gradient are left out.

        The first call at the start returns what is evaluated here, as after `find_parameters`.
        """
        self.parameters = tuple(parameter for parameter in parameters if parameter.requires_grad)
        known = {id(parameter) for parameter in self.parameters}
        self._retain = any(not tensor.is_leaf and id(tensor) not in known for tensor in reachable(self.func))
        self._first, self._fresh = self._value(self.t0, self.start), True

    @property
    def rounding(self) -> float:
        """How far evaluations of the same may lie apart, relative to their size."""
        return float(torch.finfo(self._autocast or self.start.dtype).eps ** 0.5)

    def check_unchanged(self) -> None:
        """Refuse to go back through a func that is another one by now, judged by its value at the start.

        Raises:
            ValueError: if it has changed.
        """
        if self._first is None or self.random:
            return
        now = self._value(self.t0, self.start)
        scale = self._first.abs().amax(dim=1, keepdim=True)
        self.require_same(((now - self._first).abs() <= self.rounding * scale).all())

    def require_same(self, same: Tensor) -> None:
        """Raise unless what func returned on the way back was the same as during the solve.

        Raises:
            ValueError: if it was not.
        """
        if not self.random and not bool(same):
            raise ValueError(
                "func is another one than during the solve: its values have changed. The way back evaluates it again, "
                "so what it holds (conditions, data, modes) must stay until then; put what varies into y0, or use a "
                "copy of func for each solve"
            )

    def _graph(self, t: Time, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return f(t, y) with its graph, and the leaves t ``[rows]`` and y of that; func gets a copy of y."""
        here = y.detach().requires_grad_()
        at = torch.as_tensor(t, dtype=y.dtype, device=y.device).detach().reshape(-1).expand(len(y)).clone()
        with torch.enable_grad():
            if not self.differentiates:
                try:
                    at.requires_grad_(self.timed)
                    return self.evaluate(at, here.clone()), at, here
                except RuntimeError as error:
                    self._note(error)
            at.requires_grad_()
            return self.evaluate(at, here.clone()), at, here

    def _note(self, error: RuntimeError) -> None:
        """Note that func differentiates by itself if that is what the error says, and raise any other."""
        if "does not require grad" not in str(error):
            raise error
        self.differentiates = True

    def _check_complete(self, t: Time, y: Tensor, value: Tensor, *leaves: Tensor) -> None:
        strangers = shown(value, [*self.parameters, *leaves])
        if not strangers:
            return
        for stranger in self._lasting(strangers, self.parameters, t, y):
            raise ValueError(
                f"func depends on a tensor of shape {list(stranger.shape)} that it did not use at the first time and "
                "that is not in reach of it, so its gradient would be lost: make it an attribute of a module, or name "
                "all parameters in odeint_adjoint(…, adjoint_params=…), or solve under torch.no_grad()"
            )
        self._complete = False

    def _lasting(
        self, tensors: Sequence[Tensor], known: Sequence[Tensor], t: Time | None = None, y: Tensor | None = None
    ) -> list[Tensor]:
        """Return those of the tensors that a second evaluation shows too; func made the others for its own use."""
        if not tensors:
            return []
        value, *leaves = self._graph(self.t0 if t is None else t, self.start if y is None else y)
        again = {id(tensor) for tensor in shown(value, [*known, *leaves])}
        return [tensor for tensor in tensors if id(tensor) in again]

    def _time(self, at: Tensor, count: int) -> Tensor:
        """Return times of some rows in the shape in which func sees them."""
        if not self.layout.batched:
            return at.reshape(())
        at = at.reshape(-1).expand(count)
        if self._index is not None:
            at = self.t0.expand(self.layout.rows).index_copy(0, self._index, at)
        return at.reshape(-1, *[1] * self.layout.axes)

    def _autocasting(self) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast state in which the solve was started; backward runs in whatever state it is called."""
        device = self.layout.device.type
        if self._autocast is None and not torch.is_autocast_enabled(device):
            return contextlib.nullcontext()
        # Without the cache, in which casts made without gradients would be met again where gradients are needed.
        return torch.autocast(device, self._autocast, enabled=self._autocast is not None, cache_enabled=False)

    def _copy(self) -> FunctionField:
        field = object.__new__(FunctionField)
        field.__dict__.update(self.__dict__)
        return field
