"""The path that a solve leaves: its steps, which can be taken again and transposed one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .integrate import UniformGrid, integrate
from .row_steps import RowSteps
from .solution import Status, finite_codes
from .stepper import Detached, DifferentiableField, RowField, Step, Stepper, Time
from .tape import Tape


class Transposed(NamedTuple):
    """The pullback of a cotangent through one step of every row.

    Args:
        start: to the state before the step, shape ``[rows, P]``.
        parameters: to the field's parameters.
        duration: to the length of the interval, whose steps grow in proportion, shape ``[rows]``.
        shift: to a shift of the interval in time, shape ``[rows]``; ``None`` for a field without explicit time.
        stability: a lower bound of h·‖J‖ as a share of the stability interval, shape ``[rows]``.
    """

    start: Tensor
    parameters: tuple[Tensor, ...]
    duration: Tensor
    shift: Tensor | None
    stability: Tensor


class Path(Protocol):
    """The steps of a finished solve. A row that took fewer than the others rests after its last."""

    @property
    def steps(self) -> int:
        """Steps of the row with the most."""
        ...

    def advance(self, index: int, y: Tensor) -> Tensor:
        """Take step ``index`` from y ``[rows, P]`` and return its end."""
        ...

    def rebuild(self, index: int, y: Tensor) -> Sequence[Tensor]:
        """Return the states that the transpose of step ``index`` from y ``[rows, P]`` needs."""
        ...

    def states(self, index: int) -> Sequence[Tensor]:
        """Return these states as they were kept, rebuilding what was not."""
        ...

    def codes(self, end: Tensor) -> Tensor:
        """Return how each row ended, ``[rows]``, once all steps were taken."""
        ...

    def mesh(self, index: int) -> tuple[Tensor | None, Time, Time]:
        """Return which rows took step ``index`` (``None``: all), when it starts, and its size."""
        ...

    def start(self, index: int) -> Tensor:
        """Return the state, as it was kept, from which these rows took step ``index``, ``[n, P]``."""
        ...

    def transpose(self, index: int, states: Sequence[Tensor], w: Tensor) -> Transposed:
        """Pull the cotangent w ``[rows, P]`` back through step ``index`` of every row."""
        ...


class Run(NamedTuple):
    """A finished solve: ends ``[rows, P]``, status codes ``[rows]``, its path, and statistics by name."""

    end: Tensor
    codes: Tensor
    path: Path
    stats: dict[str, Any]


class Plan(Protocol):
    """A way to solve."""

    def run(self, field: Any, y0: Tensor, keep: str) -> Run:
        """Solve from y0, keeping of each step its ``"stages"``, its start (``"steps"``) or ``"nothing"``."""
        ...

    def path(self, field: Any) -> Path | None:
        """Return the path before it was walked, or ``None`` if only a solve can tell its steps."""
        ...


class UniformSteps(NamedTuple):
    """The same n equal steps for all rows.

    Args:
        stepper: what steps.
        grid: where.
    """

    stepper: Stepper
    grid: UniformGrid

    def run(self, field: DifferentiableField, y0: Tensor, keep: str) -> Run:
        """Solve from y0, keeping of each step its ``"stages"``, its start (``"steps"``) or ``"nothing"``."""
        path = UniformPath(self, field, keep)
        end = integrate(self.stepper, Detached(field), self.grid, y0.detach(), record=path.record)
        return Run(end, path.codes(end), path, {})

    def path(self, field: DifferentiableField) -> UniformPath:
        """Return the path, whose steps are known beforehand."""
        return UniformPath(self, field, "nothing")


class UniformPath:
    """The steps of `UniformSteps`."""

    def __init__(self, plan: UniformSteps, field: DifferentiableField, keep: str) -> None:
        self._plan, self._field, self._values, self._keep = plan, field, Detached(field), keep
        self._block: Tensor | None = None
        self._failed: Tensor | None = None

    @property
    def steps(self) -> int:
        """Number of steps n."""
        return self._plan.grid.steps

    def record(self, index: int, taken: Step) -> None:
        """Keep what is to be kept of a step."""
        if taken.codes is not None:
            failed = taken.codes if self._failed is None else self._failed
            self._failed = torch.where(failed == Status.SUCCESS.code, taken.codes, failed)
        if self._keep == "nothing":
            return
        kept = taken.states if self._keep == "stages" else taken.states[:1]
        if self._block is None:
            # One block for all states: kept one by one, they would sit between the field's temporaries and make the
            # allocator's heap grow with the steps by far more than their own size.
            self._block = taken.end.new_empty((self.steps, len(kept), *taken.end.shape))
        for stage, state in enumerate(kept):
            self._block[index, stage] = state

    def codes(self, end: Tensor) -> Tensor:
        """Return how each row ended."""
        codes = finite_codes(end)
        if self._failed is None:
            return codes
        return torch.where(self._failed == Status.SUCCESS.code, codes, self._failed)

    def advance(self, index: int, y: Tensor) -> Tensor:
        """Take step ``index`` and return its end."""
        stepper, grid = self._plan
        taken = stepper.step(self._values, grid.time(index), grid.step_size, y)
        self.record(index, taken)
        return taken.end

    def rebuild(self, index: int, y: Tensor) -> Sequence[Tensor]:
        """Return the states of step ``index`` from y."""
        stepper, grid = self._plan
        return stepper.states(self._values, grid.time(index), grid.step_size, y)

    def states(self, index: int) -> Sequence[Tensor]:
        """Return the states kept of step ``index``, rebuilding its stages where only its start was kept."""
        kept = self._kept()[index].unbind()
        return kept if self._keep == "stages" else self.rebuild(index, kept[0])

    def mesh(self, index: int) -> tuple[None, Time, Time]:
        """Return when step ``index`` starts, and its size."""
        return None, self._plan.grid.time(index), self._plan.grid.step_size

    def start(self, index: int) -> Tensor:
        """Return the state from which step ``index`` was taken."""
        return self._kept()[index, 0]

    def _kept(self) -> Tensor:
        if self._block is None:
            raise ValueError("this solve kept nothing of its steps")
        return self._block

    def transpose(self, index: int, states: Sequence[Tensor], w: Tensor) -> Transposed:
        """Pull the cotangent w back through step ``index``."""
        stepper, grid = self._plan
        pulled = stepper.transpose(self._field, grid.time(index), grid.step_size, states, w)
        duration = pulled.size / grid.steps
        if pulled.time is not None:
            duration = duration + pulled.time * (index / grid.steps)
        return Transposed(pulled.start, pulled.parameters, duration, pulled.time, pulled.stretch / stepper.limit())


class TapePath:
    """The steps that rows took at their own pace."""

    def __init__(self, plan: RowSteps, field: RowField, tape: Tape) -> None:
        self._plan, self._field, self._tape = plan, field, tape
        self._restricted: tuple[Tensor | None, RowField] = (None, field)

    @property
    def steps(self) -> int:
        """Steps of the row with the most."""
        return self._tape.steps

    def advance(self, index: int, y: Tensor) -> Tensor:
        """Take step ``index`` again in the rows that have one; the others rest."""
        piece = self._tape.piece(index)
        here = take(y, piece.rows)
        field = Detached(self._on(piece.rows))
        taken = self._plan.stepper.step(field, piece.t, piece.h, here, stages=piece.stages)
        return put(y, piece.rows, taken.end)

    def rebuild(self, index: int, y: Tensor) -> Sequence[Tensor]:
        """Return the states of step ``index`` from y, of the rows that have one."""
        piece = self._tape.piece(index)
        here = take(y, piece.rows)
        field = Detached(self._on(piece.rows))
        return self._plan.stepper.states(field, piece.t, piece.h, here, stages=piece.stages)

    def states(self, index: int) -> Sequence[Tensor]:
        """Return the states kept of step ``index``, rebuilding its stages where only its start was kept."""
        kept = self._tape.states(index)
        if self._tape.keep == "stages":
            return kept
        piece = self._tape.piece(index)
        field = Detached(self._on(piece.rows))
        return self._plan.stepper.states(field, piece.t, piece.h, kept[0], stages=piece.stages)

    def codes(self, end: Tensor) -> Tensor:
        """Return how each row ended."""
        return finite_codes(end)

    def mesh(self, index: int) -> tuple[Tensor | None, Time, Time]:
        """Return which rows took step ``index``, when each of them starts, and its size."""
        piece = self._tape.piece(index)
        return piece.rows, piece.t, piece.h

    def start(self, index: int) -> Tensor:
        """Return the states from which these rows took step ``index``."""
        return self._tape.states(index)[0]

    def transpose(self, index: int, states: Sequence[Tensor], w: Tensor) -> Transposed:
        """Pull the cotangent w back through step ``index`` of the rows that have one."""
        piece = self._tape.piece(index)
        rows, stepper = piece.rows, self._plan.stepper
        here = take(w, rows)
        pulled = stepper.transpose(self._on(rows), piece.t, piece.h, states, here, stages=piece.stages)
        start, span = self._plan.t0, self._plan.t1 - self._plan.t0
        duration = pulled.size * piece.h[:, 0] / span
        if pulled.time is not None:
            duration = duration + pulled.time * (piece.t[:, 0] - start) / span
        none = w.new_zeros(len(w))
        return Transposed(
            put(w, rows, pulled.start),
            pulled.parameters,
            put(none, rows, duration),
            None if pulled.time is None else put(none, rows, pulled.time),
            put(none, rows, (pulled.stretch / stepper.limit(piece.stages)).to(w.dtype)),
        )

    def _on(self, rows: Tensor | None) -> RowField:
        """Return the field on these rows; consecutive steps mostly have the same."""
        last, restricted = self._restricted
        if rows is None:
            return self._field
        if last is None or not torch.equal(last, rows):
            restricted = self._field.rows(rows)
            self._restricted = (rows, restricted)
        return restricted


class OwnSteps(NamedTuple):
    """Steps that every row takes at its own pace.

    Args:
        steps: what steps, and who judges.
    """

    steps: RowSteps

    def run(self, field: RowField, y0: Tensor, keep: str) -> Run:
        """Solve from y0, keeping of each step its ``"stages"``, its start (``"steps"``) or ``"nothing"``."""
        tape = Tape(y0, keep)

        def record(rows: Tensor, t: Tensor, h: Tensor, stages: Tensor | None, taken: Step) -> None:
            tape.record(rows, t, h, stages, taken.states)

        solved = self.steps.integrate(Detached(field), y0.detach(), record)
        return Run(solved.end, solved.codes, TapePath(self.steps, field, tape), solved.statistics._asdict())

    def path(self, field: RowField) -> None:
        """Return ``None``: only the solve can tell how many steps there will be."""


def take(whole: Tensor, rows: Tensor | None) -> Tensor:
    """Return some rows; ``None`` means all."""
    return whole if rows is None else whole[rows]


def put(whole: Tensor, rows: Tensor | None, part: Tensor) -> Tensor:
    """Return ``whole`` with some rows replaced; ``None`` means all."""
    return part if rows is None else whole.index_copy(0, rows, part)
