"""From iMAML to the flow in pictures: paths, distances, and test errors."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray
from scipy.linalg import expm

from ..plots import BLUE, GREEN, GREY, ORANGE, RED, figure
from ..report import Picture
from ..statistics import Interval, interval
from .curve_plot import draw_curve
from .implicit_to_flow_findings import FLOW, NAMES, Findings, own_errors

Array = NDArray[np.float64]

# A colour a horizon; a line style a solver.
HORIZONS = (BLUE, ORANGE, "#009E73", "#CC79A7")
LINES = {"implicit_euler": "-", "sdirk2": (0, (4, 2))}
MARKERS = {"implicit_euler": "o", "sdirk2": "s"}


def pictures(found: Findings) -> tuple[Picture, Picture, Picture]:
    """Return the paths in the plane, the distances from the flow, and the test errors."""
    return _paths(), _distances(found), _errors(found)


# A support loss ½φᵀAφ in the plane, and a query loss whose minimiser is elsewhere, in coordinates turned by 0.6.
_TURN = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
_A = _TURN @ np.diag([1.0, 0.13]) @ _TURN.T
_THETA = _TURN @ np.array([1.5, 1.3])
_QUERY = _TURN @ np.array([-1.0, 0.3])
_T = 4.0
_DRAWN = (1, 2, 4, 8, 32)


def _paths() -> Picture:
    """Draw implicit paths and their meta-gradients on a quadratic in the plane, from dense linear algebra."""
    made, (left, right) = figure(2, width=5.2, height=4.7)
    x, y = np.meshgrid(np.linspace(-1.4, 1.4, 200), np.linspace(-0.5, 2.3, 200))
    points = np.stack([x, y], axis=-1)
    loss = 0.5 * np.einsum("...i,ij,...j", points, _A, points)
    left.contour(x, y, np.sqrt(loss), levels=12, colors="#cfcfcf", linewidths=0.9)
    shades = colormaps["viridis"](np.linspace(0.0, 0.88, len(_DRAWN)))
    for color, n in zip(shades, _DRAWN, strict=True):
        step = np.linalg.inv(np.eye(2) + _T / n * _A)
        path = np.array([np.linalg.matrix_power(step, k) @ _THETA for k in range(n + 1)])
        label = "n = 1: iMAML" if n == 1 else f"n = {n}"
        left.plot(*path.T, "-", marker="o", color=color, markersize=5 if n < 8 else 2.5, linewidth=1.6, label=label)
        _arrow(right, np.linalg.matrix_power(step, n) @ (path[-1] - _QUERY), color)
    flow = np.array([expm(-t * _A) @ _THETA for t in np.linspace(0, _T, 200)])
    left.plot(*flow.T, color="black", linewidth=2.4, label="n → ∞: the flow", zorder=1.5)
    _arrow(right, expm(-_T * _A) @ (flow[-1] - _QUERY), "black")
    left.plot(*_THETA, "o", color="black", markersize=8)
    left.annotate("θ", _THETA, xytext=(6, 6), textcoords="offset points", fontsize=13)
    left.plot(0, 0, "x", color="#8a8a8a", markersize=7)
    left.annotate("minimiser", (0, 0), xytext=(7, -4), textcoords="offset points", fontsize=9, color="#6a6a6a")
    left.set_aspect("equal")
    left.set_title(f"adaptation to T = {_T:g} in n implicit steps", fontsize=10)
    left.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9, loc="lower left")
    _frame_arrows(right)
    for axes, what in ((left, "φ"), (right, "dJ/dθ")):
        axes.set_xlabel(f"{what}, first component")
        axes.set_ylabel(f"{what}, second component")
    caption = (
        "A quadratic support loss in the plane (contours), chosen so that the turn is seen. "
        "iMAML jumps to the proximal point in one implicit step; "
        "more and shorter steps bend onto the flow (left), and the meta-gradient turns with them (right)."
    )
    return Picture("paths", caption, made)


def _arrow(axes: Axes, end: Array, color: object) -> None:
    arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(end[0], end[1]), xytext=(0, 0), arrowprops=arrow)
    axes.plot(end[0], end[1], ".", color=color, markersize=2)


def _frame_arrows(axes: Axes) -> None:
    ends = np.array([line.get_xydata()[0] for line in axes.lines])  # type: ignore[index]
    low, high = np.minimum(ends.min(axis=0), 0), np.maximum(ends.max(axis=0), 0)
    middle, reach = (low + high) / 2, 0.6 * float((high - low).max())
    axes.set_xlim(middle[0] - reach, middle[0] + reach)
    axes.set_ylim(middle[1] - reach, middle[1] + reach)
    axes.set_aspect("equal")
    axes.set_title("the meta-gradient of each", fontsize=10)


def _distances(found: Findings) -> Picture:
    problems = list(dict.fromkeys(name for name, _ in found.cases))
    made, panels = figure(len(problems), width=3.9, height=4.6)
    for axes, problem in zip(panels, problems, strict=True):
        axes.set_yscale("log")
        horizons = [horizon for name, horizon in found.cases if name == problem]
        for color, horizon in zip(HORIZONS, horizons, strict=False):
            for solver, name in NAMES.items():
                n, errors = found.curve((problem, horizon), solver, "gradient")
                style = (color, MARKERS[solver])
                draw_curve(axes, n, errors, style, f"{name}, T = {horizon:g}", linestyle=LINES[solver])
        _slopes(axes, found, problem)
        axes.set_title(problem, fontsize=10)
        _steps_axis(axes, found)
    low = min(axes.get_ylim()[0] for axes in panels)
    high = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, high)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel("distance of the meta-gradient from the flow's")
    handles, labels = panels[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9, handlelength=3.6)
    caption = (
        "Relative distance of the meta-gradient from the flow's, against the number n of implicit steps to T = 1/λ; "
        "mean and 95 % interval over tasks. iMAML is the leftmost point of the solid lines. Grey: slopes of first and "
        "second order."
    )
    return Picture("distance", caption, made)


def _slopes(axes: Axes, found: Findings, problem: str) -> None:
    case = next(each for each in found.cases if each[0] == problem)
    for solver, order in (("implicit_euler", 1), ("sdirk2", 2)):
        n, errors = found.curve(case, solver, "gradient")
        if len(n) > 2:
            ends = np.array([n[-3], n[-1]], dtype=float)
            guide = 0.55 * errors[-1].mean * (ends / n[-1]) ** -order
            axes.plot(ends, guide, color="#9a9a9a", linewidth=1.1)


def _steps_axis(axes: Axes, found: Findings) -> None:
    steps = sorted({each["n"] for each in found.distances if each["n"] is not None})
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: "1\niMAML" if n == 1 else f"{n:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("implicit steps n")


def _errors(found: Findings) -> Picture:
    made, (left, right) = figure(2, width=5.4, height=4.4)
    colors = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", RED, GREY, "black")
    for (name, horizon), color in zip([case for case in found.cases if "CosMixture" in case[0]], colors, strict=False):
        flow = np.array(found.flow((name, horizon))["rmse"])
        along = found.along((name, horizon), "implicit_euler")
        excess = [_excess(np.array([each["rmse"]]), flow[None]) for each in along]
        draw_curve(left, [each["n"] for each in along], excess, (color, "o"), f"{name.split(', ')[1]}, T = {horizon:g}")
    _steps_axis(left, found)
    left.set_title("adapted from the same θ", fontsize=10)
    left.set_ylabel("test error in excess of the flow's, %")
    left.legend(frameon=False, fontsize=9)
    _trained(right, found)
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=1.2, zorder=1)
    caption = (
        "Test error on CosMixture in excess of the flow's, against the number of implicit Euler steps; below zero the "
        "implicit steps are better. Left: one initialisation, adapted by each. Right: each one's own meta-training, "
        "and its own adaptation. Paired mean and 95 % interval over test tasks."
    )
    return Picture("test_error", caption, made)


def _excess(values: Array, flow: Array) -> Interval:
    """Return the mean paired difference from the flow ``[seeds, tasks]``, in per cent of the flow's mean."""
    return interval(100 * (values - flow) / flow.mean())


def _trained(axes: Axes, found: Findings) -> None:
    values = own_errors(found.trained)
    flow = values.pop(FLOW)
    for place, errors in enumerate(values.values()):
        excess = _excess(errors, flow)
        axes.errorbar(place, excess.mean, yerr=excess.half, color=BLUE, marker="o", markersize=7, capsize=5)
    names = ["n = 1\niMAML" if name == "n = 1" else name for name in values]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylabel("test error in excess of the flow's, %")
    axes.set_title(f"meta-trained with n steps (the flow: {flow.mean():.3f})", fontsize=10)
