"""Seconds and memory against inner steps, drawn as the papers' figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from ..plots import GREEN, ORANGE, RED, figure
from ..report import Picture
from ..statistics import Interval
from .curve_plot import draw_curve, draw_printed, hollow, plain_ticks
from .meta_gradient_plot import STYLES as BENCH_STYLES
from .meta_gradient_report import label
from .published import CARD, CARD_MIB, MEMORY_3, SECONDS_4, STEPS_3
from .published_imaml import MEMORY_2B, SECONDS_2B, STEPS_2B

Entries = Sequence[Mapping[str, Any]]

STYLES = {
    **BENCH_STYLES,
    "A-MAML Heun": (ORANGE, "*"),
    "iMAML with 2 CG steps": (ORANGE, "s"),
    "iMAML with 5 CG steps": (GREEN, "D"),
    "iMAML with 10 CG steps": (RED, "^"),
}
# The papers' curves, and which of ours is the same method: their MAML keeps the graph of all inner steps.
UNROLLED = "torch.func unrolled"
SAME = {"A-MAML": "A-MAML Heun", "MAML": UNROLLED}
# Less growth of the peak cannot be told from what the process does besides.
LEAST_MIB = 0.25


def count_tasks(entries: Entries) -> str:
    """Return how many tasks were measured, in words."""
    count = entries[0]["tasks"] if entries else 0
    return "1 task" if count == 1 else f"{count} tasks"


def series_of(entries: Entries, name: str, backend: str = "eager") -> dict[int, Mapping[str, Any]]:
    """Return a contestant's entries by number of steps."""
    return {e["steps"]: e for e in entries if (e["contestant"], e["backend"]) == (name, backend)}


def figures_3_4(entries: Entries) -> Picture:
    """Draw Figures 3 and 4 of the A-MAML paper."""
    made, panels = figure(2, width=5.3, height=5.0)
    for axes, quantity in zip(panels, ("seconds", "extra_mib"), strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        _draw(axes, entries, quantity, 1.0)
        table, scale = (SECONDS_4, 1.0) if quantity == "seconds" else (MEMORY_3, CARD_MIB)
        for name, printed in table.items():
            values = [None if value is None else scale * value for value in printed]
            draw_printed(axes, STEPS_3, values, STYLES[SAME.get(name, name)])
        _logarithmic(axes, sorted({*STEPS_3, *(entry["steps"] for entry in entries)} - {20, 300}))
    panels[0].set_ylabel("seconds a meta-gradient")
    panels[1].set_ylabel("peak extra memory, MiB")
    panels[0].set_title("Figure 4: time", fontsize=10)
    panels[1].set_title("Figure 3: memory", fontsize=10)
    _legend(made, panels[0], f"hollow: printed, {CARD} (memory: share of its 24 GiB)")
    caption = (
        "Time and peak extra memory of one meta-gradient against inner steps, CosMixture, 5 tasks of 100 + 100 points; "
        "dashed lines: compiled. Hollow: the A-MAML paper, on a GPU, its allocator's reserve included."
    )
    return Picture("figures_3_4", caption, made)


def figure_2b(entries: Entries) -> Picture:
    """Draw Figure 2b of the iMAML paper."""
    made, panels = figure(2, width=5.3, height=4.8)
    units = _units(entries)
    for axes, quantity in zip(panels, ("seconds", "extra_mib"), strict=True):
        _draw(axes, entries, quantity, units[quantity][0])
        table = SECONDS_2B if quantity == "seconds" else MEMORY_2B
        for name, printed in table.items():
            values = [None if value is None else value / units[quantity][1] for value in printed]
            draw_printed(axes, STEPS_2B, values, STYLES[SAME.get(name, name)])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("inner gradient steps")
        axes.set_ylabel(f"{'time' if quantity == 'seconds' else 'memory'}, unrolled at {units['steps'][0]:g} steps = 1")
    panels[0].set_title("Figure 2b: time", fontsize=10)
    panels[1].set_title("Figure 2b: memory", fontsize=10)
    _legend(made, panels[0], "hollow: the paper's figure")
    caption = (
        "Time and peak extra memory of one meta-gradient of the Omniglot network, 20-way 5-shot, "
        f"{count_tasks(entries)}, in units of the unrolled graph's, since the paper's hardware and unit of memory are "
        "not stated."
    )
    return Picture("figure_2b", caption, made)


def _units(entries: Entries) -> dict[str, tuple[float, float]]:
    """Return the unrolled graph's seconds and memory, ours and the paper's, at the most steps that both have."""
    maml = {n: e for n, e in series_of(entries, UNROLLED).items() if n in STEPS_2B}
    steps = max((n for n in maml if SECONDS_2B["MAML"][STEPS_2B.index(n)] is not None), default=None)
    if steps is None:
        return {"seconds": (1.0, 1.0), "extra_mib": (1.0, 1.0), "steps": (math.nan, math.nan)}
    at = STEPS_2B.index(steps)
    seconds, memory = SECONDS_2B["MAML"][at] or 1.0, MEMORY_2B["MAML"][at] or 1.0
    ours = maml[steps]
    return {
        "seconds": (ours["seconds"], seconds),
        "extra_mib": (max(ours["extra_mib"], LEAST_MIB), memory),
        "steps": (float(steps), float(steps)),
    }


def _draw(axes: Axes, entries: Entries, quantity: str, unit: float) -> None:
    for name, backend in dict.fromkeys((entry["contestant"], entry["backend"]) for entry in entries):
        series = series_of(entries, name, backend)
        least = 0.0 if quantity == "seconds" else LEAST_MIB
        found = [Interval(max(each[quantity], least) / unit, 0.0) for each in series.values()]
        line = "-" if backend == "eager" else (0, (4, 2)) if backend == "compile" else ":"
        draw_curve(
            axes, list(series), found, STYLES[name], label({"contestant": name, "backend": backend}), linestyle=line
        )


def _logarithmic(axes: Axes, steps: Sequence[int]) -> None:
    plain_ticks(axes, steps)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    axes.set_yticks([10.0**k for k in range(math.floor(np.log10(low)), math.ceil(np.log10(high)) + 1)], minor=False)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("inner gradient steps")


def _legend(made: Any, axes: Axes, text: str) -> None:
    handles, _ = axes.get_legend_handles_labels()
    made.legend(
        handles=[*handles, hollow(text)], loc="outside lower center", ncols=3, frameon=False, fontsize=9, handlelength=3
    )
