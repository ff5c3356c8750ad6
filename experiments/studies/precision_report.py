"""The report of the precision study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from ..comparison_report import MARKERS, PALETTE
from ..plots import figure
from ..report import Picture, Report, Table

Records = Sequence[Mapping[str, Any]]
BACKSOLVE = "A-MAML, backsolve"
# Each keeps the colour that it has in the comparisons.
COLORS = {"A-MAML": PALETTE[0], "iMAML": PALETTE[1], "MAML": PALETTE[2], BACKSOLVE: PALETTE[6]}
# A meta-gradient with an error above this is of little use to an optimiser.
USELESS = 0.1
ROUNDING = float(torch.finfo(torch.float32).eps)


def report(records: Records, setting: Mapping[str, Any]) -> Report:
    """Return the report of these records, one a method, rate, number of steps and task."""
    rates = sorted({r["inner_lr"] for r in records})
    return Report(
        title="Is MAML's meta-gradient numerically unstable?",
        question=(
            "A reviewer of iMAML asked whether MAML's gradient through many inner steps is numerically unstable. Every "
            "meta-gradient is computed twice from the same numbers, in float32 and in float64; their relative "
            "difference is the rounding error of float32, whose unit is 1.2e-7. α times half the largest curvature met "
            "says how near the inner steps are to instability: at 1 gradient descent stops converging."
        ),
        findings=findings(records),
        parts=[_picture(records, rates), *[_table(records, rate) for rate in rates]],
        records=records,
        departures=[
            "The reviewers' question has no published figure; there are no numbers of a paper to compare with.",
            "A random network on CosMixture tasks, the same for all methods; iMAML with λ = 1 and 5 CG steps.",
            "A-MAML follows the flow over the horizon steps · α by rk4 with equal steps of at most 0.1; where that "
            "takes too many, it is left out.",
            "The error is that of rounding only: how far a method's meta-gradient is from another's is not in it.",
        ],
        setting={key: str(value) for key, value in setting.items()},
    )


def findings(records: Records) -> list[str]:
    """Return what the records say of MAML, where it is stable and where it is not, and of the others."""
    lines = []
    for method in ("MAML", "A-MAML", "iMAML"):
        of = [r for r in records if r["method"] == method and r["error"] is not None]
        if method == "iMAML":
            worst = max(of, key=lambda r: r["error"])
            median = np.median([r["error"] for r in of])
            lines.append(
                f"iMAML: the median error over all rates, steps and tasks is {median:.1e}, the largest "
                f"{worst['error']:.1e}, after {worst['steps']} steps of α = {worst['inner_lr']:g}."
            )
            continue
        for words, chosen in (
            ("inside the stability interval", [r for r in of if r["stability"] <= 1]),
            ("outside it", [r for r in of if r["stability"] > 1]),
        ):
            if not chosen:
                continue
            worst = max(chosen, key=lambda r: r["error"])
            useless = sum(r["error"] > USELESS for r in chosen)
            lines.append(
                f"{method} {words}: the largest error is {worst['error']:.1e}, after {worst['steps']} steps of α = "
                f"{worst['inner_lr']:g}; {useless} of {len(chosen)} gradients are off by more than "
                f"{100 * USELESS:.0f} %."
            )
    lines += _growth(records)
    failed = [r for r in records if r["failed"]]
    if failed:
        tried = {(r["inner_lr"], r["steps"]) for r in records if r["method"] == BACKSOLVE}
        refused = {(r["inner_lr"], r["steps"]) for r in failed if r["method"] == BACKSOLVE}
        lines.append(
            f"Solving the flow backward in time (backsolve) was refused in {len(refused)} of {len(tried)} cases, since "
            "the state that it rebuilt was not θ."
        )
    return lines


def _growth(records: Records) -> list[str]:
    """Return how much MAML's error grows with its steps, for each rate at which all of them are stable."""
    lines = []
    for rate in sorted({r["inner_lr"] for r in records}):
        of = [r for r in records if r["method"] == "MAML" and r["inner_lr"] == rate and r["error"] is not None]
        if of and max(r["stability"] for r in of) <= 1:
            steps, medians, _, _ = _curve(of)
            lines.append(
                f"At α = {rate:g}, where all of MAML's steps are stable, its median error after {steps[-1]} steps is "
                f"{medians[-1] / medians[0]:.1f} times that after {steps[0]}."
            )
    return lines


def _curve(records: Records) -> tuple[list[int], list[float], list[float], list[float]]:
    """Return numbers of steps, and the median, smallest and largest error over tasks at each."""
    steps = sorted({r["steps"] for r in records if r["error"] is not None})
    found = [np.array([r["error"] for r in records if r["steps"] == n and r["error"] is not None]) for n in steps]
    return steps, *([float(f(v)) for v in found] for f in (np.median, np.min, np.max))  # type: ignore[return-value]


def _methods(records: Records) -> list[str]:
    return [name for name in COLORS if any(r["method"] == name for r in records)]


def _table(records: Records, rate: float) -> Table:
    of = [r for r in records if r["inner_lr"] == rate]
    steps = sorted({r["steps"] for r in of})
    rows = []
    for method in _methods(of):
        row = [method]
        for n in steps:
            chosen = [r for r in of if r["method"] == method and r["steps"] == n]
            row.append(_entry(chosen))
        rows.append(row)
    note = (
        "Median over tasks of the meta-gradient's relative error; in brackets, the largest α‖H‖ or h‖H‖ met as a share "
        "of the stability interval. –: not run. Refused: the backward solve drifted away from θ."
    )
    return Table(f"Rounding error of float32, α = {rate:g}, by inner steps", ["", *map(str, steps)], rows, note)


def _entry(chosen: Records) -> str:
    if not chosen:
        return "–"
    if any(r["failed"] for r in chosen):
        return "refused"
    met = [r["stability"] for r in chosen if r["stability"] is not None]
    return f"{np.median([r['error'] for r in chosen]):.1e}" + (f" ({max(met):.2f})" if met else "")


def _picture(records: Records, rates: Sequence[float]) -> Picture:
    made, axes = figure(len(rates), width=4.4, height=4.2)
    for each, rate in zip(axes, rates, strict=True):
        of = [r for r in records if r["inner_lr"] == rate]
        for number, method in enumerate(_methods(of)):
            _line(each, [r for r in of if r["method"] == method], method, MARKERS[number])
        met = [r["stability"] for r in of if r["method"] == "MAML" and r["stability"] is not None]
        each.axhline(ROUNDING, color="#666666", linewidth=1.2, linestyle=":")
        each.set_title(f"α = {rate:g}; MAML reaches {100 * max(met):.0f} % of its limit", fontsize=10)
        each.set_xscale("log")
        each.set_yscale("log")
        each.set_ylim(3e-8, 1e2)
        each.set_xlabel("inner steps of gradient descent")
    axes[0].set_ylabel("relative error of the float32 meta-gradient")
    axes[0].legend(frameon=False, fontsize=9)
    caption = (
        "Median over tasks, shaded from the smallest to the largest error; the dotted line is the rounding unit of "
        "float32. The limit is that of stability, α‖H‖ = 2, at the task that comes nearest to it. A line ends where "
        "its method was refused, or would have taken too many steps."
    )
    return Picture("precision", caption, made)


def _line(axes: Axes, records: Records, method: str, marker: str) -> None:
    steps, median, low, high = _curve(records)
    color = COLORS[method]
    axes.plot(steps, median, color=color, marker=marker, markersize=4, linewidth=1.6, label=method)
    axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
