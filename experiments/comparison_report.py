"""A comparison as a report: its table, and how the test error falls with adaptation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .comparison import Comparison
from .plots import figure
from .report import Picture, Report, Table
from .statistics import TEST, interval

# Okabe and Ito's palette; a method keeps its colour in all pictures.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#666666", "#F0E442")
MARKERS = "osD^vP*X"


def report(experiment: str, comparison: Comparison, seeds: Sequence[int], setting: Mapping[str, Any]) -> Report:
    """Return the report of `adjoint-meta compare`."""
    columns, rows = comparison.table()
    tasks = comparison.values(next(iter(comparison.runs))).shape[1]
    unit = f"{comparison.metric} of {tasks} test tasks a seed"
    plural = "seed" if len(seeds) == 1 else "seeds"
    note = (
        f"Mean ± half of the 95 % interval over test tasks and {len(seeds)} {plural}, before and after the method's "
        "own inner solve; p: Wilcoxon's signed-rank test paired by seed and task, Holm-adjusted. Seconds, "
        "evaluations and memory are those of a meta-step, means over seeds; memory is the peak of the process, and "
        "seconds grow with the number of processes at once."
    )
    return Report(
        title=f"Methods compared on {experiment}",
        question=(
            "Every method took the same number of meta-steps over the same tasks in the same order, from the same "
            f"initialisation. {'Larger' if comparison.larger_is_better else 'Smaller'} is better."
        ),
        findings=[comparison.ordering(), TEST],
        parts=[Table(unit, columns, rows, note), picture(comparison, experiment)],
        records=comparison.records(),
        setting=setting,
    )


def picture(comparison: Comparison, experiment: str) -> Picture:
    """Draw the error against epochs of Adam where there are any, else before and after the method's own solve."""
    made, (axes,) = figure(1, width=7.5, height=4.8)
    name = next(iter(comparison.runs))
    if comparison.adam(name):
        draw_adam(axes, comparison)
        what = "against epochs of Adam from the meta-learned initialisation"
    else:
        _before_after(axes, comparison)
        what = "before and after adaptation by the method's own inner solve"
    axes.set_title(f"{experiment}: test error", fontsize=11)
    caption = f"{comparison.metric} on test tasks {what}; mean and 95 % interval over tasks and seeds."
    return Picture("adaptation", caption, made)


def draw_adam(axes: Axes, comparison: Comparison) -> None:
    """Draw every method's error against epochs, the interval shaded."""
    for number, name in enumerate(comparison.runs):
        curve = comparison.adam(name)
        epochs = np.array(list(curve))
        found = [interval(values) for values in curve.values()]
        mean, half = np.array([each.mean for each in found]), np.array([each.half for each in found])
        color = PALETTE[number % len(PALETTE)]
        axes.plot(epochs, mean, color=color, linewidth=1.8, label=name)
        axes.fill_between(epochs, mean - half, mean + half, color=color, alpha=0.18, linewidth=0)
    axes.set_xlabel("epochs of Adam")
    axes.set_ylabel(comparison.metric)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)


def _before_after(axes: Axes, comparison: Comparison) -> None:
    names = list(comparison.runs)
    for number, name in enumerate(names):
        color = PALETTE[number % len(PALETTE)]
        before, after = interval(comparison.values(name, "before")), interval(comparison.values(name))
        axes.plot([before.mean, after.mean], [number, number], color=color, linewidth=1.2, alpha=0.6)
        axes.errorbar(
            before.mean, number, xerr=before.half, color=color, marker="o", markerfacecolor="white", capsize=3
        )
        axes.errorbar(after.mean, number, xerr=after.half, color=color, marker="o", capsize=3)
    for name, values in comparison.baselines().items():
        axes.axvline(float(values.mean()), color="#666666", linestyle=":", linewidth=1.2)
        axes.annotate(name.replace("_", " "), (float(values.mean()), -0.45), rotation=90, fontsize=8, color="#666666")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"{comparison.metric} (hollow: before adaptation)")
