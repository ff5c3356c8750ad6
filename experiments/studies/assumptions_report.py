"""The report of the assumptions: frequencies with their intervals, and how curvature changes along training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..comparison_report import MARKERS, PALETTE
from ..plots import figure
from ..report import Picture, Report, Table
from ..statistics import wilson

Records = Sequence[Mapping[str, Any]]


def report(records: Records, missing: Sequence[str], setting: Mapping[str, Any]) -> Report:
    """Return the report of these records, one a training, probe, place and task."""
    experiments = list(dict.fromkeys(r["experiment"] for r in records))
    parts: list[Table | Picture | str] = []
    found: list[str] = []
    for name in experiments:
        of = [r for r in records if r["experiment"] == name]
        found += findings(name, of)
        parts += [_table(name, of), _picture(name, of)]
    return Report(
        title="The assumptions of iMAML's theory, measured along training",
        question=(
            "iMAML's guarantees assume that the inner objective L_s(φ) + ½λ‖φ − θ‖² is strongly convex and smooth "
            "around θ, and that its Hessian is Lipschitz. iMAML was trained with each λ; now and then the extreme "
            "eigenvalues of the Hessian H + λI were estimated on the same training tasks, at θ and along the inner "
            "gradient descent. Strong convexity fails where the smallest one is negative; smoothness is measured by "
            "the largest, β, and inner steps of size α no longer contract where αβ > 2. Intervals are Wilson's, 95 %."
        ),
        findings=found,
        parts=parts,
        records=records,
        departures=[
            "Nobody has published such frequencies; there are no numbers of a paper to compare with.",
            "Lanczos finds a negative eigenvalue only if there is one, but may overlook one: the frequencies are lower "
            "bounds, and so are β and ‖H₁ − H₂‖ / ‖φ₁ − φ₂‖.",
            "Training is in float64, so that the sign of an eigenvalue near zero is not a matter of rounding.",
            *[f"The data of {name} are not here; an embedded set of ratings stands in." for name in missing],
        ],
        setting={key: str(value) for key, value in setting.items()},
    )  # fmt: skip


def fails(record: Mapping[str, Any]) -> bool:
    """Return whether a negative eigenvalue of H + λI was found."""
    return bool(record["smallest"] + record["lambda"] < 0)


def unstable(record: Mapping[str, Any]) -> bool:
    """Return whether inner steps do not contract: α(‖H‖ + λ) > 2."""
    return bool(record["inner_lr"] * (record["largest"] + record["lambda"]) > 2)


def frequency(of: Sequence[bool]) -> str:
    """Return a frequency with Wilson's interval, in per cent."""
    low, high = wilson(sum(of), len(of))
    return f"{100 * sum(of) / len(of):.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def findings(name: str, records: Records) -> list[str]:
    """Return what the records of one experiment say."""
    lines = []
    steps = _values(records, "meta_step")
    for proximal in _values(records, "lambda"):
        of = [r for r in records if r["lambda"] == proximal]
        at = {step: _anywhere([r for r in of if r["meta_step"] == step]) for step in steps}
        last = at[steps[-1]]
        low, high = wilson(sum(last), len(last))
        earlier = ", ".join(f"{sum(at[step])} at meta-step {step}" for step in steps[:-1])
        steep = sum(map(unstable, of))
        lines.append(
            f"{name}, λ = {proximal:g}: after {steps[-1]} meta-steps strong convexity fails somewhere on the inner "
            f"trajectory in {sum(last)} of {len(last)} tasks ({100 * low:.0f} to {100 * high:.0f} %)"
            f"{f'; before, in {earlier}' if earlier else ''}. Inner steps do not contract in {steep} of {len(of)} "
            f"places.{_met(of)}"
        )
    needed = max(-r["smallest"] for r in records)
    largest = np.array([r["largest"] for r in records])
    lines.append(
        f"{name}: at the points visited L_s itself has curvature down to {-needed:.3g}, so that, as far as Lanczos "
        f"sees, a λ above {needed:.3g} would have made all of them convex. Its smoothness constant varies between "
        f"{largest.min():.3g} and {largest.max():.3g}, median {np.median(largest):.3g}."
    )
    before, after = (
        np.array([r["lipschitz"] for r in records if r["lipschitz"] is not None and r["meta_step"] == step])
        for step in (steps[0], steps[-1])
    )
    lines.append(
        f"{name}: the Hessian's Lipschitz ratio along the inner trajectory is {np.median(before):.3g} in the median "
        f"before training and {np.median(after):.3g} after {steps[-1]} meta-steps; the largest seen is "
        f"{max(before.max(), after.max()):.3g}."
    )
    return lines


def _met(records: Records) -> str:
    """Return in how many tasks of the training CG failed for want of convexity."""
    share = records[-1]["cg_failed"]
    return "" if share is None else f" The CG steps of training met negative curvature in {100 * share:.0f} % of tasks."


