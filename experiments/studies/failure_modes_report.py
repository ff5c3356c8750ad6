"""The report of the failure modes: a panel and a table a kind of problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..comparison_report import PALETTE
from ..plots import figure
from ..report import Picture, Report, Table

Records = Sequence[Mapping[str, Any]]
MIB = 2**20
# MAML and iMAML keep the colours that they have in the comparisons.
IMPLICIT, UNROLLED, CHECKPOINTED, OTHER = PALETTE[1], PALETTE[2], PALETTE[5], PALETTE[4]
# An error above this is a failure, one below the other is not.
WRONG, RIGHT = 0.1, 1e-3
KINKS = {"tanh": "tanh network", "relu": "ReLU network", "l1": "absolute values"}


def report(records: Mapping[str, Records], setting: Mapping[str, Any]) -> Report:
    """Return the report of the records of each kind: "curvature", "length" and "kinks"."""
    curvature, length, kinks = (records[kind] for kind in ("curvature", "length", "kinks"))
    return Report(
        title="Where MAML succeeds and iMAML fails, and the reverse",
        question=(
            "iMAML's implicit gradient is right at a minimiser of a smooth, strongly convex inner problem; MAML's "
            "unrolled gradient is right for the steps that were taken, whatever the loss, but pays for each of them. "
            "Three kinds of small problems take one or the other to where this matters, each beside a reference that "
            "is exact: finite differences of the inner solve in every coordinate, or a closed form. All in float64."
        ),
        findings=[*_curvature_findings(curvature), *_length_findings(length), *_kinks_findings(kinks)],
        parts=[
            _picture(curvature, length, kinks),
            _curvature_table(curvature),
            _length_table(length),
            _kinks_table(kinks),
        ],
        records=[record for each in records.values() for record in each],
        departures=[
            "The reviewers' question has no published figure; the problems are ours, and small so that they have exact "
            "references.",
            "In the first and third case MAML unrolls the same proximal gradient steps that iMAML takes, so that both "
            "differentiate one inner solve.",
            "With kinks the outcome of the steps can jump, and finite differences across a jump are no derivative: "
            "where unrolled is off on the ReLU network, nothing that looks at one θ could be right.",
            "Memory is the growth of the process's peak during one meta-gradient; below about a MiB it says little.",
        ],
        setting={key: str(value) for key, value in setting.items()},
    )


def _median(records: Records, key: str) -> float:
    return float(np.median([r[key] for r in records]))


def _by(records: Records, key: str) -> dict[Any, list[Mapping[str, Any]]]:
    return {value: [r for r in records if r[key] == value] for value in dict.fromkeys(r[key] for r in records)}


def _curvature_findings(records: Records) -> list[str]:
    groups = dict(sorted(_by(records, "lambda").items()))
    wrong = [value for value, of in groups.items() if _median(of, "implicit") > WRONG]
    met = [value for value, of in groups.items() if any(r["negative"] for r in of)]
    indefinite = [r for r in records if r["smallest"] < 0]
    steps = records[0]["steps"]
    lines = [
        f"Small λ: after {steps} inner steps H + λI is indefinite in {len(indefinite)} of {len(records)} cases; "
        f"CG meets negative curvature in {sum(bool(r['negative']) for r in records)} of them all"
        + (f", for λ up to {max(met):g}." if met else ".")
    ]
    if wrong:
        lines.append(
            f"Small λ: iMAML's median error is above {100 * WRONG:.0f} % for λ up to {max(wrong):g}, and "
            f"{_median(groups[max(groups)], 'implicit'):.1e} at λ = {max(groups):g}. Unrolling the same steps is "
            f"off by {max(_median(of, 'unrolled') for of in groups.values()):.1e} at most (medians)."
        )
        cured = _median([r for r in records if r["lambda"] in wrong], "implicit_dense")
        verdict = "does not cure" if cured > WRONG else "cures"
        lines.append(
            f"Small λ: solving with the dense H + λI instead of CG {verdict} this (median error {cured:.1e} for "
            "these λ)."
        )
    return lines


def _length_findings(records: Records) -> list[str]:
    last = max(r["steps"] for r in records)
    at = {r["method"]: r for r in records if r["steps"] == last}
    first = {r["method"]: r for r in records if r["steps"] == min(r["steps"] for r in records)}
    maml, cheap, implicit = at["MAML"], at["MAML, checkpointed"], at["iMAML"]
    return [
        f"Long inner solves: from {first['MAML']['steps']} to {last} steps MAML's gradient shrinks from "
        f"{first['MAML']['size']:.2g} to {maml['size']:.2g} of the query gradient, since θ is forgotten; iMAML's ends "
        f"at {implicit['size']:.2g}. Both are within {max(maml['error'], implicit['error']):.0e} of their "
        "closed forms.",
        f"Long inner solves: at {last} steps MAML takes {maml['evaluations']} evaluations and "
        f"{maml['memory'] / MIB:.1f} MiB ({cheap['memory'] / MIB:.1f} with checkpointing, in {cheap['evaluations']}); "
        f"iMAML stops when it has converged, after {implicit['evaluations']} evaluations and "
        f"{implicit['memory'] / MIB:.1f} MiB.",
    ]


def _kinks_findings(records: Records) -> list[str]:
    lines = []
    for problem, of in _by(records, "problem").items():
        verdicts = "; ".join(f"{name} {_verdict([r[name] for r in of])}" for name in ("implicit", "unrolled"))
        line = f"Kinks, {KINKS[problem]}: {verdicts}"
        if problem == "l1":
            proximal = _verdict([r["unrolled_proximal"] for r in of])
            line += (
                f". {100 * float(np.mean([r['kinked'] for r in of])):.0f} % of the coordinates end at a kink, where "
                f"the minimiser does not follow θ; unrolling proximal steps, which know the kink, "
                f"{proximal}"
            )
        lines.append(line + ".")
    return lines


def _verdict(errors: Sequence[float]) -> str:
    """Return in how many tasks a gradient is right and in how many it is wrong, and its median error."""
    right, wrong = sum(e < RIGHT for e in errors), sum(e > WRONG for e in errors)
    return (
        f"is within {RIGHT:g} in {right} of {len(errors)} tasks and off by more than {WRONG:g} in {wrong} "
        f"(median {np.median(errors):.1e})"
    )


def _curvature_table(records: Records) -> Table:
    rows = []
    for value, of in sorted(_by(records, "lambda").items()):
        negative = sum(bool(r["negative"]) for r in of)
        smallest = min(r["smallest"] for r in of)
        errors = [f"{_median(of, key):.1e}" for key in ("implicit", "implicit_dense", "cg", "unrolled")]
        rows.append([f"{value:g}", f"{smallest:.2g}", f"{negative} of {len(of)}", *errors])
    columns = [
        "λ",
        "smallest eigenvalue",
        "CG meets negative curvature",
        "iMAML",
        "dense solve",
        "iMAML to dense",
        "unrolled",
    ]
    note = (
        f"tanh network with 25 parameters on sine tasks, {records[0]['steps']} steps. Median relative errors over "
        "tasks beside finite differences of the same inner solve; dense solve: (I + H/λ)⁻¹c without CG; iMAML to "
        "dense: the distance between these two."
    )
    return Table("Small λ and negative curvature", columns, rows, note)


def _length_table(records: Records) -> Table:
    rows = [
        [
            f"{r['method']}, {r['steps']} steps",
            f"{r['size']:.3g}",
            f"{r['error']:.1e}",
            str(r["evaluations"]),
            f"{r['seconds']:.3f}",
            f"{r['memory'] / MIB:.1f}",
        ]
        for r in records
    ]
    columns = ["", "‖g‖ / ‖∇L_q‖", "error", "evaluations", "CPU seconds", "MiB"]
    note = (
        "Quadratic tasks with curvatures from 1e-3 to 1, α = 1; error: relative, beside the closed form; evaluations: "
        "batched gradients and Hessian-vector products; iMAML stops when its gradient has fallen by 1e-9."
    )
    return Table("Long inner solves", columns, rows, note)


def _kinks_table(records: Records) -> Table:
    rows = []
    for problem, of in _by(records, "problem").items():
        row = [KINKS[problem]]
        for key in ("implicit", "unrolled", "unrolled_proximal"):
            values = [r[key] for r in of if key in r]
            row.append(f"{np.median(values):.1e} ({max(values):.1e})" if values else "–")
        rows.append([*row, f"{_median(of, 'slope'):.1e}" if "slope" in of[0] else "–"])
    columns = ["", "implicit", "unrolled", "unrolled proximal steps", "‖∇‖ at the end"]
    note = (
        "Median (largest) relative error over tasks, λ = 1; beside finite differences of the inner solve for the "
        "networks, and beside the derivative of the soft threshold for absolute values."
    )
    return Table("Losses with kinks", columns, rows, note)


def _picture(curvature: Records, length: Records, kinks: Records) -> Picture:
    made, axes = figure(4, width=4.2, height=4.2)
    _draw_curvature(axes[0], curvature)
    _draw_length(axes[1], length, "size", "‖meta-gradient‖ / ‖query gradient‖", 1.0)
    axes[1].set_title("Long inner solves: what is left", fontsize=10)
    _draw_length(axes[2], length, "memory", "extra memory (MiB)", MIB)
    axes[2].set_title("Long inner solves: memory", fontsize=10)
    _draw_kinks(axes[3], kinks)
    caption = (
        "From the left: errors beside finite differences at small λ, medians with the range over tasks; size of the "
        "meta-gradient, and memory, on quadratic tasks; errors on losses with and without kinks, a dot a task."
    )
    return Picture("failure-modes", caption, made)


def _draw_curvature(axes: Axes, records: Records) -> None:
    groups = dict(sorted(_by(records, "lambda").items()))
    for key, label, color, marker in (
        ("implicit", "iMAML, CG", IMPLICIT, "s"),
        ("implicit_dense", "implicit, dense solve", OTHER, "v"),
        ("unrolled", "unrolled", UNROLLED, "D"),
    ):
        values = [np.array([r[key] for r in of]) for of in groups.values()]
        axes.plot(list(groups), [np.median(v) for v in values], color=color, marker=marker, markersize=4, label=label)
        low, high = [float(v.min()) for v in values], [float(v.max()) for v in values]
        axes.fill_between(list(groups), low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("λ")
    axes.set_ylabel("relative error of the meta-gradient")
    axes.set_title("Small λ, negative curvature", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _draw_length(axes: Axes, records: Records, key: str, label: str, unit: float) -> None:
    styles = (("MAML", UNROLLED, "D"), ("MAML, checkpointed", CHECKPOINTED, "^"), ("iMAML", IMPLICIT, "s"))
    for name, color, marker in styles:
        of = [r for r in records if r["method"] == name]
        if key == "size" and "checkpointed" in name:
            continue  # the same number as MAML's
        values = [r[key] / unit for r in of]
        axes.plot([r["steps"] for r in of], values, color=color, marker=marker, markersize=4, label=name)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("inner steps (at most, for iMAML)")
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=8)


def _draw_kinks(axes: Axes, records: Records) -> None:
    styles = (
        ("implicit", "implicit", IMPLICIT, "s"),
        ("unrolled", "unrolled", UNROLLED, "D"),
        ("unrolled_proximal", "unrolled proximal steps", CHECKPOINTED, "o"),
    )
    groups = _by(records, "problem")
    for shift, (key, label, color, marker) in zip((-0.2, 0.0, 0.2), styles, strict=True):
        places = [place + shift for place, of in enumerate(groups.values()) for r in of if key in r]
        values = [max(r[key], 1e-16) for of in groups.values() for r in of if key in r]
        axes.plot(places, values, linestyle="none", color=color, marker=marker, markersize=4, alpha=0.6, label=label)
    axes.set_yscale("log")
    axes.set_ylim(top=1e3)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_xticks(range(len(groups)), [KINKS[problem] for problem in groups], fontsize=9)
    axes.set_ylabel("relative error of the meta-gradient")
    axes.set_title("Kinks", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
