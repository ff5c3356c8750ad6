"""What `compare` and `reproduce` share: progress with time left, Ctrl-C that keeps what is done, the result shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .interrupt import stop_on_signal
from .progress import counted

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

    def stopping() -> None:
        click.echo("Stopping where it can go on later; again to stop at once.", err=True)

    try:
        with stop_on_signal(stopping) as stop, counted() as show:
            yield show, stop
    except (Interrupted, KeyboardInterrupt) as stopped:
        click.echo(f"Go on with: {again}", err=True)
        raise click.Abort from stopped


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
