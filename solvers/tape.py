"""The accepted steps of every row, in the order in which the row took them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """The m-th steps of the rows that took that many.

    Args:
        rows: these rows, shape ``[n]``; ``None`` means all of them.
        t, h: where each starts and how long it is, shape ``[n, 1]``.
        stages: their stages, shape ``[n]``; ``None`` if these are fixed.
        states: how many states each kept, at most.
    """

    rows: Tensor | None
    t: Tensor
    h: Tensor
    stages: Tensor | None
    states: int


class Tape:
    """Records steps row by row: rows that step at different times lie side by side, their first steps first.

    So a sweep over the m-th steps of all rows takes as many products as the row with the most steps needs, however
    the rows' steps interleaved on the way. States lie in one block that doubles when it is full: kept one by one, they
    would sit between the field's temporaries and make the allocator's heap grow by far more than their own size.

    Args:
        y: the initial state, shape ``[rows, P]``.
        keep: how many of a step's states to keep: ``"stages"``, ``"steps"`` (the first) or ``"nothing"``.
    """

    def __init__(self, y: Tensor, keep: str) -> None:
        self.keep = keep
        rows = y.shape[0]
        self.count = torch.zeros(rows, dtype=torch.long, device=y.device)
        self._next = torch.zeros_like(self.count)
        self._t, self._h = y.new_empty((16, rows)), y.new_empty((16, rows))
        self._offset = self.count.new_zeros((16, rows))
        self._stages: Tensor | None = None
        self._block = y.new_zeros((0 if keep == "nothing" else 16, *y.shape))
        self._states = 0
        self._steps: int | None = None

    def record(self, rows: Tensor, t: Tensor, h: Tensor, stages: Tensor | None, states: Sequence[Tensor]) -> None:
        """Append one step to each of ``rows``; t and h ``[n]``, stages ``[n]``, states ``[n, P]`` each."""
        at = self.count[rows]
        last = int(at.max())
        if last >= len(self._t):
            self._t, self._h, self._offset = (_doubled(x) for x in (self._t, self._h, self._offset))
            self._stages = None if self._stages is None else _doubled(self._stages)
        self._t[at, rows], self._h[at, rows] = t, h
        if stages is not None:
            if self._stages is None:
                self._stages = torch.zeros_like(self._offset)
            self._stages[at, rows] = stages
        self._states = max(self._states, len(states))
        offset = self._next[rows]
        self._offset[at, rows] = offset
        if self.keep != "nothing":
            kept = states if self.keep == "stages" else states[:1]
            needed = int(offset.max()) + len(kept)
            while needed > len(self._block):
                self._block = _doubled(self._block)
            # A row with fewer stages writes idle states past its own; its next step overwrites them.
            for j, state in enumerate(kept):
                self._block[offset + j, rows] = state
            own = len(kept) if stages is None or self.keep == "steps" else stages
            self._next[rows] = offset + own
        self.count[rows] = at + 1
        self._steps = None

    @property
    def steps(self) -> int:
        """Steps of the row with the most."""
        if self._steps is None:
            self._steps = int(self.count.max())
        return self._steps

    def piece(self, index: int) -> Piece:
        """Return the steps number ``index`` of the rows that have one."""
        rows = self.active(index)
        take = slice(None) if rows is None else rows
        stages = None if self._stages is None else self._stages[index, take]
        states = self._states if stages is None else int(stages.max())
        return Piece(rows, self._t[index, take, None], self._h[index, take, None], stages, states)

    def active(self, index: int) -> Tensor | None:
        """Return the rows that took more than ``index`` steps; ``None`` for all."""
        more = self.count > index
        return None if bool(more.all()) else more.nonzero().squeeze(1)

    def states(self, index: int) -> list[Tensor]:
        """Return the states that the steps number ``index`` kept, each ``[n, P]``; past a row's own they are idle."""
        if self.keep == "nothing":
            raise ValueError("this solve kept nothing of its steps")
        piece = self.piece(index)
        rows = torch.arange(len(self.count), device=self.count.device) if piece.rows is None else piece.rows
        offset = self._offset[index, rows]
        kept = 1 if self.keep == "steps" else piece.states
        last = len(self._block) - 1
        return [self._block[(offset + j).clamp(max=last), rows] for j in range(kept)]


def _doubled(block: Tensor) -> Tensor:
    larger = block.new_zeros((2 * len(block), *block.shape[1:]))
    larger[: len(block)] = block
    return larger
