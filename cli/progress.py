"""Progress of a run or a study: a bar with rate and time left on a terminal, else plain lines; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Seconds between plain lines: a log stays readable, and a watcher knows that the run lives.
PLAIN_INTERVAL = 5.0


@contextmanager
def progress(meta_steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that shows the record of each meta-step."""
    if not sys.stderr.isatty():
        yield _plain(meta_steps)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("meta-step"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task("", total=meta_steps, rate="", figures="")
        started: list[int] = []

        def show(record: dict[str, Any]) -> None:
            if not started:  # a resumed run's steps were not taken in this bar's time
                started.append(record["step"])
                bar.reset(task, completed=record["step"] - 1)
            bar.update(task, completed=record["step"], rate=_rate(record), figures=_figures(record))

        yield show


def _plain(meta_steps: int) -> Callable[[dict[str, Any]], None]:
    shown = [0.0]
    first: list[tuple[int, float]] = []

    def show(record: dict[str, Any]) -> None:
        now = time.monotonic()
        first[:] = first or [(record["step"], now)]
        done = record["step"] - first[0][0]
        if now - shown[0] < PLAIN_INTERVAL and record["step"] != meta_steps and "skipped" not in record:
            return
        shown[0] = now
        left = (now - first[0][1]) / done * (meta_steps - record["step"]) if done else None
        eta = f"  {left:.0f} s left" if left is not None else ""
        print(f"meta-step {record['step']}/{meta_steps}  {_figures(record)}{eta}", file=sys.stderr, flush=True)

    return show


def _rate(record: dict[str, Any]) -> str:
    return f"{1 / record['seconds']:.1f}/s"


def _figures(record: dict[str, Any]) -> str:
    if record["loss"] is None:
        return f"skipped: {record['skipped']}"
    validation = f"  validation {record['validation']:.4f}" if "validation" in record else ""
    return f"loss {record['loss']:.4f}  gradient {record['grad_norm']:.3g}{validation}"


@contextmanager
def counted() -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function that shows how far long work is: (done, of how many, what is at hand)."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def _lines() -> Callable[[int, int, str], None]:
    first: list[tuple[float, int]] = []
    shown = [0.0]

    def show(done: int, total: int, what: str) -> None:
        now = time.monotonic()
        first[:] = first or [(now, done)]
        if now - shown[0] < PLAIN_INTERVAL and done != total:
            return
        shown[0] = now
        began, at = first[0]
        left = f"  {(now - began) / (done - at) * (total - done):.0f} s left" if done > at else ""
        print(f"{done}/{total}  {what}{left}", file=sys.stderr, flush=True)

    return show
