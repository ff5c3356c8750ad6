"""Tables for people: rich on a terminal, plain text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, numbers: bool = False
) -> None:
    """Print a table for a person at a terminal, or aligned lines without wrapping for a file or a pipe.

    Args:
        numbers: every column but the first lines up on the right.
    """
    if not sys.stdout.isatty():
        _plain(columns, rows, title, numbers)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title and escape(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if numbers and index else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def _plain(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None, numbers: bool) -> None:
    if title:
        click.echo(title)
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = [
            cell.rjust(width) if numbers and index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def show_test(summary: dict[str, Any]) -> None:
    """Print the test result of a summary, with units, baselines and the verdict."""
    test = summary["test"]
    units = {test["metric"]: test, **{name: value for name, value in test.items() if isinstance(value, dict)}}
    units.pop("baselines", None)
    rows = []
    for name, part in units.items():
        label = name if name == test["metric"] else f"RMSE ({name})"
        figures = (f"{part[key]:.4f}" for key in ("before", "after"))
        rows.append([label, *figures, f"± {part['ci95']:.4f}", f"{part['std']:.4f}"])
    for name, value in test.get("baselines", {}).items():
        rows.append([f"  {name.replace('_', ' ')} ({test['metric']})", "", f"{value:.4f}", "", ""])
    changed = "".join(f", {key.replace('_', ' ')} {value}" for key, value in summary.get("changed", {}).items())
    show_table(
        ["", "before", "after", "95 % interval", "std over tasks"],
        rows,
        title=f"{summary['experiment']} · {summary['method']}{changed} · {test['tasks']} test tasks",
        numbers=True,
    )
    click.echo()
    click.echo(summary["verdict"])
    if summary.get("test_adam"):
        shown = ", ".join(
            f"{epoch}: {'not finite' if value is None else f'{value:.3f}'}"
            for epoch, value in summary["test_adam"].items()
        )
        click.echo(f"{test['metric']} by epochs of Adam from the same start: {shown}")
