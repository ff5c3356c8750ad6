"""Tasks as data: a batch of points per task, support and query, and seeded sources of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from adjoint_meta.solvers import checks


@dataclass(frozen=True)
class Batch:
    """Points of several tasks, the leading axis being the task.

    Args:
        x: inputs, shape ``[tasks, points, ...]``.
        y: targets, shape ``[tasks, points, ...]``.
        mask: which points count in a metric, bool ``[tasks, points]``; ``None`` means all. It lets test tasks of
            unequal size share one tensor; losses know nothing of it, so a masked batch is refused in training.
        kept: what a learner has found of the tasks besides, one row a task; see `Prefix`.

    Raises:
        TypeError: if x or y is not a tensor.
        ValueError: if the leading two axes differ, or there is no task or no point.
    """

    x: Tensor
    y: Tensor
    mask: Tensor | None = None
    kept: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, value in (("x", self.x), ("y", self.y)):
            if not isinstance(value, Tensor):
                raise TypeError(f"Batch.{name} must be a tensor, got {type(value).__name__}")
            if value.ndim < 2:
                raise ValueError(f"Batch.{name} must have shape [tasks, points, ...], got {list(value.shape)}")
        if self.x.shape[:2] != self.y.shape[:2]:
            raise ValueError(
                "Batch.x and Batch.y must agree in their first two axes [tasks, points], "
                f"got x {list(self.x.shape)} and y {list(self.y.shape)}"
            )
        if self.x.shape[0] == 0 or self.x.shape[1] == 0:
            raise ValueError(f"a Batch needs at least one task and one point, got x {list(self.x.shape)}")
        if self.x.device != self.y.device:
            raise ValueError(f"Batch.x and Batch.y must be on one device, got {self.x.device} and {self.y.device}")
        if self.mask is not None and (self.mask.dtype != torch.bool or self.mask.shape != self.x.shape[:2]):
            raise ValueError(
                f"Batch.mask must be bool of shape {list(self.x.shape[:2])}, "
                f"got {self.mask.dtype} {list(self.mask.shape)}"
            )

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, tasks: slice) -> Batch:
        _check_slice(tasks)
        return self._map(lambda tensor: tensor[tasks])

    def take(self, tasks: Tensor) -> Batch:
        """Return the tasks with these numbers, shape ``[n]``."""
        return self._map(lambda tensor: tensor[tasks])

    def points(self, points: slice) -> Batch:
        """Return some of every task's points."""
        return self._map(lambda tensor: tensor[:, points])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """Move to a device; floating-point tensors also change to ``dtype``."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        return self._map(move)

    def ordinary(self) -> Batch:
        """Return the batch with tensors that autograd may save; those made under inference mode are copied."""
        if not (self.x.is_inference() or self.y.is_inference()):
            return self
        return Batch(self.x.clone(), self.y.clone(), self.mask)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        mask, kept = (None if tensor is None else change(tensor) for tensor in (self.mask, self.kept))
        return Batch(change(self.x), change(self.y), mask, kept)

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """x, y and what is kept of the tasks: all that losses read of a batch, for `of`."""
        return (self.x, self.y) if self.kept is None else (self.x, self.y, self.kept)

    @staticmethod
    def of(x: Tensor, y: Tensor, kept: Tensor | None = None) -> Batch:
        """Return the batch that has these `rows`."""
        return Batch(x, y, None, kept)


@dataclass(frozen=True)
class TaskBatch:
    """Several tasks: the support points they adapt on and the query points they are judged on.

    Raises:
        ValueError: if support and query hold different numbers of tasks or lie on different devices.
    """

    support: Batch
    query: Batch

    def __post_init__(self) -> None:
        if len(self.support) != len(self.query):
            raise ValueError(
                f"support and query must hold the same tasks, got {len(self.support)} and {len(self.query)}"
            )
        if self.support.x.device != self.query.x.device:
            raise ValueError(
                f"support and query must be on one device, got {self.support.x.device} and {self.query.x.device}"
            )

    def __len__(self) -> int:
        return len(self.support)

    def __getitem__(self, tasks: slice) -> TaskBatch:
        _check_slice(tasks)
        return TaskBatch(self.support[tasks], self.query[tasks])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TaskBatch:
        """Move to a device; floating-point tensors also change to ``dtype``."""
        return TaskBatch(self.support.to(device, dtype), self.query.to(device, dtype))


def _check_slice(tasks: slice) -> None:
    if not isinstance(tasks, slice):
        raise TypeError(f"take tasks by a slice, which keeps their axis: batch[2:3], not batch[{tasks!r}]")


class TaskSource(ABC):
    """Tasks by index: task i of seed s is the same on any machine, so that runs resume and split.

    A subclass sets ``size`` (``None`` when the supply is unlimited) and defines `batch`.
    """

    size: int | None = None

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> TaskBatch:
        """Return the tasks with these indices, stacked along the leading axis."""

    def to(self, device: torch.device | str) -> TaskSource:
        """Let what the source holds lie on this device, where tasks are made of it; one that holds nothing stays."""
        del device
        return self

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError(f"{type(self).__name__} has no end; take tasks by index: source[0:100]")
        return self.size

    def __getitem__(self, which: int | slice | Sequence[int]) -> TaskBatch:
        if isinstance(which, int):
            which = [which]
        elif isinstance(which, slice):
            which = list(self._range(which))
        checks.count("the number of tasks asked for", len(which))
        for index in which:
            checks.count("a task index", index, least=0)
            if self.size is not None and index >= self.size:
                raise IndexError(f"task {index} does not exist: this source has {self.size} tasks")
        return self.batch(which)

    def _range(self, which: slice) -> range:
        if self.size is None and (which.stop is None or min(which.start or 0, which.stop) < 0):
            raise ValueError("a source without end needs slices with an end, counted from its start: source[0:100]")
        return range(*which.indices(self.size if self.size is not None else which.stop))

    def meta_batch(self, step: int, tasks: int, seed: int, share: slice = slice(None)) -> TaskBatch:
        """Return the tasks of one meta-step: a function of (step, tasks, seed) alone, so any step can be replayed.

        A limited source is read in shuffled epochs, an unlimited one in order.

        Args:
            share: which of the tasks are wanted, such as those of one process; the others are not made.
        """
        return self[list(self._order(step * tasks, tasks, seed))[share]]

    def _order(self, first: int, tasks: int, seed: int) -> Iterator[int]:
        permutations: dict[int, list[int]] = {}
        for draw in range(first, first + tasks):
            if self.size is None:
                yield draw
                continue
            epoch, place = divmod(draw, self.size)
            if epoch not in permutations:
                shuffle = generator(seed, epoch)
                permutations[epoch] = torch.randperm(self.size, generator=shuffle).tolist()
            yield permutations[epoch][place]


class FirstTasks(TaskSource):
    """The first tasks of a source, such as those to test on, made when they are asked for.

    Args:
        source: of at least as many tasks.
        count: how many.
    """

    def __init__(self, source: TaskSource, count: int) -> None:
        checks.count("count", count)
        self.source, self.size = source, count

    def to(self, device: torch.device | str) -> TaskSource:
        """Let what the source holds lie on this device."""
        self.source.to(device)
        return self

    def batch(self, indices: Sequence[int]) -> TaskBatch:
        """Return the source's tasks with these indices."""
        return self.source[indices]


