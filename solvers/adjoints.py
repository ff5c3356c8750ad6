"""Adjoints of a solve: the exact transpose of the steps taken, over stored or rebuilt states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import checks
from .binomial import placements
from .paths import Path, Plan
from .solution import raise_if_failed
from .stepper import add

# Snapshots without a wish: their memory is that of a few dozen steps then, however many there are.
_MOST = 10


class Cotangents(NamedTuple):
    """The pullback of a cotangent through a whole solve.

    Args:
        start: to the initial state, shape ``[rows, P]``.
        parameters: to the field's parameters, in the field's order.
        duration: to t1 − t0, the steps growing in proportion, shape ``[rows]``.
        shift: to a shift of the whole interval in time, shape ``[rows]``; ``None`` for a field without explicit time.
        stability: the largest h·‖Jᵀκ‖/‖κ‖ over the products as a share of the stability interval, shape ``[rows]``:
            above 1 the transposed steps amplify, and the cotangents are not to be trusted.
    """

    start: Tensor
    parameters: tuple[Tensor, ...]
    duration: Tensor
    shift: Tensor | None
    stability: Tensor


class Solve(NamedTuple):
    """A finished solve.

    Args:
        end: shape ``[rows, P]``.
        codes: status codes, ``[rows]``.
        pullback: of a cotangent of the end.
        stats: by name, what the solve took.
    """

    end: Tensor
    codes: Tensor
    pullback: Callable[[Tensor], Cotangents]
    stats: dict[str, Any]

    def raise_if_failed(self) -> None:
        """Raise `SolverError` with advice if any row failed."""
        raise_if_failed("the inner solve", self.codes)


class Adjoint(Protocol):
    """A way to differentiate a solve."""

    def solve(self, plan: Plan, field: Any, y0: Tensor) -> Solve:
        """Solve from y0 and return the end together with its pullback."""
        ...


@dataclass(frozen=True)
class Discrete:
    """The exact transpose of the steps taken, over stored states ("discretise, then differentiate").

    Args:
        store: ``"stages"`` keeps every stage state, rows × P × steps × stages numbers, and spends one product a
            stage on the way back; ``"steps"`` keeps one state a step and rebuilds its stages by evaluating the
            field again. For one-stage methods the two are the same.
    """

    store: str = "stages"

    def __post_init__(self) -> None:
        checks.one_of("store", self.store, ("stages", "steps"))

    def solve(self, plan: Plan, field: Any, y0: Tensor) -> Solve:
        """Solve from y0, keeping what the way back needs."""
        checks.rows("the initial state", y0)
        end, codes, path, stats = plan.run(field, y0, self.store)
        return Solve(end, codes, lambda w: sweep(path, path.states, w), stats)


@dataclass(frozen=True)
class Checkpointed:
    """The exact transpose in bounded memory: a few snapshots, the states between them rebuilt.

    Snapshots are placed by the binomial schedule, which needs the fewest repeated steps for the number of snapshots:
    with C(s+r, s) ≥ n no step is taken more than r times (Griewank and Walther, ACM TOMS 26 (2000), algorithm 799).
    The schedule needs the number of steps, which an adaptive solve only knows at its end: the first descent is made
    on the way back then, so that each step is taken once more.

    Args:
        snapshots: how many states may be kept, the initial one included, besides the one or two being worked on;
            ``None`` takes ⌈√(2n)⌉, with which no step is taken more than twice, and never more than 10: memory stops
            growing at 50 steps, and no step is taken more than r times with C(10+r, 10) ≥ n, 6 times for 5000.
        memory: the bytes that snapshots may take, in place of their number.
        offload: keep the snapshots in the host's memory, pinned if the states are on a GPU.
    """

    snapshots: int | None = None
    memory: int | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        if self.snapshots is not None:
            checks.count("snapshots", self.snapshots)
        if self.memory is not None:
            checks.count("memory", self.memory)
        if self.snapshots is not None and self.memory is not None:
            raise ValueError(f"give snapshots or memory, not both; got {self.snapshots} and {self.memory}")

    def solve(self, plan: Plan, field: Any, y0: Tensor) -> Solve:
        """Solve from y0; only snapshots are left behind."""
        checks.rows("the initial state", y0)
        self._affordable(1, y0)  # refuses too little memory before anything is solved
        path = plan.path(field)
        if path is not None:  # the number of steps is known
            chain = _Chain(path, y0.detach(), self._affordable(path.steps, y0), self.offload)
            end = path.advance(path.steps - 1, chain.hold(path.steps - 1))
            return Solve(end, path.codes(end), chain.sweep, {})
        end, codes, taken, stats = plan.run(field, y0, "nothing")

        def pullback(w: Tensor) -> Cotangents:
            return _Chain(taken, y0.detach(), self._affordable(taken.steps, y0), self.offload).sweep(w)

        return Solve(end, codes, pullback, stats)

    def _affordable(self, steps: int, y0: Tensor) -> int:
        if self.memory is not None:
            size = y0.numel() * y0.element_size()
            if self.memory < size:
                raise ValueError(
                    f"memory={self.memory} bytes hold no snapshot of shape {list(y0.shape)}, which takes {size}"
                )
            return max(1, min(self.memory // size, steps))
        return max(1, min(self.snapshots or min(ceil(sqrt(2 * steps)), _MOST), steps))


class _Chain:
    """The snapshots left on a path, and the states rebuilt from them."""

    def __init__(self, path: Path, y0: Tensor, snapshots: int, offload: bool) -> None:
        self._path, self._device, self._snapshots = path, y0.device, snapshots
        pinned = offload and y0.device.type == "cuda"
        # One block: kept one by one, snapshots would sit between the field's temporaries and fragment the heap.
        self._block = torch.empty(
            (snapshots, *y0.shape), dtype=y0.dtype, device="cpu" if offload else y0.device, pin_memory=pinned
        )
        self._kept: list[int] = []
        self._working: tuple[int, Tensor] | None = None
        self._keep(0, y0)

    def _keep(self, index: int, y: Tensor) -> None:
        self._block[len(self._kept)].copy_(y)
        self._kept.append(index)

    def _advance(self, y: Tensor, first: int, last: int) -> Tensor:
        for index in range(first, last):
            y = self._path.advance(index, y)
        return y

    def state(self, index: int) -> Tensor:
        """Run from the last snapshot to the start of step ``index``, leaving snapshots where the schedule wants.

        The state that the solve itself arrived at is still there when the sweep asks for it first.
        """
        working, self._working = self._working, None
        if working is not None and working[0] == index:
            return working[1]
        while self._kept[-1] > index:
            self._kept.pop()
        base = at = self._kept[-1]
        y = self._block[len(self._kept) - 1].to(self._device)
        for offset in placements(index + 1 - base, self._snapshots - len(self._kept)):
            y = self._advance(y, at, base + offset)
            at = base + offset
            self._keep(at, y)
        return self._advance(y, at, index)

    def hold(self, index: int) -> Tensor:
        """Return the state at the start of step ``index``, and keep it until the sweep begins."""
        self._working = (index, self.state(index))
        return self._working[1]

    def sweep(self, w: Tensor) -> Cotangents:
        """Transpose all steps, each from its rebuilt start."""
        return sweep(self._path, lambda index: self._path.rebuild(index, self.state(index)), w)


def sweep(path: Path, states: Callable[[int], Sequence[Tensor]], w: Tensor) -> Cotangents:
    """Transpose the steps of a path from the last to the first."""
    parameters: tuple[Tensor, ...] = ()
    shift: Tensor | None = None
    duration = stability = w.new_zeros(w.shape[0])
    for index in reversed(range(path.steps)):
        pulled = path.transpose(index, states(index), w)
        w = pulled.start
        parameters = add(parameters, pulled.parameters)
        duration = duration + pulled.duration
        stability = torch.maximum(stability, pulled.stability)
        if pulled.shift is not None:
            shift = pulled.shift if shift is None else shift + pulled.shift
    return Cotangents(w, parameters, duration, shift, stability)