def _anywhere(records: Records) -> list[bool]:
    """Return for each task whether convexity fails at any place of its trajectory."""
    found: dict[int, bool] = {}
    for record in records:
        found[record["task"]] = found.get(record["task"], False) or fails(record)
    return list(found.values())


def _values(records: Records, key: str) -> list[Any]:
    return sorted({r[key] for r in records})


def _table(name: str, records: Records) -> Table:
    rows = []
    for proximal in _values(records, "lambda"):
        for step in _values(records, "meta_step"):
            for title, of in _places(records, proximal, step).items():
                smallest = np.array([r["smallest"] + proximal for r in of])
                largest = np.array([r["largest"] + proximal for r in of])
                ratios = [r["lipschitz"] for r in of if r["lipschitz"] is not None]
                rows.append([
                    f"λ = {proximal:g}, meta-step {step}, {title}",
                    frequency([fails(r) for r in of]),
                    f"{smallest.min():.3g}",
                    f"{np.median(largest):.3g}",
                    f"{largest.max():.3g}",
                    f"{np.median(largest / smallest):.3g}" if smallest.min() > 0 else "–",
                    f"{np.median(ratios):.3g}" if ratios else "–",
                ])  # fmt: skip
    columns = [
        "",
        "not convex, % of tasks",
        "smallest",
        "β, median",
        "β, largest",
        "β / smallest, median",
        "‖ΔH‖ / ‖Δφ‖",
    ]
    note = (
        "Eigenvalues of H + λI over tasks, with Wilson's 95 % interval of the frequency. –: not positive in all tasks, "
        "or no place before θ. ‖ΔH‖ / ‖Δφ‖: median Lipschitz ratio of the Hessian since the place before."
    )
    return Table(f"{name}: the inner problem at θ, and at the end of its gradient descent", columns, rows, note)


def _places(records: Records, proximal: float, step: int) -> dict[str, list[Mapping[str, Any]]]:
    of = [r for r in records if r["lambda"] == proximal and r["meta_step"] == step]
    places = _values(of, "inner_step")
    return {
        "θ" if place == 0 else f"step {place}": [r for r in of if r["inner_step"] == place]
        for place in (places[0], places[-1])
    }


def _picture(name: str, records: Records) -> Picture:
    made, axes = figure(3, width=4.6, height=4.2)
    for number, proximal in enumerate(_values(records, "lambda")):
        of = [r for r in records if r["lambda"] == proximal]
        style = {"color": PALETTE[number], "marker": MARKERS[number], "label": f"λ = {proximal:g}", "markersize": 4}
        _band(axes[0], of, lambda r: r["smallest"] + r["lambda"], style)
        _band(axes[1], of, lambda r: r["largest"] + r["lambda"], style)
        _band(axes[2], [r for r in of if r["lipschitz"] is not None], lambda r: r["lipschitz"], style)
    axes[0].axhline(0, color="#666666", linewidth=1.2, linestyle=":")
    axes[0].set_yscale("symlog", linthresh=0.1)
    axes[0].margins(y=0.1)
    axes[1].set_yscale("log")
    alpha = records[0]["inner_lr"]
    axes[1].axhline(2 / alpha, color="#666666", linewidth=1.2, linestyle=":")
    axes[1].annotate("2/α: inner steps diverge above", (0, 2 / alpha), (4, 3), textcoords="offset points", fontsize=8)
    titles = ("Smallest eigenvalue of H + λI", "Largest eigenvalue of H + λI", "Lipschitz ratio of the Hessian")
    for each, title in zip(axes, titles, strict=True):
        each.set_title(title, fontsize=10)
        each.set_xlabel(f"meta-step of {name}")
    axes[0].set_ylabel("curvature (loss per squared unit of φ)")
    axes[2].set_ylim(bottom=0)
    axes[2].set_ylabel("‖H₁ − H₂‖ / ‖φ₁ − φ₂‖")
    axes[1].legend(frameon=False, fontsize=9, loc="center", bbox_to_anchor=(0.5, 0.7))
    caption = (
        f"{name}: median over tasks and places of the inner trajectory; the shaded band reaches from the 5 % to the "
        "95 % quantile. Below the dotted line of the first panel the inner problem is not convex."
    )
    return Picture(f"curvature-{name}", caption, made)


def _band(axes: Axes, records: Records, value: Any, style: Mapping[str, Any]) -> None:
    steps = _values(records, "meta_step")
    values = [np.array([value(r) for r in records if r["meta_step"] == step]) for step in steps]
    axes.plot(steps, [np.median(v) for v in values], linewidth=1.6, **style)
    low, high = ([float(np.quantile(v, q)) for v in values] for q in (0.05, 0.95))
    axes.fill_between(steps, low, high, color=style["color"], alpha=0.18, linewidth=0)
