"""Seconds and memory against inner steps beside the papers' figures, in words, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..report import Report, Table
from .contestants import CONVEX
from .efficiency_plot import LEAST_MIB, SAME, UNROLLED, Entries, count_tasks, figure_2b, figures_3_4, series_of
from .meta_gradient_report import label
from .published import CARD, MEMORY_3, SECONDS_4, STEPS_3
from .published_imaml import MEMORY_2B, SECONDS_2B, STEPS_2B

FLOW_METHODS = (
    *("MAML", "MAML checkpointed", "A-MAML rk4", "A-MAML Heun", "iMAML", "FOMAML", "Reptile"),
    "torch.func unrolled",
)
IMPLICIT_METHODS = (
    *("MAML", "FOMAML", "iMAML with 2 CG steps", "iMAML with 5 CG steps", "iMAML with 10 CG steps"),
    "torch.func unrolled",
)


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
        findings=[*_flow_findings(flow), *_printed_seconds(flow), *_implicit_findings(implicit)],
        parts=[
            figures_3_4(flow),
            _table(flow, "Figures 3 and 4: CosMixture, 5 tasks", _printed_flow),
            figure_2b(implicit),
            _table(implicit, f"Figure 2b: Omniglot network, {count_tasks(implicit)}", _printed_implicit),
            *(f"Left out: {line}" for line in notes),
        ],
        records=[dict(entry) for entry in (*flow, *implicit)],
        departures=[
            f"The paper's seconds are an {CARD}'s, and iMAML's of hardware not stated; ours are of "
            f"{setting['device']}: compare shapes and ratios between methods, not seconds.",
            "Memory here is the growth of the process's peak (or of the allocator's on a GPU) during one "
            "meta-gradient, without Python and torch; the A-MAML paper prints shares of a 24 GiB card, allocator "
            "included, and the iMAML paper an axis without units, drawn here relative to the unrolled graph.",
            "The papers' MAML keeps the graph of all steps, and stands beside torch.func's; our MAML stores iterates "
            "and evaluates the network again, which takes more time and hardly any memory.",
            "A-MAML Heun keeps a state for each step of gradient descent and steps the costate by Heun's method, as in "
            "the paper, whose forward solver is DOPRI5; A-MAML rk4 takes one step for ten, which is what we would use.",
            f"iMAML's figure does not state its batch; ours is {count_tasks(implicit)} of random images, since "
            "pixels do not change the cost. The network is iMAML's: four convolutions of stride 2, 64 filters. λ is "
            f"{CONVEX:g}, not the paper's 2, with which conjugate gradients meet negative curvature at this random "
            "initialisation, stop early, and cost less than they should.",
        ],
        setting=setting,
    )


def _flow_findings(entries: Entries) -> list[str]:
    lines = []
    for name in ("torch.func unrolled", "MAML", "MAML checkpointed", "A-MAML rk4", "A-MAML Heun", "iMAML", "FOMAML"):
        series = {n: e for n, e in series_of(entries, name).items() if n >= 10}
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
    maml, flow = (series_of(entries, name) for name in ("MAML", "A-MAML rk4"))
    shared = sorted(set(maml) & set(flow))
    if shared:
        n = shared[-1]
        ratio = maml[n]["seconds"] / flow[n]["seconds"]
        lines.append(
            f"At {n} steps A-MAML by rk4 takes {1 / ratio:.2f} of MAML's seconds (one rk4 step for ten of GD)."
        )
    for name in ("MAML", "A-MAML rk4"):
        for n, each in list(series_of(entries, name, "compile").items())[-1:]:
            if n in series_of(entries, name):
                gain = series_of(entries, name)[n]["seconds"] / each["seconds"]
                lines.append(f"Compiled, {name} is {gain:.1f} times as fast at {n} steps.")
    return lines


def _printed_seconds(entries: Entries) -> list[str]:
    """Return how our seconds stand to those printed, where both have 10 steps or more."""
    spans = []
    for name, printed in SECONDS_4.items():
        ours = series_of(entries, SAME.get(name, name))
        ratios = [
            ours[n]["seconds"] / value
            for n, value in zip(STEPS_3, printed, strict=True)
            if n >= 10 and n in ours and value is not None
        ]
        if ratios:
            spans.append(f"{name} {min(ratios):.2f} to {max(ratios):.2f}")
    return [f"Our seconds as multiples of those printed, uncompiled: {', '.join(spans)}."] if spans else []


def _implicit_findings(entries: Entries) -> list[str]:
    lines = []
    unrolled = series_of(entries, UNROLLED)
    for cg in (2, 5, 10):
        series, paper = series_of(entries, f"iMAML with {cg} CG steps"), _cross(STEPS_2B, SECONDS_2B, cg)
        steps = sorted(set(unrolled) & set(series))
        if steps:
            ours = crossing(steps, [unrolled[n]["seconds"] for n in steps], [series[n]["seconds"] for n in steps])
            lines.append(
                f"MAML by an unrolled graph takes longer than iMAML with {cg} CG steps {_from(ours)} (paper: "
                f"{_from(paper)})."
            )
    growth = []
    for name in (UNROLLED, "MAML", "iMAML with 5 CG steps"):
        series = series_of(entries, name)
        if len(series) > 1:
            low, high = min(series), max(series)
            change = series[high]["extra_mib"] / max(series[low]["extra_mib"], LEAST_MIB)
            growth.append(f"{name} {change:.1f} times from {low} to {high} steps")
    if growth:
        lines.append(
            f"Memory on the Omniglot network grows by: {'; '.join(growth)} (paper, 1 to 16: MAML 8.8, iMAML 1.0 times)."
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


def _paper(name: str) -> str:
    """Return what the papers call a method; nothing, if it is not theirs."""
    if name in SAME:
        return ""
    return next((paper for paper, ours in SAME.items() if ours == name), name)


def _printed_flow(name: str, steps: int, quantity: str) -> str:
    column, table = _paper(name), SECONDS_4 if quantity == "seconds" else MEMORY_3
    if column not in table or steps not in STEPS_3:
        return "–"
    value = table[column][STEPS_3.index(steps)]
    if value is None:
        return "–" if quantity == "seconds" else "out of memory"
    return f"{value:g}" if quantity == "seconds" else f"{100 * value:.1f} %"


def _printed_implicit(name: str, steps: int, quantity: str) -> str:
    table = SECONDS_2B if quantity == "seconds" else MEMORY_2B
    column = _paper(name)
    value = table[column][STEPS_2B.index(steps)] if column in table and steps in STEPS_2B else None
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
