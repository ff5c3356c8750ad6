"""The A-MAML paper's figures 3 and 4 again: time and memory of a meta-gradient against inner steps, with the peers."""

from __future__ import annotations

from math import ceil, floor, log10
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from ..plots import BLUE, GREEN, ORANGE, RED
from .meta_gradient_report import where
from .published import CARD, CARD_MIB, MEMORY_3, SECONDS_4, STEPS_3

# contestant → colour, marker: ours in colour, other packages in greys.
STYLES = {
    "MAML": (BLUE, "o"),
    "MAML checkpointed": ("#56B4E9", "s"),
    "A-MAML rk4": (RED, "^"),
    "A-MAML auto": (ORANGE, "*"),
    "iMAML": (GREEN, "D"),
    "FOMAML": ("#CC79A7", "v"),
    "Reptile": ("#7B4B94", "<"),
    "torch.func unrolled": ("#000000", "P"),
    "higher": ("#5a5a5a", "X"),
    "torchopt": ("#969696", "p"),
    "torchdiffeq adjoint": ("#8c6d31", "h"),
}
LINES: tuple[Any, ...] = ("-", "--", ":", "-.")
LABELS = {"seconds": "seconds a meta-gradient", "extra_mib": "peak extra memory, MiB"}
# Less cannot be told from what the process does besides.
LEAST_MIB = 0.5


def draw(result: dict[str, Any], quantity: str) -> Figure:
    """Draw a quantity against inner steps, a panel a course and a line a contestant.

    Args:
        result: of the study.
        quantity: "seconds" or "extra_mib".
    """
    entries = result["entries"]
    courses = list(dict.fromkeys(entry["course"] for entry in entries)) or ["nothing measured"]
    columns = min(2, len(courses))
    rows = ceil(len(courses) / columns)
    made = Figure(figsize=(5.6 * columns, 3.7 * rows + 1.2), layout="constrained", dpi=130)
    FigureCanvasAgg(made)
    panels = made.subplots(rows, columns, squeeze=False)
    kinds = list(dict.fromkeys(["eager", *(entry["backend"] for entry in entries)]))
    for index, axes in enumerate(panels.flat):
        if index >= len(courses):
            axes.set_visible(False)
            continue
        found = [entry for entry in entries if entry["course"] == courses[index]]
        _panel(axes, found, quantity, kinds)
        axes.set_title(courses[index], fontsize=10)
        axes.set_ylabel(LABELS[quantity])
        axes.set_xlabel("inner steps")
    printed = any(_printed(entry) for entry in entries)
    shown = {entry["contestant"] for entry in entries}
    handles = _legend(shown, kinds, printed, quantity)
    made.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    made.suptitle(where(result), fontsize=10, color="#5a5a5a")
    return made


def _printed(entry: dict[str, Any]) -> bool:
    """Return whether the paper's points belong to this course."""
    return bool((entry["workload"], entry["tasks"]) == ("regression", 5))


def _panel(axes: Axes, entries: list[dict[str, Any]], quantity: str, kinds: list[str]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    for name, kind in dict.fromkeys((entry["contestant"], entry["backend"]) for entry in entries):
        own = [entry for entry in entries if (entry["contestant"], entry["backend"]) == (name, kind)]
        colour, marker = STYLES[name]
        y = [entry[quantity] if quantity == "seconds" else max(entry[quantity], LEAST_MIB) for entry in own]
        line = LINES[kinds.index(kind) % len(LINES)]
        axes.plot([entry["steps"] for entry in own], y, line, color=colour, marker=marker, markersize=5, linewidth=1.5)
    if entries and _printed(entries[0]):
        _papers(axes, quantity)
    _label(axes, sorted({entry["steps"] for entry in entries}))


def _label(axes: Axes, steps: list[int]) -> None:
    """Put plain numbers at the steps measured, and at whole decades, of which at least one is seen."""
    axes.set_xticks(steps)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = (log10(limit) for limit in axes.get_ylim())
    axes.set_ylim(10 ** floor(low + 0.05), 10 ** ceil(high - 0.05))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _papers(axes: Axes, quantity: str) -> None:
    """Add what the paper prints, hollow."""
    table = SECONDS_4 if quantity == "seconds" else MEMORY_3
    for name, values in table.items():
        colour, marker = STYLES[{"A-MAML": "A-MAML rk4"}.get(name, name)]
        points = [(n, v) for n, v in zip(STEPS_3, values, strict=True) if v is not None and n >= 10]
        scale = 1.0 if quantity == "seconds" else CARD_MIB
        axes.plot(
            [n for n, _ in points],
            [scale * v for _, v in points],
            linestyle="none",
            marker=marker,
            markersize=5,
            markerfacecolor="white",
            markeredgecolor=colour,
            alpha=0.8,
        )


def _legend(shown: set[str], kinds: list[str], printed: bool, quantity: str) -> list[Line2D]:
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=5, label=name)
        for name, (colour, marker) in STYLES.items()
        if name in shown
    ]
    if len(kinds) > 1:
        handles += [
            Line2D([], [], color="#5a5a5a", linestyle=LINES[i % len(LINES)], label=f"backend {kind}")
            for i, kind in enumerate(kinds)
        ]
    if printed:
        what = f"hollow: printed in the paper, {CARD}" + (
            "" if quantity == "seconds" else ", share of the card's memory"
        )
        hollow = Line2D([], [], color="#5a5a5a", linestyle="none", marker="o", markersize=5, label=what)
        hollow.set_markerfacecolor("white")
        handles.append(hollow)
    return handles
