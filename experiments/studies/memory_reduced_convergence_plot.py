"""The pictures of the convergence of memory-reduced meta-learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..plots import BLUE, GREEN, GREY, ORANGE, RED, figure
from ..report import Picture
from ..statistics import Values
from .curve_plot import plain_ticks

# Curves by part/name: errors by inner steps and by products, ‖∇Φ‖² by meta-steps.
Found: TypeAlias = Mapping[str, Sequence[float]]

# Colour, marker, dashes.
STYLES: dict[str, tuple[str, str, Any]] = {
    "memory-reduced": (BLUE, "o", "-"),
    "memory-reduced, few steps": ("#56B4E9", "", "-"),
    "AID-BiO": (GREEN, "s", "--"),
    "ITD-BiO": (ORANGE, "D", (0, (5, 3))),
    "stocBiO": (RED, "v", (0, (1, 2))),
    "CG": (BLUE, "o", "-"),
    "Neumann series": (RED, "v", "-"),
}
# From dark to light.
SHADES = ("#08306b", "#08519c", "#2171b5", "#4292c6", "#6baed6", "#85bcdc", "#9ecae1", "#bdd7e7")


def floors(found: Found, budget: Any) -> dict[int, float]:
    """Return by size of batch the mean of ‖∇Φ‖² over the last half of the meta-steps and the seeds."""
    return {
        size: float(np.mean([_half(found[f"random/{size}/{seed}"]) for seed in range(budget.seeds)]))
        for size in budget.batches
    }


def _half(residuals: Sequence[float]) -> float:
    return float(np.mean(residuals[len(residuals) // 2 :]))


def error_picture(found: Found, budget: Any) -> Picture:
    """Draw the hypergradient's error against inner steps and against products."""
    made, panels = figure(2, width=5.2, height=4.2)
    for axes, part, places in zip(panels, ("steps", "products"), (budget.steps, budget.products), strict=True):
        for key, errors in found.items():
            if key.startswith(f"{part}/"):
                name = key.split("/")[1]
                color, marker, _ = STYLES[name]
                label = "AID-BiO, tenth time at this ψ" if name == "AID-BiO" else name
                axes.plot(places, np.maximum(errors, 1e-16), color=color, marker=marker, markersize=5, label=label)
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=9)
    panels[0].set_xlabel("inner steps n")
    panels[1].set_xlabel("products with the Hessian, heads at rest")
    panels[0].set_ylabel("‖ĝ − ∇Φ‖ / ‖∇Φ‖")
    caption = (
        "Error of the hypergradient at ψ = 0 against inner steps (v as exact as the method allows), and against the "
        "products that v takes. Below 1e-15 all is rounding."
    )
    return Picture("error", caption, made)


def residual_picture(found: Found, budget: Any, known: Mapping[str, Any]) -> Picture:
    """Draw ‖∇Φ‖² against meta-steps, with all tasks and with random ones, and what remains of it."""
    made, (left, middle, right) = figure(3, width=4.6, height=4.2)
    k = np.arange(1, budget.meta_steps + 1)
    for key, residuals in found.items():
        part, name, *_ = key.split("/")
        if part == "all":
            color, _, dashes = STYLES[name]
            inner = budget.inner[0 if name == "memory-reduced" else 1]
            label = f"{name.split(',')[0]}, {inner} steps"
            left.plot(k, residuals, color=color, linestyle=dashes, linewidth=1.8, label=label)
    first = found["all/memory-reduced"][0]
    left.plot(k, first / k, color=GREY, linestyle=":", linewidth=1.4, label="1/k")
    sizes = list(budget.batches)
    for size, shade in zip(sizes, reversed(SHADES[: len(sizes)]), strict=True):
        middle.plot(k, smooth(found[f"random/{size}/0"]), color=shade, linewidth=1.4, label=f"|B| = {size}")
        middle.plot(k[-1:], [known["predicted"][size]], color=shade, marker="<", markersize=6, clip_on=False)
    middle.plot(k, found["all/memory-reduced"], color=GREY, linewidth=1.4, linestyle="--", label="all tasks")
    measured = floors(found, budget)
    right.plot(sizes, list(measured.values()), color=BLUE, marker="o", linestyle="none", label="measured")
    predicted = [known["predicted"][size] for size in sizes]
    right.plot(sizes, predicted, color=GREY, linestyle=":", label="predicted, ∝ 1/|B|")
    for axes in (left, middle, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    middle.set_ylim(bottom=min(predicted) / 30)
    for axes, title in ((left, "all tasks"), (middle, "random tasks"), (right, "what remains")):
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("meta-step k" if axes is not right else "tasks a meta-step |B|")
    plain_ticks(right, sizes)
    left.set_ylabel("‖∇Φ‖²")
    caption = (
        "Exact ‖∇Φ‖² along gradient descent on each method's hypergradients. Left: all tasks at each meta-step. "
        "Middle: random batches, means over a window, triangles at what their variance predicts. Right: the "
        "mean over the last half of the meta-steps."
    )
    return Picture("residual", caption, made)


def smooth(residuals: Sequence[float]) -> Values:
    """Return means over a window that grows with the step, so that it has one width on a logarithmic axis."""
    return np.array([np.mean(residuals[int(0.75 * k) : k + 1]) for k in range(len(residuals))])
