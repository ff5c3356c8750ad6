"""What a test says, in figures and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from adjoint_meta.evaluation import Evaluation

from .config import RunConfig, as_options
from .experiment import Experiment

# Options of a method that a picture is told by even where they are as usual.
_TOLD = ("horizon", "solver", "steps", "inner_lr", "proximal", "cg_steps")


def title(config: RunConfig) -> str:
    """Name a run by its experiment, its method, what the inner solve is made of, and what else is not as usual."""
    usual = as_options(type(config.build_method())())
    told = {key: value for key, value in config.method.items() if key in _TOLD or value != usual.get(key, value)}
    options = [f"{key.replace('_', ' ')} {value}" for key, value in told.items() if value not in (None, [], 0.0)]
    return f"{config.experiment} · {', '.join([config.method['name'], *options])}"


def figures(experiment: Experiment, result: Evaluation) -> dict[str, Any]:
    """Return the ``test`` part of a summary: metric, means before and after, spread, other units and baselines."""
    summary: dict[str, Any] = {"metric": experiment.metric, **result.summary()}
    for unit, factor in experiment.units.items():
        summary[unit] = {key: summary[key] * factor for key in ("before", "after", "std", "ci95")}
    if experiment.baselines:
        tasks = len(result.after)
        summary["baselines"] = {name: float(value[:tasks].mean()) for name, value in experiment.baselines.items()}
    return summary


def outcomes(experiment: Experiment, result: Evaluation, adam: Sequence[tuple[int, Tensor]]) -> dict[str, Any]:
    """Return the metric of every test task, before and after, of the baselines, and by epochs of Adam.

    Comparisons are paired by task, so they need each; a value that is not finite becomes ``None``.
    """
    tasks = len(result.after)
    return {
        "metric": experiment.metric,
        "larger_is_better": experiment.larger_is_better,
        "units": dict(experiment.units),
        "before": _values(result.before),
        "after": _values(result.after),
        "baselines": {name: _values(value[:tasks]) for name, value in experiment.baselines.items()},
        "adam": {str(epoch): _values(values) for epoch, values in adam},
    }


def _values(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.double().tolist()]


def verdict(experiment: Experiment, result: Evaluation) -> str:
    """Return in plain words whether adaptation helped, and how the method stands against the baselines.

    Differences are paired over tasks, and called so only where their 95 % interval leaves out zero.
    """
    (unit, factor), *_ = [*experiment.units.items(), (experiment.metric, 1.0)]

    def shown(value: Tensor) -> str:
        return f"{float(value.mean()) * factor:.3f}"

    after = result.after.double().cpu()
    effect = _compare(after, result.before.double().cpu(), "lowers", "raises", "does not clearly change")
    what = f"the {experiment.metric}" if experiment.larger_is_better else "the error"
    text = [f"Adaptation {effect} {what}: {shown(result.before)} before, {shown(result.after)} after ({unit})."]
    for name, values in experiment.baselines.items():
        other = values[: len(after)].double()
        label = name.replace("_", "-")
        outcome = "WINS", "is beaten"
        lower, higher = outcome if experiment.larger_is_better else outcome[::-1]
        found = _compare(after, other, lower, higher, "cannot be told from the method on these tasks")
        text.append(f"The {label} baseline ({shown(other)}) {found}.")
    return " ".join(text)


def _compare(ours: Tensor, theirs: Tensor, lower: str, higher: str, unclear: str) -> str:
    difference = ours - theirs
    mean = float(difference.mean())
    half_width = 1.96 * float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    if abs(mean) <= half_width:
        return unclear
    return lower if mean < 0 else higher
