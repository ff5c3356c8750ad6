"""Tables 4 and 5 of the A-MAML paper beside ours, in words, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..plots import BLUE, GREEN, ORANGE, RED, figure
from ..report import Picture, Report, Table
from ..statistics import Interval
from .curve_plot import draw_curve, draw_printed, hollow, plain_ticks
from .published import SCHEME
from .work_precision_report import error

Entries = Sequence[Mapping[str, Any]]

AUTODIFF = "heun, reverse mode"
STYLES = {
    AUTODIFF: (BLUE, "o"),
    SCHEME: (ORANGE, "s"),
    "rk4": (RED, "^"),
    "tsit5": (GREEN, "D"),
    "dopri5": ("#CC79A7", "v"),
}
# The paper's columns, and which of ours is the same method.
PRINTED_4 = {"autodiff": AUTODIFF, "adjoint": SCHEME}


def report(first: Entries, second: Entries, setting: Mapping[str, Any]) -> Report:
    """Return the report.

    Args:
        first, second: Tables 4 and 5, an entry a horizon and number of states.
    """
    count = int(setting["count"])
    return Report(
        title="A-MAML's Tables 4 and 5: accuracy of gradients against the number of states",
        question=(
            "How far is the gradient through an ODE from the exact one, with so many states stored? First for an "
            "equation with a closed form (Table 4), then for the meta-gradient of a network on CosMixture (Table 5). "
            "The paper solves forward by DOPRI5 and steps the costate by modified Euler over the stored states; here "
            "that scheme stands beside exact transposes of the steps taken."
        ),
        findings=[*_orders(second), *_gains(second), _floor(first)],
        parts=[_picture(first, second, count), _table4(first), _table5(second, setting)],
        records=[*_records4(first), *_records5(second)],
        departures=[
            f"Everything is float64; {count} initial states, uniform in [-1, 1], whose distribution the paper does not "
            f"print, and as many initialisations, each on a task of its own with {setting['points']} points.",
            "Table 5 of the paper compares with the method's own gradient at 1000 states, which flatters the last "
            f"rows; ours is given so too, at {setting['own_states']} states, and against a solve at relative tolerance "
            f"{setting['reference']:g}, which the picture and the findings use.",
            "The paper prints dy/dt = -2x³ - 2ty; its solution solves the equation with t³, which is used.",
        ],
        setting=setting,
    )


def _order(states: Sequence[int], errors: Sequence[float]) -> float:
    return -float(np.polyfit(np.log(states), np.log(errors), 1)[0])


def _orders(second: Entries) -> list[str]:
    lines = []
    for horizon in _horizons(second)[-1:]:
        rows = [entry for entry in second if entry["horizon"] == horizon]
        states = [entry["states"] for entry in rows]
        if len(rows) < 2:
            continue
        ours = {name: _order(states, [entry[name]["reference"]["mean"] for entry in rows]) for name in ("rk4", SCHEME)}
        said = ", ".join(f"{name} {order:.1f}" for name, order in ours.items())
        lines.append(
            f"Table 5, T = {horizon:g}, orders of convergence from {states[0]} to {states[-1]} states: {said}."
        )
        printed = [(entry["states"], entry["paper"]) for entry in rows if entry["paper"] is not None]
        if len(printed) > 1:
            order = _order(*zip(*printed, strict=True))
            verdict = "not the order of the scheme described" if order < 1.5 else "as the scheme should"
            lines.append(
                f"The paper's printed errors there fall with order {order:.1f}, where modified Euler has 2: {verdict}."
            )
    return lines


def _gains(second: Entries) -> list[str]:
    lines = []
    for name in (SCHEME, "rk4"):
        ratios = [e["paper"] / e[name]["reference"]["mean"] for e in second if e["paper"] is not None]
        if ratios:
            lines.append(
                f'Table 5: with "{name}" the error is smaller than printed {sum(r > 1 for r in ratios)} times of '
                f"{len(ratios)}, by factors from {min(ratios):.2g} to {max(ratios):.2g}."
            )
    return lines


def _floor(first: Entries) -> str:
    printed = min(value for entry in first for value in entry["paper"].values() if value is not None)
    ours = min(entry["rk4"]["mean"] for entry in first)
    why = "; float32 leaves such a floor" if 1e-8 < printed < 1e-6 and ours < 1e-12 else ""
    return f"Table 4: no printed error is below {printed:.1e}; rk4 reaches {ours:.1e} with as many states{why}."


def _table4(first: Entries) -> Table:
    rows = []
    for entry in first:
        paper = entry["paper"]
        ours = [error(entry[name]["mean"]) for name in (AUTODIFF, SCHEME, "rk4", "tsit5", "dopri5")]
        rows.append(
            [
                f"T = {entry['horizon']:g}, {entry['states']}",
                error(paper["autodiff"]),
                ours[0],
                error(paper["adjoint"]),
                *ours[1:],
            ]
        )
    return Table(
        "Table 4: dy/dt = -2t³ - 2ty, relative error of dL/dy(0) for L = (y(T) - 3)⁶",
        ["T, states", "paper, autodiff", AUTODIFF, "paper, adjoint", SCHEME, "rk4", "tsit5", "dopri5"],
        rows,
        "Means over initial states. The paper's two columns stand before the same method here; rk4, tsit5 and dopri5 "
        "are exact transposes of the solver's own steps.",
    )


def _table5(second: Entries, setting: Mapping[str, Any]) -> Table:
    rows = []
    for entry in second:
        cells = [
            f"{error(entry[name][against]['mean'])} ± {error(entry[name][against]['std'])}"
            for name in (SCHEME, "rk4")
            for against in ("own", "reference")
        ]
        rows.append([f"T = {entry['horizon']:g}, {entry['states']}", error(entry["paper"]), *cells])
    check = max(entry["reference_check"] for entry in second)
    return Table(
        "Table 5: CosMixture, relative error of the meta-gradient",
        ["T, states", "paper", f"{SCHEME}, own", "reference", "rk4, own", "reference"],
        rows,
        f"Mean ± standard deviation over initialisations. Own: against the same method with {setting['own_states']} "
        f"states; reference: against a tight solve of the flow, whose check agrees to {error(check)}.",
    )


def _picture(first: Entries, second: Entries, count: int) -> Picture:
    horizons = [T for T in (1.0, 2.0) if T in _horizons(first)] or _horizons(first)[-2:]
    last = _horizons(second)[-1]
    made, panels = figure(len(horizons) + 1, width=4.0, height=4.5)
    for axes in panels:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("states")
    for axes, horizon in zip(panels, horizons, strict=False):
        rows = [entry for entry in first if entry["horizon"] == horizon]
        for name in (AUTODIFF, SCHEME, "rk4", "tsit5"):
            _curve(axes, rows, [entry[name] for entry in rows], name, count)
        for column, name in PRINTED_4.items():
            draw_printed(axes, _states(rows), [entry["paper"][column] for entry in rows], STYLES[name])
        axes.set_title(f"Table 4: closed form, T = {horizon:g}", fontsize=10)
    rows = [entry for entry in second if entry["horizon"] == last]
    for name in (SCHEME, "rk4"):
        _curve(panels[-1], rows, [entry[name]["reference"] for entry in rows], name, count)
    draw_printed(panels[-1], _states(rows), [entry["paper"] for entry in rows], STYLES[SCHEME])
    panels[-1].set_title(f"Table 5: CosMixture, T = {last:g}", fontsize=10)
    panels[0].set_ylabel("relative error of the gradient")
    for axes, entries in zip(panels, [*(first for _ in horizons), rows], strict=True):
        plain_ticks(axes, sorted(set(_states(entries))))
        axes.tick_params(axis="x", labelsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    made.legend(
        handles=[*handles, hollow("hollow: printed in the paper")],
        labels=[*labels, "hollow: printed in the paper"],
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=9,
    )
    caption = (
        "Relative error of the gradient against the number of states, ours with 95 % intervals of the mean, the "
        "paper's hollow in the colour of the same method."
    )
    return Picture("errors", caption, made)


def _curve(axes: Axes, rows: Entries, errors: Sequence[Mapping[str, float]], name: str, count: int) -> None:
    found = [Interval(each["mean"], 1.96 * each["std"] / sqrt(count)) for each in errors]
    draw_curve(axes, _states(rows), found, STYLES[name], name)


def _states(rows: Entries) -> list[int]:
    return [entry["states"] for entry in rows]


def _horizons(entries: Entries) -> list[float]:
    return list(dict.fromkeys(entry["horizon"] for entry in entries))


def _records4(first: Entries) -> list[dict[str, Any]]:
    paper = {ours: column for column, ours in PRINTED_4.items()}
    return [
        {
            "table": 4,
            "horizon": entry["horizon"],
            "states": entry["states"],
            "scheme": name,
            "against": "closed form",
            "error": entry[name]["mean"],
            "std": entry[name]["std"],
            "paper": entry["paper"][paper[name]] if name in paper else None,
        }
        for entry in first
        for name in STYLES
    ]


def _records5(second: Entries) -> list[dict[str, Any]]:
    return [
        {
            "table": 5,
            "horizon": entry["horizon"],
            "states": entry["states"],
            "scheme": name,
            "against": against,
            "error": entry[name][against]["mean"],
            "std": entry[name][against]["std"],
            "paper": entry["paper"] if name == SCHEME else None,
        }
        for entry in second
        for name in (SCHEME, "rk4")
        for against in ("own", "reference")
    ]
