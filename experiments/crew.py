"""Many runs, by one process or several: finished ones are skipped, others continued from their checkpoints."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adjoint_meta.solvers import checks

from . import run
from .allocator import keep_large_blocks
from .config import RunConfig
from .measure import reset_peak_memory
from .prepare import choose_device
from .run_directory import RunDirectory

# (meta-steps done, of how many, what happens) → None.
Observer = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Args:
        name: what it is called in tables, such as a method.
        config: the whole run.
        path: its directory.
    """

    name: str
    config: RunConfig
    path: Path


@dataclass(frozen=True)
class Finished:
    """A run that was made: the summary of its directory, and what came out for each test task."""

    job: Job
    summary: dict[str, Any]
    outcomes: dict[str, Any]


def work(
    jobs: Sequence[Job],
    *,
    processes: int = 1,
    data_dir: Path | None = None,
    observe: Observer = lambda done, total, what: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Finished]:
    """Make the runs that are not finished yet, and return all of them in order.

    Args:
        processes: how many at once, each with its share of the processor's threads.
        observe: sees the number of meta-steps done.
        should_stop: asked between meta-steps; unfinished runs keep their checkpoints.

    Raises:
        Interrupted: if ``should_stop`` said so.
        ValueError: if a directory holds another run, or a configuration cannot work.
        RuntimeError: if a run failed.
    """
    left = [job for job in jobs if not _finished(job)]
    tally = _Tally(jobs, left, observe)
    if processes == 1 or len(left) == 1:
        for job in left:
            _make(job, data_dir, tally.step, should_stop)
    elif left:
        _side_by_side(left, min(processes, len(left)), data_dir, tally, should_stop)
    return [_read(job) for job in jobs]


def processes(asked: int | None, device: str | None) -> int:
    """Return how many processes work at once: what was asked for, else one a core, up to 8, and one on a GPU.

    Raises:
        ValueError: for a number below one, or a device that is not here.
    """
    where = choose_device(device or "auto")
    if asked is not None:
        checks.count("jobs", asked)
        return asked
    return 1 if where.type == "cuda" else min(os.cpu_count() or 1, 8)


class _Tally:
    """Counts the meta-steps of all runs."""

    def __init__(self, jobs: Sequence[Job], left: Sequence[Job], observe: Observer) -> None:
        waiting = {job.path for job in left}
        self._total = sum(job.config.meta_steps for job in jobs)
        self._done = {str(job.path): 0 if job.path in waiting else job.config.meta_steps for job in jobs}
        self._names = {str(job.path): f"{job.name}, seed {job.config.seed}" for job in jobs}
        self._observe = observe

    def step(self, path: str, step: int) -> None:
        """Note that a run has done so many meta-steps."""
        self._done[path] = step
        self._observe(sum(self._done.values()), self._total, self._names[path])


def _finished(job: Job) -> bool:
    directory = RunDirectory(job.path)
    if not directory.config.exists():
        return False
    if directory.read_config() != job.config:
        raise ValueError(f"{job.path} holds a run of another configuration; choose another --out")
    return directory.summary.exists() and directory.outcomes.exists()


def _make(job: Job, data_dir: Path | None, step: Callable[[str, int], None], should_stop: Callable[[], bool]) -> None:
    reset_peak_memory(choose_device(job.config.device))  # runs before this one in the process are not its own
    try:
        run.train(
            job.config,
            RunDirectory(job.path),
            data_dir=data_dir,
            resume=True,
            observe=lambda record: step(str(job.path), record["step"]),
            should_stop=should_stop,
        )
    except RuntimeError as error:
        raise RuntimeError(f"{job.name}, seed {job.config.seed} ({job.path}): {error}") from error


def _read(job: Job) -> Finished:
    directory = RunDirectory(job.path)
    return Finished(
        job,
        json.loads(directory.summary.read_text(encoding="utf-8")),
        json.loads(directory.outcomes.read_text(encoding="utf-8")),
    )


def _side_by_side(
    jobs: Sequence[Job], processes: int, data_dir: Path | None, tally: _Tally, should_stop: Callable[[], bool]
) -> None:
    # Not forked: a fork of a process whose torch has started threads may hang.
    context = multiprocessing.get_context("spawn")
    stop, steps = context.Event(), context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(processes, context, _begin, (stop, steps, threads)) as pool:
        # Ctrl-C reaches every process of the terminal, those too that are still importing; the first one decides.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        waiting: set[Future[None]] = {pool.submit(_make_here, job, data_dir) for job in jobs}
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                while not steps.empty():
                    path, said = steps.get()
                    if isinstance(said, Warning):
                        warnings.warn(said, stacklevel=4)
                    else:
                        tally.step(path, said)
                if should_stop():
                    stop.set()
                for each in done:
                    each.result()
        except BaseException:
            stop.set()
            for each in waiting:
                each.cancel()
            raise


# Of a process of the pool: whether it should stop, and where its meta-steps and warnings are reported.
_pool: dict[str, Any] = {}


def _begin(stop: Any, steps: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    keep_large_blocks()
    _pool.update(stop=stop, steps=steps, shown=0.0)

    def show(message: Warning | str, category: type[Warning], *where: Any, **others: Any) -> None:
        steps.put(("", category(str(message))))

    warnings.showwarning = show
    warnings.simplefilter("always", RuntimeWarning, append=True)


def _make_here(job: Job, data_dir: Path | None) -> None:
    if _pool["stop"].is_set():
        raise run.Interrupted(0)

    def step(path: str, number: int) -> None:
        now = time.monotonic()
        if now - _pool["shown"] > 0.2 or number == job.config.meta_steps:
            _pool["shown"] = now
            _pool["steps"].put((path, number))

    _make(job, data_dir, step, _pool["stop"].is_set)
