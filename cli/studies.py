"""What `compare` and `reproduce` share: progress with time left, Ctrl-C that keeps what is done, the result shown."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .progress import PLAIN_INTERVAL

if TYPE_CHECKING:
    from adjoint_meta.experiments.report import Report


@contextmanager
def long_work(again: str) -> Iterator[tuple[Callable[[int, int, str], None], Callable[[], bool]]]:
    """Yield a function that shows how far the work is, and one that says whether to stop.

    The first Ctrl-C or SIGTERM asks the work to stop where it can go on later, the second one stops at once.

    Args:
        again: the command that continues.
    """
    from adjoint_meta.experiments.run import Interrupted

    wishes: list[int] = []

    def handle(number: int, frame: object) -> None:
        wishes.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        click.echo("Stopping where it can go on later; again to stop at once.", err=True)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _bar() as show:
            yield show, lambda: bool(wishes)
    except (Interrupted, KeyboardInterrupt) as stopped:
        click.echo(f"Go on with: {again}", err=True)
        raise click.Abort from stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None]]:
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
        TimeRemainingColumn(elapsed_when_finished=False),
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


def show_report(report: Report, results: dict[str, Any], out: Path, as_json: bool) -> None:
    """Print the results as JSON, or tables and findings for a person."""
    if as_json:
        click.echo(json.dumps({**results, "out": str(out)}))
        return
    from adjoint_meta.experiments.report import Table

    from .tables import show_table

    for part in report.parts:
        if isinstance(part, Table):
            rows = [[cell.removeprefix("*") for cell in row] for row in part.rows]
            show_table(part.columns, rows, title=part.title, numbers=True)
            click.echo()
    for line in report.findings:
        click.echo(f"* {line}")
    click.echo(f"See report.html, table.md, table.csv and results.json in {out}")
