"""Several processes as one: who takes which tasks, and how what they find becomes what one process finds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from adjoint_meta.solvers import SolverError

from .tasks import TaskBatch

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

# What torchrun sets, and other launchers that follow it.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Seconds after which a process that does not answer is given up, and the variable that changes it.
TIMEOUT, TIMEOUT_VARIABLE = 600.0, "ADJOINT_META_TIMEOUT"


class ContactLost(RuntimeError):
    """Another process was killed, failed, or did not answer in time."""


class _Failure(NamedTuple):
    """An exception as the other processes are told of it."""

    rank: int
    kind: type[Exception]
    message: str

    @classmethod
    def of(cls, error: Exception, rank: int) -> _Failure:
        for kind in (SolverError, ValueError, TypeError, OSError, RuntimeError):
            if isinstance(error, kind):
                return cls(rank, kind, str(error))
        return cls(rank, RuntimeError, f"{type(error).__name__}: {error}")


class World:
    """The processes of a run, of which this is one. ``World()`` is a process alone, to which nothing is added.

    `gather`, `first`, `together`, `rows`, `sum` and `spread` are for all processes to call, in the same order. An
    exception that one of them meets inside is raised on all, so that none waits for it.

    Args:
        rank: number of this process; 0 leads, it alone writes.
        size: how many there are.
        local_rank: its number on its machine, which is that of its GPU.
        board: a store they share, by which a failure that ends the run is reported once.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, board: Store | None = None) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._board = board
        self._told: Exception | None = None
        self._wish: Callable[[], bool] = lambda: False
        self._stopping = False

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0

    def share(self, tasks: int) -> slice:
        """Return this process's part of so many tasks; contiguous, and as large as any other's or smaller by one."""
        return slice(self.rank * tasks // self.size, (self.rank + 1) * tasks // self.size)

    def gather(self, compute: Callable[[], T]) -> list[T]:
        """Return what the function returns on each process, in the order of ranks; it goes through pickle."""
        if self.size == 1:
            return [compute()]
        own, error = _outcome(compute)
        found: list[Any] = [None] * self.size
        with self._contact():
            dist.all_gather_object(found, (own, error and _Failure.of(error, self.rank)))
        self._raise([failure for _, failure in found if failure is not None], error)
        return [value for value, _ in found]

    def first(self, compute: Callable[[], T]) -> T:
        """Return what the function returns on the first process, which alone calls it; it goes through pickle."""
        if self.size == 1:
            return compute()
        own, error = _outcome(compute) if self.leads else (None, None)
        sent: list[Any] = [(own, error and _Failure.of(error, self.rank))]
        with self._contact():
            dist.broadcast_object_list(sent, src=0)
        value, failure = sent[0]
        self._raise([failure] if failure else [], error)
        found: T = value
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """Go on when all processes have come through the block; no collective may stand inside it."""
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        self.gather(lambda: _reraise(error))

    def rows(self, tasks: TaskBatch, compute: Callable[[TaskBatch], Tensor]) -> Tensor:
        """Return compute(tasks), one row a task, of which each process computes its share."""
        if self.size == 1:
            return compute(tasks)
        share = self.share(len(tasks))
        found = self.gather(lambda: compute(tasks[share]).cpu() if share.start < share.stop else None)
        return torch.cat([rows for rows in found if rows is not None]).to(tasks.support.x.device)

    def sum(self, compute: Callable[[], Tensor], like: Tensor) -> Tensor:
        """Return the sum over all processes of the vectors that the function returns, by one all-reduce.

        Args:
            like: a vector of their shape, dtype and device.
        """
        if self.size == 1:
            return compute()
        own, error = _outcome(compute)
        vector = torch.zeros_like(like) if own is None else own
        flags = torch.tensor([error is not None, self._wish()]).to(vector)
        total = torch.cat([vector, flags])
        with self._contact():
            dist.all_reduce(total)
        failed, stop = total[-2:].tolist()
        self._stopping = stop > 0
        if failed:
            self.gather(lambda: _reraise(error))
        return total[:-2]

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Give the tensors of all processes the values they have on the first."""
        if self.size > 1:
            with self._contact():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def stops(self, wish: Callable[[], bool]) -> bool:
        """Return the wish to stop: of a process alone that of now, of several what any wished at their last `sum`."""
        if self.size == 1:
            return wish()
        self._wish = wish
        return self._stopping

    def reports(self, error: BaseException) -> bool:
        """Whether this process is to report the error with which it ends: the first to ask is, the others are not."""
        if self._board is None:
            return True
        if error is self._told:
            return False  # the process that met it reports it
        try:
            return bool(self._board.add("reports", 1) == 1)
        except RuntimeError:
            return True  # the store went down with the process that held it

    def _raise(self, failures: list[_Failure], error: Exception | None) -> None:
        """Raise the failure that all processes agree on, if there is one: the first that is not a failed solve."""
        if not failures:
            return
        chosen = next((each for each in failures if each.kind is not SolverError), failures[0])
        if error is not None and _Failure.of(error, chosen.rank) == chosen:
            raise error
        self._told = chosen.kind(f"process {chosen.rank}: {chosen.message}")
        raise self._told

    @contextmanager
    def _contact(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ContactLost(
                f"process {self.rank} of {self.size} lost contact with the others: one failed, was killed or did not "
                f"answer for {_timeout():g} s ({TIMEOUT_VARIABLE} changes that). Start all again, "
                "from the last checkpoint"
            ) from error


ALONE = World()


@contextmanager
def processes() -> Iterator[World]:
    """Yield the processes that torchrun started, connected by gloo and, for tensors on GPUs, by NCCL; or one alone.

    Raises:
        ContactLost: if they cannot find each other.
    """
    if not launched():
        yield ALONE
        return
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    timeout = timedelta(seconds=_timeout())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except RuntimeError as error:
        raise ContactLost(f"the processes did not find each other: {error}") from error
    yield World(rank, size, int(os.environ.get("LOCAL_RANK", rank)), PrefixStore("adjoint_meta", store))
    dist.destroy_process_group()  # not after an exception: the others may never answer


def launched() -> bool:
    """Whether torchrun started this process beside others."""
    return all(name in os.environ for name in VARIABLES) and os.environ["WORLD_SIZE"] != "1"


def _timeout() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{TIMEOUT_VARIABLE} must be a positive number of seconds, got {text!r}")
    return seconds


def _outcome(compute: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return compute(), None
    except Exception as error:
        return None, error


def _reraise(error: Exception | None) -> None:
    if error is not None:
        raise error
