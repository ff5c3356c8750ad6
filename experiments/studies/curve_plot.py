"""Curves of the studies: a mean with its interval shaded, and what a paper prints as hollow markers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from ..statistics import Interval

# Colour, marker.
Style = tuple[str, str]


def draw_curve(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[Interval],
    style: Style,
    label: str,
    *,
    markevery: int = 1,
    **line: Any,
) -> None:
    """Draw means with their 95 % intervals shaded; on a logarithmic axis, set before, one that reaches zero is cut."""
    color, marker = style
    mean = np.array([each.mean for each in y])
    half = np.array([each.half for each in y])
    line = {"linewidth": 1.7, "markersize": 4.5, **line}
    axes.plot(x, mean, color=color, marker=marker, markevery=markevery, label=label, **line)
    low = mean - half
    if axes.get_yscale() == "log":
        low = np.where(low > 0, low, mean)
    axes.fill_between(x, low, mean + half, color=color, alpha=0.18, linewidth=0)


def draw_printed(axes: Axes, x: Sequence[float], y: Sequence[float | None], style: Style) -> None:
    """Draw what a paper prints, hollow; what it does not print is left out."""
    color, marker = style
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    axes.plot(
        [a for a, _ in points],
        [b for _, b in points],
        linestyle="none",
        marker=marker,
        markersize=6,
        markerfacecolor="white",
        markeredgecolor=color,
        zorder=3,
    )


def hollow(label: str) -> Line2D:
    """Return the legend's entry for printed values."""
    return Line2D(
        [], [], color="#666666", linestyle="none", marker="o", markersize=6, markerfacecolor="white", label=label
    )


def plain_ticks(axes: Axes, x: Sequence[float], names: Mapping[float, str] | None = None) -> None:
    """Put plain numbers at these points of a logarithmic x-axis, and plain numbers on y."""
    axes.set_xticks(list(x))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: (names or {}).get(value, f"{value:,.4g}")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
