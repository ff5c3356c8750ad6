"""Methods side by side on one experiment: equal meta-steps, tasks in the same order, the same initialisation."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adjoint_meta.solvers import checks

from .config import METHODS
from .crew import Finished, Job
from .registry import resolve
from .statistics import Interval, Ordering, Values, interval, order, wilcoxon


def parse_methods(text: str) -> dict[str, dict[str, Any]]:
    """Turn ``"adjoint,maml:steps=50"`` into options by label: a name, and options of the method after colons.

    Raises:
        ValueError: for an unknown name, with its neighbours, an option without a value, or a name twice.
    """
    methods: dict[str, dict[str, Any]] = {}
    for label in (part.strip() for part in text.split(",")):
        name, *options = label.split(":")
        checks.one_of("method", name, METHODS)
        if label in methods:
            raise ValueError(f"method {label!r} is named twice")
        methods[label] = {"name": name}
        for option in options:
            key, equals, value = option.partition("=")
            if not equals or not key:
                raise ValueError(f"{label!r}: expected options as maml:steps=50, got {option!r}")
            methods[label][key] = yaml.safe_load(value)
    return methods


def jobs(
    experiment: str,
    methods: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    keys: Mapping[str, Any],
    out: Path,
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Job]:
    """Return the runs of a comparison, seed by seed; a seed decides tasks, their order and the initialisation.

    Args:
        methods: options by label.
        keys: configuration that all share.
        own: configuration in place of it, by label.

    Raises:
        ValueError: if a configuration cannot work.
    """
    return [
        Job(
            label,
            resolve({**keys, **(own or {}).get(label, {}), "method": dict(method), "seed": seed}, experiment),
            _path(out, label, seed),
        )
        for seed in seeds
        for label, method in methods.items()
    ]


def _path(out: Path, label: str, seed: int) -> Path:
    return out / "runs" / slug(label) / f"seed-{seed}"


def slug(label: str) -> str:
    """Return a label as the name of a directory."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")


@dataclass(frozen=True)
class Comparison:
    """Finished runs of several methods with the same seeds.

    Args:
        runs: by method, one a seed.
    """

    runs: Mapping[str, Sequence[Finished]]

    @classmethod
    def of(cls, finished: Sequence[Finished]) -> Comparison:
        """Sort runs by method."""
        runs: dict[str, list[Finished]] = {}
        for each in finished:
            runs.setdefault(each.job.name, []).append(each)
        return cls(runs)

    @property
    def metric(self) -> str:
        """What is measured."""
        metric: str = self._first.outcomes["metric"]
        return metric

    @property
    def larger_is_better(self) -> bool:
        """Whether larger values of the metric are better."""
        return bool(self._first.outcomes.get("larger_is_better", False))

    @property
    def units(self) -> dict[str, float]:
        """The metric in other units, as factors."""
        units: dict[str, float] = self._first.outcomes["units"]
        return units

    @property
    def _first(self) -> Finished:
        return next(iter(self.runs.values()))[0]

    def values(self, method: str, when: str = "after") -> Values:
        """Return the metric ``[seeds, tasks]``, "before" or "after" the method's own adaptation."""
        return self._values([each.outcomes[when] for each in self.runs[method]])

    def _values(self, outcomes: Sequence[Sequence[float | None]]) -> Values:
        """Return outcomes as numbers; one that was not finite is as bad as can be, so that its method comes last."""
        worst = -math.inf if self.larger_is_better else math.inf
        return np.array([[worst if value is None else value for value in each] for each in outcomes])

    def baselines(self) -> dict[str, Values]:
        """Return the baselines' metric ``[seeds, tasks]``."""
        some = next(iter(self.runs.values()))
        names = some[0].outcomes["baselines"]
        return {name: self._values([each.outcomes["baselines"][name] for each in some]) for name in names}

    def adam(self, method: str) -> dict[int, Values]:
        """Return the metric ``[seeds, tasks]`` by epochs of Adam; empty if there were none."""
        epochs = self.runs[method][0].outcomes["adam"]
        return {
            int(epoch): self._values([each.outcomes["adam"][epoch] for each in self.runs[method]]) for epoch in epochs
        }

    def mean(self, method: str, key: str) -> float:
        """Return a figure of the summaries, averaged over seeds, such as ``seconds_per_meta_step``."""
        return float(np.mean([each.summary[key] for each in self.runs[method]]))

    def seconds(self, method: str) -> float:
        """Return seconds a meta-step, without what compiling took once, averaged over seeds."""
        return float(np.mean([_seconds(each) for each in self.runs[method]]))

    @property
    def best(self) -> str:
        """The method with the best mean after adaptation."""
        return self._order("after").names[0]

    def ordering(self, when: str = "after") -> str:
        """Return which method is best, and which cannot be told from it."""
        return self._order(when).sentence()

    def _order(self, when: str) -> Ordering:
        return order({name: self.values(name, when) for name in self.runs}, self.larger_is_better)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the figures that everyone asks for: columns, and a row a method, best first."""
        after = {name: self.values(name) for name in self.runs}
        ranked = self._order("after")
        p = dict(zip(ranked.names[1:], ranked.p, strict=True))
        columns = ["", "before", "after", "p against best", "s / meta-step", "gradients + HVPs", "peak MiB"]
        rows = []
        for name in ranked.names:
            best = name == ranked.names[0]
            rows.append(
                [
                    name,
                    str(interval(self.values(name, "before"))),
                    f"{'*' if best else ''}{interval(after[name])}",
                    "–" if best else f"{p[name]:.2g}",
                    f"{self.seconds(name):.3g}",
                    f"{self.mean(name, 'n_grad_per_meta_step'):.0f} + {self.mean(name, 'n_hvp_per_meta_step'):.0f}",
                    f"{self.mean(name, 'peak_memory_bytes') / 2**20:.0f}",
                ]
            )
        for name, values in self.baselines().items():
            best_p = wilcoxon(after[ranked.names[0]], values)
            rows.append([name.replace("_", " "), "", str(interval(values)), f"{best_p:.2g}", "", "", ""])
        return columns, rows

    def records(self) -> list[dict[str, Any]]:
        """Return the same numbers, one mapping a method, seed and moment."""
        found = []
        for name, runs in self.runs.items():
            for each in runs:
                for when in ("before", "after"):
                    of: Interval = interval(self._values([each.outcomes[when]]))
                    found.append(
                        {
                            "experiment": each.summary["experiment"],
                            "method": name,
                            "seed": each.summary["seed"],
                            "when": when,
                            self.metric: of.mean,
                            "ci95": of.half,
                            "tasks": len(each.outcomes[when]),
                            "seconds_per_meta_step": _seconds(each),
                            "n_grad_per_meta_step": each.summary["n_grad_per_meta_step"],
                            "n_hvp_per_meta_step": each.summary["n_hvp_per_meta_step"],
                            "peak_memory_bytes": each.summary["peak_memory_bytes"],
                        }
                    )
        return found


def _seconds(run: Finished) -> float:
    found = run.summary
    return float((found["seconds"] - found["compile_seconds"]) / found["meta_steps"])
