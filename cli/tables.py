"""Tables for people: rich on a terminal, plain text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print a table; numbers line up on the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Not a terminal: as wide as the content, so that nothing is folded in a log.
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160).print(table)


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
    show_table(
        ["", "before", "after", "95 % interval", "std over tasks"],
        rows,
        title=f"{summary['experiment']} · {summary['method']} · {test['tasks']} test tasks",
    )
    click.echo()
    click.echo(summary["verdict"])
    if summary.get("test_adam"):
        shown = ", ".join(f"{epoch}: {value:.3f}" for epoch, value in summary["test_adam"].items())
        click.echo(f"{test['metric']} by epochs of Adam from the same start: {shown}")