class StackedTasks(TaskSource):
    """A limited source held in memory as one `TaskBatch`."""

    def __init__(self, tasks: TaskBatch) -> None:
        self.tasks = tasks
        self.size = len(tasks)

    def batch(self, indices: Sequence[int]) -> TaskBatch:
        """Return the tasks with these indices by one indexing operation a tensor."""
        which = torch.as_tensor(indices, device=self.tasks.support.x.device)

        def take(batch: Batch) -> Batch:
            return Batch(batch.x[which], batch.y[which], None if batch.mask is None else batch.mask[which])

        return TaskBatch(take(self.tasks.support), take(self.tasks.query))


def generator(*key: int) -> torch.Generator:
    """Return a CPU generator whose seed is a hash of the key, such as (seed, task index).

    NumPy's ``SeedSequence`` does the hashing, so that neighbouring keys give independent streams. Draw with
    ``torch.rand(..., dtype=torch.float64)`` and ``randperm``, which are the same on every machine.
    """
    for number in key:
        checks.count("a seed or index", number, least=0)
    # Length and both halves of every number: SeedSequence pads with zeros and splits numbers into 32-bit words, so
    # that (0,) and (0, 0), or (2³²,) and (0, 1), would be the same to it.
    words = [len(key), *(word for number in key for word in (number & 0xFFFFFFFF, number >> 32))]
    (state,) = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))
