"""The decoder study as rows for the terminal and as Markdown."""

from __future__ import annotations

from typing import Any

from .meta_gradient_report import where
from .work_precision_report import Rows, error, markdown

COLUMNS = ["", "seconds", "CPU seconds", "to unrolling", "extra MiB", "to unrolling", "error"]
BASELINE = "plain unrolling"


def report(result: dict[str, Any]) -> str:
    """Return the whole study as Markdown."""
    parts = [f"# The meta-gradient of a decoder, `{result['budget']}` budget", headline(result)]
    parts.append("\n".join(f"* {line}" for line in result["workloads"]))
    for title, rows in tables(result):
        parts += [f"## {title}", markdown(COLUMNS, rows)]
    if result["notes"]:
        parts += ["## Left out", "\n".join(f"* {line}" for line in result["notes"])]
    return "\n\n".join(parts) + "\n"


def headline(result: dict[str, Any]) -> str:
    """Return where and how it was measured."""
    times = "one measurement" if result["repeats"] == 1 else f"medians of {result['repeats']} taken in turns"
    return (
        f"{where(result)}; {times}, each contestant in a process of its own; times are compared by the processor's "
        "seconds. Errors are relative, against the same meta-gradient in float64."
    )


def tables(result: dict[str, Any]) -> list[tuple[str, Rows]]:
    """Return a table a number of steps: its title, and a row a contestant."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in result["entries"]:
        steps = f"{entry['steps']} step{'' if entry['steps'] == 1 else 's'}"
        found.setdefault(f"{entry['course']}, {steps}", []).append(entry)
    return [(title, [_row(entry, entries) for entry in entries]) for title, entries in found.items()]


def _row(entry: dict[str, Any], entries: list[dict[str, Any]]) -> list[str]:
    baseline = next((each for each in entries if each["contestant"] == BASELINE), None)

    def ratio(what: str) -> str:
        return f"{entry[what] / baseline[what]:.2f}" if baseline and baseline[what] else "–"

    return [
        entry["contestant"],
        f"{entry['seconds']:.3g}",
        f"{entry['cpu_seconds']:.3g}",
        ratio("cpu_seconds"),
        f"{entry['extra_mib']:.0f}",
        ratio("extra_mib"),
        error(entry["error"]),
    ]
