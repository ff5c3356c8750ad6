"""Means with intervals over test tasks and seeds, and paired comparisons of methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]

# Of the bootstrap: enough for two digits of a half-width.
_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its 95 % interval."""

    mean: float
    half: float

    def __str__(self) -> str:
        if not math.isfinite(self.mean):
            return "diverged"
        return f"{self.mean:.3f} ± {self.half:.3f}"


def interval(values: Values) -> Interval:
    """Return the mean of ``[seeds, tasks]`` with its 95 % interval over both.

    The tasks of a seed share one trained initialisation, so a bootstrap resamples seeds, then tasks within each
    (Davison and Hinkley 1997, section 3.8); with one seed it is 1.96 standard errors over its tasks.
    """
    seeds, tasks = values.shape
    mean = float(values.mean())
    if not math.isfinite(mean):
        return Interval(mean, math.nan)
    if seeds == 1:
        return Interval(mean, 1.96 * float(values.std(ddof=1)) / math.sqrt(tasks) if tasks > 1 else math.nan)
    draw = np.random.default_rng(0)
    chosen = draw.integers(seeds, size=(_RESAMPLES, seeds, 1))
    among = draw.integers(tasks, size=(_RESAMPLES, seeds, tasks))
    return Interval(mean, 1.96 * float(values[chosen, among].mean(axis=(1, 2)).std(ddof=1)))


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a frequency, which keeps its width where the count is 0 or the total."""
    found = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def wilcoxon(ours: Values, theirs: Values) -> float:
    """Return the p-value of Wilcoxon's signed-rank test (two-sided) on differences paired by seed and task.

    The test is of ranks, where methods are ordered by means: if a few bad tasks decide the means and the ranks say the
    opposite, the means' order is not confirmed, and the p-value is 1. An infinite value ranks above all others.
    """
    pairs = np.stack([ours.ravel(), theirs.ravel()])
    ours, theirs = pairs[:, pairs[0] != pairs[1]]  # two infinities have no difference either
    if not ours.size:
        return 1.0
    alternative = "less" if pairs[0].mean() <= pairs[1].mean() else "greater"
    return min(1.0, 2 * float(stats.wilcoxon(ours - theirs, alternative=alternative).pvalue))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979)."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


# How orderings are tested, for a reader.
TEST = (
    "Orderings are by mean; the best is called better than another method where Wilcoxon's signed-rank test, paired "
    "over test tasks and Holm-adjusted for the number of methods, says so at the 5 % level and in the same direction. "
    "It speaks of the initialisations that were trained here: how they would vary over seeds is no part of it."
)


@dataclass(frozen=True)
class Ordering:
    """Methods from the best mean on, and how sure one is that the best is better.

    Args:
        names: best first.
        p: of the best against each of the others, Holm-adjusted, in the order of ``names[1:]``.
        larger: whether larger is better.
    """

    names: list[str]
    p: list[float]
    larger: bool = False

    @property
    def tied(self) -> list[str]:
        """Methods that the test cannot tell from the best at the 5 % level."""
        return [name for name, p in zip(self.names[1:], self.p, strict=True) if p >= 0.05]

    def sentence(self) -> str:
        """Return the statement that follows from the data."""
        best, others = self.names[0], self.names[1:]
        if not others:
            return f"{best} alone was run."
        behind = [name for name in others if name not in self.tied]
        if not self.tied:
            return f"{best} is best, ahead of {_and(behind)} (largest p = {max(self.p):.2g})."
        ahead = f" and ahead of {_and(behind)}" if behind else ""
        extreme = "largest" if self.larger else "smallest"
        return f"{best} has the {extreme} mean, not told apart from {_and(self.tied)}{ahead}."


def order(values: Mapping[str, Values], larger: bool = False) -> Ordering:
    """Order methods by their means ``[seeds, tasks]``, and test the best against the others.

    Args:
        larger: whether larger is better.
    """
    names = sorted(values, key=lambda name: float(values[name].mean()), reverse=larger)
    return Ordering(names, holm([wilcoxon(values[names[0]], values[name]) for name in names[1:]]), larger)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
