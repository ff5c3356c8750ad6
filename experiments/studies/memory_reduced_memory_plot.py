"""Memory and seconds of few-shot meta-gradients against inner steps, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..plots import BLUE, GREEN, ORANGE, figure
from ..report import Picture
from .curve_plot import plain_ticks

Entries = Sequence[Mapping[str, Any]]

# Colour, marker, dashes: a colour a method, dashed in plain torch.
STYLES: dict[str, tuple[str, str, str]] = {
    "memory-reduced": (BLUE, "o", "-"),
    "memory-reduced, all tasks at once": ("#56B4E9", "^", "-"),
    "ANIL and ITD-BiO": (GREEN, "s", "-"),
    "MAML, task by task": (ORANGE, "D", "-"),
    "plain Algorithm 1": (BLUE, "o", "--"),
    "plain ANIL": (GREEN, "s", "--"),
    "plain ITD-BiO": ("#CC79A7", "v", "--"),
    "plain MAML": (ORANGE, "D", "--"),
}
QUANTITIES = {"tensor_mib": "peak of tensors alive, MiB", "extra_mib": "peak extra memory, MiB", "seconds": "seconds"}


def series(entries: Entries, name: str, quantity: str) -> dict[int, float]:
    """Return a contestant's values by number of steps."""
    return {entry["steps"]: entry[quantity] for entry in entries if entry["contestant"] == name}


def picture(entries: Entries, name: str) -> Picture:
    """Draw one course: tensors, the whole process or allocator, and seconds."""
    made, panels = figure(3, width=4.6, height=4.6)
    steps = sorted({entry["steps"] for entry in entries})
    for axes, (quantity, label) in zip(panels, QUANTITIES.items(), strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for contestant, (color, marker, dashes) in STYLES.items():
            found = series(entries, contestant, quantity)
            axes.plot(
                list(found),
                list(found.values()),
                color=color,
                marker=marker,
                linestyle=dashes,
                markersize=5 if dashes == "-" else 6.5,
                linewidth=1.7,
                markerfacecolor=color if dashes == "-" else "white",
                label=contestant,
            )
        plain_ticks(axes, steps)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("inner steps")
        axes.set_ylabel(label)
    handles, _ = panels[0].get_legend_handles_labels()
    made.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9, handlelength=3)
    caption = (
        f"One meta-gradient of {entries[0]['course']}, 5-way 5-shot, against inner steps. Solid: this package; dashed: "
        "plain torch, task by task."
    )
    return Picture(name, caption, made)
