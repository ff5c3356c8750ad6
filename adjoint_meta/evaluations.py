"""How many evaluations of losses, gradients and products were made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Evaluations:
    """How many batched evaluations were made; one that serves all tasks counts once.

    Args:
        n_loss: losses alone.
        n_grad: gradients.
        n_hvp: curvature products; the gradient that falls out of a product is not counted again.
    """

    n_loss: int = 0
    n_grad: int = 0
    n_hvp: int = 0

    def add(self, n_loss: int, n_grad: int, n_hvp: int) -> None:
        """Count some more."""
        self.n_loss += n_loss
        self.n_grad += n_grad
        self.n_hvp += n_hvp

    def counts(self) -> tuple[int, int, int]:
        """Return the three numbers."""
        return self.n_loss, self.n_grad, self.n_hvp

    @contextmanager
    def apart(self) -> Iterator[list[int]]:
        """Count what is evaluated within as nothing, and yield a list of its counts, complete when it is over."""
        before, added = self.counts(), [0, 0, 0]
        try:
            yield added
        finally:
            added[:] = [now - then for now, then in zip(self.counts(), before, strict=True)]
            self.add(*(-each for each in added))
