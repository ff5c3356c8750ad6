"""Adjoints of a fixed-step solve: the exact transpose of the steps taken, over stored or rebuilt states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, comb, sqrt
from typing import NamedTuple, Protocol

from torch import Tensor

from . import checks
from .integrate import UniformGrid, integrate
from .runge_kutta import DifferentiableField, Field, Step, add, step, transpose
from .solution import finite_codes, raise_if_failed
from .tableaus import ButcherTableau


class Cotangents(NamedTuple):
    """The pullback of a cotangent through a whole solve.

    Args:
        start: to the initial state, shape ``[rows, P]``.
        parameters: to the field's parameters, in the field's order.
        duration: to t1 − t0 at a fixed number of steps, shape ``[rows]``; of a field without explicit time.
    """

    start: Tensor
    parameters: tuple[Tensor, ...]
    duration: Tensor


class Solve(NamedTuple):
    """A finished solve: its end ``[rows, P]``, status codes ``[rows]``, and the pullback of a cotangent of the end."""

    end: Tensor
    codes: Tensor
    pullback: Callable[[Tensor], Cotangents]

    def raise_if_failed(self) -> None:
        """Raise `SolverError` with advice if any row failed."""
        raise_if_failed("the inner solve", self.codes)


class Adjoint(Protocol):
    """A way to differentiate a solve."""

    def solve(self, tableau: ButcherTableau, field: DifferentiableField, grid: UniformGrid, y0: Tensor) -> Solve:
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

    def solve(self, tableau: ButcherTableau, field: DifferentiableField, grid: UniformGrid, y0: Tensor) -> Solve:
        """Solve from y0, keeping what the way back needs."""
        checks.rows("the initial state", y0)
        rebuild = self.store == "steps" and tableau.solution_stages > 1
        # One block for all states: kept one by one, they would sit between the field's temporaries and make the
        # allocator's heap grow with the steps by far more than their own size.
        stages = 1 if rebuild else tableau.solution_stages
        kept = y0.new_empty((grid.steps, stages, *y0.shape))

        def record(index: int, taken: Step) -> None:
            for stage in range(stages):
                kept[index, stage] = taken.states[stage]

        end = integrate(tableau, _detached(field), grid, y0.detach(), record=record)

        def states(index: int) -> Sequence[Tensor]:
            return _stage_states(tableau, field, grid, index, kept[index, 0]) if rebuild else kept[index].unbind()

        return Solve(end, finite_codes(end), lambda w: _sweep(tableau, field, grid, states, w))


@dataclass(frozen=True)
class Checkpointed:
    """The exact transpose in bounded memory: a few snapshots, the states between them rebuilt.

    Snapshots are placed by the binomial schedule, which needs the fewest repeated steps for the number of snapshots:
    with C(s+r, s) ≥ n no step is taken more than r times (Griewank and Walther, ACM TOMS 26 (2000), algorithm 799).

    Args:
        snapshots: how many states may be kept, the initial one included, besides the one or two being worked on;
            ``None`` takes ⌈√(2n)⌉, with which no step is repeated more than twice.
    """

    snapshots: int | None = None

    def __post_init__(self) -> None:
        if self.snapshots is not None:
            checks.count("snapshots", self.snapshots)

    def solve(self, tableau: ButcherTableau, field: DifferentiableField, grid: UniformGrid, y0: Tensor) -> Solve:
        """Solve from y0, leaving the snapshots of the schedule's first descent behind."""
        checks.rows("the initial state", y0)
        snapshots = min(self.snapshots or ceil(sqrt(2 * grid.steps)), grid.steps)
        block = y0.new_empty((snapshots, *y0.shape))  # one block, as in `Discrete`
        kept: list[tuple[int, Tensor]] = []
        values = _detached(field)

        def keep(index: int, y: Tensor) -> None:
            kept.append((index, block[len(kept)].copy_(y)))

        def state(index: int) -> Tensor:
            """Run from the last snapshot to the start of step ``index``, leaving snapshots where the schedule wants."""
            while kept[-1][0] > index:
                kept.pop()
            base, y = kept[-1]
            at = base
            for offset in placements(index + 1 - base, snapshots - len(kept)):
                y = integrate(tableau, values, grid, y, first=at, last=base + offset)
                at = base + offset
                keep(at, y)
            return integrate(tableau, values, grid, y, first=at, last=index)

        def states(index: int) -> Sequence[Tensor]:
            return _stage_states(tableau, field, grid, index, state(index))

        keep(0, y0.detach())
        end = integrate(tableau, values, grid, state(grid.steps - 1), first=grid.steps - 1)
        return Solve(end, finite_codes(end), lambda w: _sweep(tableau, field, grid, states, w))


def _detached(field: Field) -> Field:
    """Return the field without a graph: the pullback replaces it, and grad mode may be on around a solve."""
    return lambda t, y: field(t, y).detach()


def _stage_states(
    tableau: ButcherTableau, field: DifferentiableField, grid: UniformGrid, index: int, y: Tensor
) -> list[Tensor]:
    if tableau.solution_stages == 1:
        return [y]
    return step(tableau, _detached(field), grid.time(index), grid.step_size, y).states


def _sweep(
    tableau: ButcherTableau,
    field: DifferentiableField,
    grid: UniformGrid,
    states: Callable[[int], Sequence[Tensor]],
    w: Tensor,
) -> Cotangents:
    """Transpose the steps from the last to the first."""
    parameters: tuple[Tensor, ...] = ()
    size = w.new_zeros(w.shape[0])
    for index in reversed(range(grid.steps)):
        pulled = transpose(tableau, field, grid.time(index), grid.step_size, states(index), w)
        w = pulled.start
        parameters = add(parameters, pulled.parameters)
        size = size + pulled.size
    return Cotangents(w, parameters, size / grid.steps)


def placements(steps: int, free: int) -> Iterator[int]:
    """Yield where to leave snapshots ahead of a snapshot at 0, so that ``steps`` steps are reversed most cheaply.

    Args:
        steps: how many steps are to be reversed from here.
        free: how many more snapshots may be kept.
    """
    at = 0
    while free > 0 and steps - at > 1:
        at += _split(steps - at, free + 1)
        free -= 1
        yield at


def _split(steps: int, snapshots: int) -> int:
    """Return how far the next snapshot lies ahead when ``snapshots`` may be kept, the one at 0 included.

    With β(s, r) = C(s+r, s) the longest chain that s snapshots reverse in r repetitions, and r the least with
    β(s, r) ≥ n, the next snapshot at m is optimal when the m steps before it, reversed with s snapshots, need at
    most r−1 repetitions and the n−m steps after it, with s−1 snapshots, at most r, neither chain being so short that
    it wastes repetitions: β(s, r−2) ≤ m ≤ β(s, r−1) and β(s−1, r−1) ≤ n−m ≤ β(s−1, r). The largest such m is taken.
    """

    def longest(s: int, r: int) -> int:
        return comb(s + r, s)

    repetitions = 1
    while longest(snapshots, repetitions) < steps:
        repetitions += 1
    return min(longest(snapshots, repetitions - 1), steps - longest(snapshots - 1, repetitions - 1))
