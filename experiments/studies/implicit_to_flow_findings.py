"""What the study from iMAML to the flow measures, and how its report and pictures read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..comparison import Comparison
from ..statistics import Interval, Values, interval

FLOW = "the flow"
NAMES = {"implicit_euler": "implicit Euler", "sdirk2": "SDIRK2"}
ORDERS = {"implicit_euler": 1, "sdirk2": 2}


@dataclass(frozen=True)
class Findings:
    """What was measured.

    Args:
        distances: one mapping a problem, horizon, solver and n, with a value a task.
        trained: the meta-trainings, the flow's last.
    """

    distances: Sequence[Mapping[str, Any]]
    trained: Comparison

    @cached_property
    def cases(self) -> list[tuple[str, float]]:
        """Problems and horizons, in order."""
        return list(dict.fromkeys((each["problem"], each["horizon"]) for each in self.distances))

    def flow(self, case: tuple[str, float]) -> Mapping[str, Any]:
        """Return the flow's own measurements in a case."""
        return next(each for each in self._of(case) if each["solver"] == FLOW)

    @cached_property
    def first(self) -> dict[tuple[str, float], Mapping[str, Any]]:
        """One implicit Euler step, which is iMAML, by case; those where it failed are left out."""
        return {case: each for case in self.cases for each in self.along(case, "implicit_euler") if each["n"] == 1}

    def along(self, case: tuple[str, float], solver: str) -> list[Mapping[str, Any]]:
        """Return a solver's measurements by ascending n, without those that failed."""
        return [each for each in self._of(case) if each["solver"] == solver and "failed" not in each]

    def curve(self, case: tuple[str, float], solver: str, what: str) -> tuple[list[int], list[Interval]]:
        """Return n, and the mean over tasks of what was measured there."""
        along = self.along(case, solver)
        return [each["n"] for each in along], [mean(each[what]) for each in along]

    @property
    def failed(self) -> list[str]:
        """A line for each solve that failed."""
        return [
            f"{each['problem']}, T = {each['horizon']:g}, {NAMES[each['solver']]}, n = {each['n']}: {each['failed']}"
            for each in self.distances
            if "failed" in each
        ]

    def _of(self, case: tuple[str, float]) -> list[Mapping[str, Any]]:
        return [each for each in self.distances if (each["problem"], each["horizon"]) == case]


def mean(values: Sequence[float]) -> Interval:
    """Return the mean over tasks with its 95 % interval."""
    return interval(np.array([values], dtype=float))


def own_errors(trained: Comparison) -> dict[str, Values]:
    """Return the test errors ``[seeds, tasks]`` of the meta-trainings, by name."""
    return {name: trained.values(name) for name in trained.runs}
