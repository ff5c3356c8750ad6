"""Meta-gradients side by side, as rows for the terminal and as Markdown."""

from __future__ import annotations

from typing import Any

from .work_precision_report import Rows, error, markdown

COLUMNS = ["", "seconds", "to MAML", "extra MiB", "error", "one-time s"]


def report(result: dict[str, Any]) -> str:
    """Return the whole study as Markdown."""
    parts = [
        f"# Meta-gradients side by side, `{result['budget']}` budget",
        headline(result),
        "\n".join(f"* {line}" for line in result["workloads"]),
        "![seconds against steps](meta_gradient_time.png)",
        "![peak memory against steps](meta_gradient_memory.png)",
    ]
    for title, rows in tables(result):
        parts += [f"## {title}", markdown(COLUMNS, rows)]
    if result["notes"]:
        parts += ["## Left out", "\n".join(f"* {line}" for line in result["notes"])]
    return "\n\n".join(parts) + "\n"


def headline(result: dict[str, Any]) -> str:
    """Return where and how it was measured."""
    return (
        f"{where(result)}; medians of {result['repeats']} taken in turns, each contestant in a process of its own. "
        "Errors are relative, against float64: reverse mode through the same steps, or the flow to a tight tolerance."
    )


def where(result: dict[str, Any]) -> str:
    """Return device, threads and precision."""
    threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
    return f"{result['device']}, {threads}, torch {result['torch']}, float32"


def tables(result: dict[str, Any]) -> list[tuple[str, Rows]]:
    """Return a table a course and number of steps: its title, and a row a contestant."""
    found: dict[str, Rows] = {}
    for entry in result["entries"]:
        steps = f"{entry['steps']} step{'' if entry['steps'] == 1 else 's'}"
        found.setdefault(f"{entry['course']}, {steps}", []).append(_row(entry))
    return list(found.items())


def label(entry: dict[str, Any]) -> str:
    """Return a contestant's name, with its backend where that is not eager."""
    name: str = entry["contestant"]
    return name if entry["backend"] == "eager" else f"{name}, {entry['backend']}"


def _row(entry: dict[str, Any]) -> list[str]:
    return [
        label(entry),
        f"{entry['seconds']:.3g}",
        "–" if entry["to_maml"] is None else f"{entry['to_maml']:.2f}",
        f"{entry['extra_mib']:.1f}",
        error(entry["error"]),
        "–" if entry["backend"] == "eager" else f"{entry['once']:.1f}",
    ]
