"""A table of few-shot accuracies: methods on some data sets and sizes of episodes, ours beside the papers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import hypot
from pathlib import Path
from typing import Any

from scipy import stats

from ..comparison import Comparison
from ..comparison_report import PALETTE
from ..data.errors import MissingDataError
from ..data.image_catalogue import image_set
from ..data.image_paths import find_paths
from ..plots import figure
from ..report import Picture, Report, Table
from ..statistics import TEST, Values, interval
from .grid import Cell, train
from .published_images import Accuracy
from .study import Setting


@dataclass(frozen=True)
class Column:
    """A data set and a size of its episodes.

    Args:
        cell: what is trained.
        ways: classes of an episode.
        printed: what the papers print, by method.
    """

    cell: Cell
    ways: int
    printed: Mapping[str, Accuracy] = field(default_factory=dict)


@dataclass(frozen=True)
class Account:
    """What a report says besides its numbers.

    Args:
        title, question, departures: as in a `Report`.
        size: what the budget is, in a sentence that warns of a short run.
        setting: facts of the budget.
    """

    title: str
    question: str
    size: str
    departures: Sequence[str]
    setting: Mapping[str, Any]


def episode(ways: int, shots: int) -> str:
    """Return a size of episodes as the papers call it."""
    return f"{ways}-way {shots}-shot"


def at_hand(columns: Mapping[str, Column], data_dir: Path | None) -> tuple[dict[str, Column], list[str]]:
    """Return the columns whose data sets are here, and a line on each data set that is not.

    Raises:
        MissingDataError: if none is here.
    """
    missing: dict[str, str] = {}
    for name in {column.cell.experiment: None for column in columns.values()}:
        try:
            find_paths(image_set(name), data_dir)
        except MissingDataError as error:
            missing[name] = str(error)
    found = {title: column for title, column in columns.items() if column.cell.experiment not in missing}
    if not found:
        raise MissingDataError(
            f"{'; '.join(missing.values())}. Without data, `adjoint-meta compare glyphs --methods anil,maml` runs on "
            "drawn images"
        )
    return found, [f"Left out, since its data are missing: {text}." for text in missing.values()]


def study(setting: Setting, columns: Mapping[str, Column], account: Account) -> Report:
    """Train all methods on what is here of the columns, and set the papers' numbers beside ours.

    Raises:
        MissingDataError: if no data set is here.
        Interrupted, ValueError, RuntimeError: as `train` does.
    """
    here, left_out = at_hand(columns, setting.data_dir)
    found = train(setting, {title: column.cell for title, column in here.items()}, [0])
    return Report(
        title=account.title,
        question=account.question,
        findings=[account.size, *(line for title in here for line in _findings(title, here, found)), *left_out, TEST],
        parts=[
            _table(here, found),
            _picture(here, found),
            *[Table(f"{title}: tests and costs", *each.table(), _NOTE) for title, each in found.items()],
        ],
        records=[_with_printed(title, here, record) for title, each in found.items() for record in each.records()],
        departures=account.departures,
        setting={"budget": setting.budget, **account.setting, "seeds": "0"},
    )


_NOTE = (
    "Accuracy as a share, mean ± half of the 95 % interval over test episodes, before and after the method's own inner "
    "solve; p: paired Wilcoxon against the best method, Holm-adjusted among methods. Seconds, evaluations and memory "
    "are those of a meta-step; seconds grow with what else the machine does."
)


def _findings(title: str, columns: Mapping[str, Column], found: Mapping[str, Comparison]) -> list[str]:
    comparison, printed = found[title], columns[title].printed
    lines = [f"{title}: {comparison.ordering()}"]
    ours = {name: interval(comparison.values(name)) for name in comparison.runs if name in printed}
    if not ours:
        return lines
    gaps = {name: 100 * of.mean - printed[name][0] for name, of in ours.items()}
    # Intervals of independent means add as the squares of their widths do; a paper that prints none counts as exact.
    inside = [name for name, of in ours.items() if abs(gaps[name]) <= hypot(100 * of.half, printed[name][1] or 0.0)]
    least, most = min(gaps, key=lambda name: gaps[name]), max(gaps, key=lambda name: gaps[name])
    between = f"{gaps[most]:+.1f}" if least == most else f"{gaps[least]:+.1f} ({least}) to {gaps[most]:+.1f} ({most})"
    line = (
        f"{title}: ours lie {between} points from what the papers print of {_methods(len(ours))}; {len(inside)} "
        "differ by no more than both 95 % intervals allow."
    )
    if len(ours) > 2:
        tau = stats.kendalltau([of.mean for of in ours.values()], [printed[name][0] for name in ours]).statistic
        line += f" Rank correlation with the printed ordering: Kendall's τ = {tau:.2f}."
    return [*lines, line]


def _methods(count: int) -> str:
    return "1 method" if count == 1 else f"{count} methods"


def _labels(found: Mapping[str, Comparison]) -> list[str]:
    """Return every method that some column has, in order."""
    return list(dict.fromkeys(name for each in found.values() for name in each.runs))


def _percent(values: Values) -> str:
    of = interval(values)
    return f"{100 * of.mean:.1f} ± {100 * of.half:.1f}"


def _printed(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "–"
    mean, half = accuracy
    return f"{mean:g}" if half is None else f"{mean:g} ± {half:g}"


def _table(columns: Mapping[str, Column], found: Mapping[str, Comparison]) -> Table:
    rows = []
    for method in _labels(found):
        row = [method]
        for title, comparison in found.items():
            best = "*" if comparison.best == method else ""
            ours = f"{best}{_percent(comparison.values(method))}" if method in comparison.runs else "–"
            row += [ours, _printed(columns[title].printed.get(method))]
        rows.append(row)
    first = next(iter(found.values()))
    count = first.values(first.best).shape[1]
    note = (
        f"Accuracy after adaptation in per cent, mean ± half of the 95 % interval over {count} test episodes; the best "
        "of ours in bold; – where a method was not run, or nothing is printed of it."
    )
    return Table(
        "Accuracy in per cent, ours and the papers'", ["", *(t for name in found for t in (name, "paper"))], rows, note
    )


def _picture(columns: Mapping[str, Column], found: Mapping[str, Comparison]) -> Picture:
    across = min(2, len(found))
    labels = _labels(found)
    made, axes = figure(across, rows=-(-len(found) // across), width=4.6, height=1.2 + 0.32 * len(labels))
    for place, (each, (title, comparison)) in enumerate(zip(axes, found.items(), strict=False)):
        for number, method in enumerate(labels):
            color = PALETTE[number % len(PALETTE)]
            if method in comparison.runs:
                of = interval(comparison.values(method))
                each.errorbar(100 * of.mean, number, xerr=100 * of.half, fmt="o", color=color, capsize=3)
            if method in columns[title].printed:
                each.plot(columns[title].printed[method][0], number, "o", markerfacecolor="none", markeredgecolor=color)
        each.axvline(100 / columns[title].ways, color="#666666", linestyle=":", linewidth=1.2)
        each.set_title(title, fontsize=10)
        each.set_xlabel("accuracy, %")
        each.set_yticks(range(len(labels)), labels if place % across == 0 else [""] * len(labels))
        each.set_ylim(len(labels) - 0.5, -0.5)
    for unused in axes[len(found) :]:
        unused.set_visible(False)
    caption = (
        "Accuracy on test episodes with its 95 % interval; hollow circles are what the papers print; the dotted line "
        "is chance."
    )
    return Picture("accuracy", caption, made)


def _with_printed(title: str, columns: Mapping[str, Column], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its column, and what the papers print, as a share like ours."""
    theirs = columns[title].printed.get(record["method"]) if record["when"] == "after" else None
    return {"column": title, **record, "printed": None if theirs is None else round(theirs[0] / 100, 6)}
