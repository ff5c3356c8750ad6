"""The picture of the work-precision study: small multiples, one a horizon and initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from ..plots import BLUE, GREEN, GREY, ORANGE, RED

PURPLE, SKY, BLACK, LIGHT = "#CC79A7", "#56B4E9", "#000000", "#c8c8c8"

# curve → colour, line, marker: what is told apart by colour is told apart by its marker too.
STYLES: dict[str, tuple[str, Any, str]] = {
    "auto": (BLACK, "none", "*"),
    "rkc adaptive": (RED, "-", "o"),
    "bosh3 adaptive": (GREEN, "-", "s"),
    "tsit5 adaptive": (BLUE, "-", "^"),
    "rk4": (SKY, "-", "D"),
    "euler": (BLACK, "--", "v"),
    "released A-MAML code": (GREY, ":", "X"),
    "torchdiffeq dopri5": (ORANGE, ":", "P"),
    "torchdiffeq odeint_adjoint": (ORANGE, "none", "1"),
    "torchode tsit5": (PURPLE, ":", "p"),
}
NAMES = {
    "auto": "auto",
    "euler": "euler = MAML",
    "rk4": "rk4, fixed steps",
    "rkc adaptive": "rkc",
    "bosh3 adaptive": "bosh3",
    "tsit5 adaptive": "tsit5",
}
QUANTITIES = {
    "gradient_error": "relative error of the meta-gradient",
    "phi_error_moved": "error of φ(T), relative to ‖φ(T) − θ‖",
}
LOWEST, HIGHEST = 1e-6, 3.0


def draw(result: dict[str, Any], quantity: str) -> Figure:
    """Draw an error against evaluations a task, rows being initialisations and columns horizons.

    Args:
        result: of the study.
        quantity: a name of `QUANTITIES`.
    """
    starts = list(dict.fromkeys(each["start"] for each in result["references"]))
    horizons = list(dict.fromkeys(each["horizon"] for each in result["references"]))
    made = Figure(figsize=(3.5 * len(horizons) + 0.4, 3.2 * len(starts) + 1.2), layout="constrained", dpi=130)
    FigureCanvasAgg(made)
    panels = made.subplots(len(starts), len(horizons), sharex="col", sharey=True, squeeze=False)
    for row, start in enumerate(starts):
        for column, horizon in enumerate(horizons):
            axes = panels[row][column]
            _panel(axes, [p for p in result["points"] if (p["start"], p["horizon"]) == (start, horizon)], quantity)
            (reference,) = (r for r in result["references"] if (r["start"], r["horizon"]) == (start, horizon))
            axes.set_title(f"T = {horizon:g} · {start} θ · ‖H‖ ≤ {reference['radius']:.0f}", fontsize=10)
        panels[row][0].set_ylabel(QUANTITIES[quantity])
    for axes in panels[-1]:
        _label_evaluations(axes)
    shown = {point["curve"] for point in result["points"]}
    made.legend(handles=_legend(shown), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return made


def _panel(axes: Axes, points: Sequence[dict[str, Any]], quantity: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(LOWEST, HIGHEST)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    for target in (1e-2, 1e-3):
        axes.axhline(target, color="#cfcfcf", linewidth=1.2, zorder=1)
    curves = dict.fromkeys(point["curve"] for point in points)
    for curve in sorted(curves, key=lambda name: (name in STYLES, name == "auto")):
        found = [p for p in points if p["curve"] == curve and p["failed"] is None and _plotted(p)]
        _curve(axes, curve, sorted(found, key=lambda p: p["steps"] or -p["rtol"]), quantity)
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())


def _plotted(point: dict[str, Any]) -> bool:
    return point["adjoint"] == "discrete" or not point["own"]


def _label_evaluations(axes: Axes) -> None:
    """Put whole numbers under a column's shared axis, the fewer the wider it is."""
    low, high = axes.get_xlim()
    wide = high / low
    leading = (1,) if wide > 300 else (1, 3) if wide > 20 else (1, 2, 5)
    ticks = [m * 10.0**k for k in range(6) for m in leading]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("gradients + HVPs a task")


def _curve(axes: Axes, curve: str, points: Sequence[dict[str, Any]], quantity: str) -> None:
    """Draw one curve; points that are not to be trusted are hollow, and those off the picture lie on its edge."""
    colour, line, marker = STYLES.get(curve, (LIGHT, "-", ""))
    front = 2 if curve not in STYLES else 5 if curve == "auto" else 3
    x = [point["evaluations_a_task"] for point in points]
    y = [min(max(point[quantity], LOWEST), HIGHEST) for point in points]
    axes.plot(x, y, linestyle=line, color=colour, linewidth=1.1 if curve not in STYLES else 1.5, zorder=front)
    if not marker:
        return
    size = {"*": 11, "1": 8}.get(marker, 5)
    for trusted in (True, False):
        kept = [i for i, point in enumerate(points) if (point["trusted"] is not False) is trusted]
        axes.plot(
            [x[i] for i in kept],
            [y[i] for i in kept],
            linestyle="none",
            marker=marker,
            markersize=size,
            color=colour,
            markerfacecolor=colour if trusted else "white",
            markeredgecolor="white" if marker == "*" and trusted else colour,
            markeredgewidth=0.8,
            zorder=front + 0.5,
        )


def _legend(shown: set[str]) -> list[Line2D]:
    handles = []
    for curve, (colour, line, marker) in STYLES.items():
        if curve in shown:
            size = 9 if marker == "*" else 5
            label = NAMES.get(curve, curve)
            handles.append(Line2D([], [], color=colour, linestyle=line, marker=marker, markersize=size, label=label))
    if shown - STYLES.keys():
        handles.append(Line2D([], [], color=LIGHT, label="other solvers (see the table)"))
    hollow = Line2D(
        [], [], color=GREY, linestyle="none", marker="o", markersize=5, label="hollow: says not to trust it"
    )
    hollow.set_markerfacecolor("white")
    return [*handles, hollow]
