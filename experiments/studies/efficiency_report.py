"""Seconds and memory against inner steps beside the papers' figures, in words, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from ..plots import GREEN, ORANGE, RED, figure
from ..report import Picture, Report, Table
from ..statistics import Interval
from .contestants import CONVEX
from .curve_plot import draw_curve, draw_printed, hollow, plain_ticks
from .meta_gradient_plot import STYLES as BENCH_STYLES
from .meta_gradient_report import label
from .published import CARD, CARD_MIB, MEMORY_3, SECONDS_4, STEPS_3
from .published_imaml import MEMORY_2B, SECONDS_2B, STEPS_2B

Entries = Sequence[Mapping[str, Any]]

FLOW_METHODS = (
    *("MAML", "MAML checkpointed", "A-MAML rk4", "A-MAML Heun", "iMAML", "FOMAML", "Reptile"),
    "torch.func unrolled",
)
IMPLICIT_METHODS = (
    *("MAML", "FOMAML", "iMAML with 2 CG steps", "iMAML with 5 CG steps", "iMAML with 10 CG steps"),
    "torch.func unrolled",
)
STYLES = {
    **BENCH_STYLES,
    "A-MAML Heun": (ORANGE, "*"),
    "iMAML with 2 CG steps": (ORANGE, "s"),
    "iMAML with 5 CG steps": (GREEN, "D"),
    "iMAML with 10 CG steps": (RED, "^"),
}
# The A-MAML paper's curves, and which of ours is the same method.
PRINTED_3 = {"A-MAML": "A-MAML Heun", "MAML": "MAML", "FOMAML": "FOMAML", "iMAML": "iMAML", "Reptile": "Reptile"}
# Less growth of the peak cannot be told from what the process does besides.
LEAST_MIB = 0.25


def report(races: Sequence[Mapping[str, Any]], notes: Sequence[str], setting: Mapping[str, Any]) -> Report:
    """Return the report.

    Args:
        races: entries of the regression course, and of the Omniglot course.
        notes: what was left out, and why.
    """
    flow, implicit = (race["entries"] for race in races)
    return Report(
        title="Time and memory of a meta-gradient against inner steps",
        question=(
            "What does one meta-gradient cost as the inner problem gets longer? The A-MAML paper's Figures 3 and 4 "
            "(CosMixture, 5 tasks, 100 + 100 points) and iMAML's Figure 2b (20-way 5-shot Omniglot network) again: "
            "every method in a process of its own, so that its peak of memory is its own, with an ordinary unrolled "
            "graph (torch.func) for comparison."
        ),
        findings=[*_flow_findings(flow), *_implicit_findings(implicit)],
        parts=[
            _figures_34(flow),
            _table(flow, "Figures 3 and 4: CosMixture, 5 tasks", _printed_flow),
            _figure_2b(implicit),
            _table(implicit, f"Figure 2b: Omniglot network, {_tasks(implicit)}", _printed_implicit),
            *(f"Left out: {line}" for line in notes),
        ],
        records=[dict(entry) for entry in (*flow, *implicit)],
        departures=[
            f"The paper's seconds are an {CARD}'s, and iMAML's of hardware not stated; ours are of "
            f"{setting['device']}: compare shapes and ratios between methods, not seconds.",
            "Memory here is the growth of the process's peak (or of the allocator's on a GPU) during one "
            "meta-gradient, without Python and torch; the A-MAML paper prints shares of a 24 GiB card, allocator "
            "included, and the iMAML paper an axis without units, drawn here relative to MAML at the most steps.",
            "A-MAML Heun keeps a state for each step of gradient descent and steps the costate by Heun's method, as in "
            "the paper, whose forward solver is DOPRI5; A-MAML rk4 takes one step for ten, which is what we would use.",
            f"iMAML's figure does not state its batch; ours is {_tasks(implicit)} of random images, since pixels do "
            "not change the cost. The network is iMAML's: four convolutions of stride 2, 64 filters. λ is "
            f"{CONVEX:g}, not the paper's 2, with which conjugate gradients meet negative curvature at this random "
            "initialisation, stop early, and cost less than they should.",
        ],
        setting=setting,
    )


def _tasks(entries: Entries) -> str:
    count = entries[0]["tasks"] if entries else 0
    return "1 task" if count == 1 else f"{count} tasks"


def _series(entries: Entries, name: str, backend: str = "eager") -> dict[int, Mapping[str, Any]]:
    return {e["steps"]: e for e in entries if (e["contestant"], e["backend"]) == (name, backend)}


def _flow_findings(entries: Entries) -> list[str]:
    lines = []
    for name in ("torch.func unrolled", "MAML", "MAML checkpointed", "A-MAML rk4", "A-MAML Heun", "iMAML", "FOMAML"):
        series = {n: e for n, e in _series(entries, name).items() if n >= 10}
        if len(series) < 2:
            continue
        low, high = min(series), max(series)
        extra = [max(series[n]["extra_mib"], LEAST_MIB) for n in (low, high)]
        power = math.log(series[high]["seconds"] / series[low]["seconds"]) / math.log(high / low)
        lines.append(
            f"{name}: {series[low]['extra_mib']:.1f} MiB at {low} steps, {series[high]['extra_mib']:.1f} at {high} "
            f"({extra[1] / extra[0]:.1f} times as much for {high / low:.0f} times the steps); seconds grow as steps to "
            f"the power {power:.2f}."
        )
    maml, flow = (_series(entries, name) for name in ("MAML", "A-MAML rk4"))
    shared = sorted(set(maml) & set(flow))
    if shared:
        n = shared[-1]
        ratio = maml[n]["seconds"] / flow[n]["seconds"]
        lines.append(
            f"At {n} steps A-MAML by rk4 takes {1 / ratio:.2f} of MAML's seconds (one rk4 step for ten of GD)."
        )
    for name in ("MAML", "A-MAML rk4"):
        for n, each in list(_series(entries, name, "compile").items())[-1:]:
            if n in _series(entries, name):
                gain = _series(entries, name)[n]["seconds"] / each["seconds"]
                lines.append(f"Compiled, {name} is {gain:.1f} times as fast at {n} steps.")
    return lines


def _implicit_findings(entries: Entries) -> list[str]:
    lines = []
    maml = _series(entries, "MAML")
    for name, paper in ((f"iMAML with {cg} CG steps", _cross(STEPS_2B, SECONDS_2B, cg)) for cg in (2, 5, 10)):
        series = _series(entries, name)
        steps = sorted(set(maml) & set(series))
        if not steps:
            continue
        ours = crossing(steps, [maml[n]["seconds"] for n in steps], [series[n]["seconds"] for n in steps])
        lines.append(f"MAML takes longer than {name} {_from(ours)} (paper: {_from(paper)}).")
    growth = []
    for name in ("MAML", "iMAML with 5 CG steps", "torch.func unrolled"):
        series = _series(entries, name)
        if len(series) > 1:
            low, high = min(series), max(series)
            change = series[high]["extra_mib"] / max(series[low]["extra_mib"], LEAST_MIB)
            growth.append(f"{name} {change:.1f} times from {low} to {high} steps")
    if growth:
        lines.append(
            f"Memory on the Omniglot network grows by: {'; '.join(growth)} (paper: MAML 8.8, iMAML 1.0 times)."
        )
    return lines


def crossing(steps: Sequence[int], rising: Sequence[float], other: Sequence[float]) -> float | None:
    """Return where the first curve comes to lie above the second for good; ``None`` if it never does."""
    above = [a > b for a, b in zip(rising, other, strict=True)]
    if not above[-1]:
        return None
    last = max((i for i, each in enumerate(above) if not each), default=-1)
    if last < 0:
        return float(steps[0])
    gaps = [rising[i] - other[i] for i in (last, last + 1)]
    return steps[last] + (steps[last + 1] - steps[last]) * -gaps[0] / (gaps[1] - gaps[0])


def _cross(steps: Sequence[int], table: Mapping[str, Sequence[float | None]], cg: int) -> float | None:
    rows = zip(steps, table["MAML"], table[f"iMAML with {cg} CG steps"], strict=True)
    known = [(n, a, b) for n, a, b in rows if a is not None and b is not None]
    return crossing([n for n, _, _ in known], [a for _, a, _ in known], [b for _, _, b in known])


def _from(steps: float | None) -> str:
    return "at no number of steps here" if steps is None else f"from {steps:.0f} steps on"


def _printed_flow(name: str, steps: int, quantity: str) -> str:
    column = next((paper for paper, ours in PRINTED_3.items() if ours == name), None)
    if column is None or steps not in STEPS_3:
        return "–"
    value = (SECONDS_4 if quantity == "seconds" else MEMORY_3)[column][STEPS_3.index(steps)]
    if value is None:
        return "–" if quantity == "seconds" else "out of memory"
    return f"{value:g}" if quantity == "seconds" else f"{100 * value:.1f} %"


def _printed_implicit(name: str, steps: int, quantity: str) -> str:
    table = SECONDS_2B if quantity == "seconds" else MEMORY_2B
    value = table[name][STEPS_2B.index(steps)] if name in table and steps in STEPS_2B else None
    return "–" if value is None else f"{value:g}"


def _table(entries: Entries, title: str, printed: Any) -> Table:
    rows = []
    for entry in sorted(entries, key=lambda e: (e["steps"], e["backend"])):
        name, steps = entry["contestant"], entry["steps"]
        eager = entry["backend"] == "eager"
        rows.append(
            [
                f"{steps} steps, {label(dict(entry))}",
                f"{entry['seconds']:.3g}",
                printed(name, steps, "seconds") if eager else "–",
                f"{entry['extra_mib']:.1f}",
                printed(name, steps, "extra_mib") if eager else "–",
            ]
        )
    note = (
        "One meta-gradient, medians; on a CPU the seconds that the processor spent on it. The paper's columns are of "
        "other hardware and in its own units."
    )
    return Table(title, ["", "seconds", "paper, s", "extra MiB", "paper, memory"], rows, note)


def _figures_34(entries: Entries) -> Picture:
    made, panels = figure(2, width=5.3, height=5.0)
    for axes, quantity in zip(panels, ("seconds", "extra_mib"), strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        _draw(axes, entries, quantity, 1.0)
        table, scale = (SECONDS_4, 1.0) if quantity == "seconds" else (MEMORY_3, CARD_MIB)
        for paper, ours in PRINTED_3.items():
            values = [None if value is None else scale * value for value in table[paper]]
            draw_printed(axes, STEPS_3, values, STYLES[ours])
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


def _figure_2b(entries: Entries) -> Picture:
    made, panels = figure(2, width=5.3, height=4.8)
    units = _units(entries)
    for axes, quantity in zip(panels, ("seconds", "extra_mib"), strict=True):
        _draw(axes, entries, quantity, units[quantity][0])
        table = SECONDS_2B if quantity == "seconds" else MEMORY_2B
        for name, values in table.items():
            draw_printed(axes, STEPS_2B, [None if v is None else v / units[quantity][1] for v in values], STYLES[name])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("inner gradient steps")
        axes.set_ylabel(f"{'time' if quantity == 'seconds' else 'memory'}, MAML at {units['steps'][0]:g} steps = 1")
    panels[0].set_title("Figure 2b: time", fontsize=10)
    panels[1].set_title("Figure 2b: memory", fontsize=10)
    _legend(made, panels[0], "hollow: the paper's figure")
    caption = (
        f"Time and peak extra memory of one meta-gradient of the Omniglot network, 20-way 5-shot, {_tasks(entries)}, "
        "in units of MAML's, since the paper's hardware and unit of memory are not stated."
    )
    return Picture("figure_2b", caption, made)


def _units(entries: Entries) -> dict[str, tuple[float, float]]:
    """Return MAML's seconds and memory at the most steps that both we and the paper have: ours, the paper's."""
    maml = {n: e for n, e in _series(entries, "MAML").items() if n in STEPS_2B}
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
        series = _series(entries, name, backend)
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
