"""All contestants on one workload, their measurements taken in turns, within a budget."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .contestants import CONTESTANTS, ENTRANTS, REFERENCES, backends, unavailable
from .fresh_process import FreshProcess, Job
from .peers import installed
from .workloads import workload

GIB = 2**30
# Sees how far the study is: (done, of how many, what comes next).
Observer = Callable[[int, int, str], None]
# Those of ours that stand for the others where time is short.
CORE = ("MAML", "A-MAML rk4", "iMAML")
# All others' seconds are given as a multiple of this one's.
YARDSTICK = ("MAML", "eager")
UNITS = ("seconds", "cpu_seconds")


@dataclass(frozen=True)
class Course:
    """One workload over several numbers of steps.

    Args:
        workload: a name that `workload` knows.
        tasks: how many.
        steps: of the inner solve, ascending.
        contestants: names of `ENTRANTS`.
        compiled: those of ours that the backends other than eager are measured with.
    """

    workload: str
    tasks: int
    steps: tuple[int, ...]
    contestants: tuple[str, ...] = tuple(CONTESTANTS)
    compiled: tuple[str, ...] = CORE

    @property
    def title(self) -> str:
        """What it is."""
        tasks = "1 task" if self.tasks == 1 else f"{self.tasks} tasks"
        return f"{workload(self.workload).title}, {tasks}"


@dataclass(frozen=True)
class Budget:
    """How much a study may take.

    Args:
        courses: what is measured, the most wanted first.
        repeats: of each measurement; fewer of one that takes more than ``call`` seconds in all.
        call: seconds; a meta-gradient predicted to take longer is left out.
        patience: seconds until a process that does not answer is ended; compilation falls under it.
        memory: bytes; a meta-gradient predicted to take more is left out.
        reference: seconds that a reference may take; 0 for no errors.
        total: seconds after which no other course is begun.
        tensors: whether to follow the bytes of tensors, too, in a call of their own.
    """

    courses: tuple[Course, ...]
    repeats: int
    call: float
    patience: float
    memory: float
    reference: float
    total: float
    tensors: bool = False


class Race:
    """All contestants on one course, each in a process of its own, their measurements taken in turns.

    Args:
        course: what is measured.
        budget: its limits.
        device: where.
        threads: of torch.
        observe: sees each measurement before it is made.
    """

    def __init__(self, course: Course, budget: Budget, device: torch.device, threads: int, observe: Observer) -> None:
        self.course, self.budget, self.observe = course, budget, observe
        self.notes: list[str] = []
        job = Job(course.workload, course.tasks, "", device=device.type, threads=threads)
        self._processes = {
            (name, backend): FreshProcess(replace(job, contestant=name, backend=backend))
            for name, backend in _entrants(course, device)
        }
        wanted = {ENTRANTS[name].target for name in course.contestants}
        self._references = {
            target: FreshProcess(replace(job, contestant=target, dtype="float64"))
            for target in REFERENCES
            if target in wanted and budget.reference > 0
        }
        self._pace = dict.fromkeys(REFERENCES, 0.0)  # seconds a step
        self._total = len(self._processes) * len(course.steps)

    def run(self) -> list[dict[str, Any]]:
        """Return an entry a contestant, backend and number of steps."""
        entries: list[dict[str, Any]] = []
        last: dict[tuple[str, str], dict[str, Any]] = {}
        for steps in self.course.steps:
            found = {key: m for key in list(self._processes) if (m := self._first(key, steps, last.get(key)))}
            targets = {ENTRANTS[name].target for name, _ in found}
            exact = {target: self._reference(target, steps) for target in tuple(self._references) if target in targets}
            taken = {key: [m] for key, m in found.items()}
            for _ in range(self.budget.repeats - 1):
                for key, each in taken.items():
                    if sum(m["seconds"] for m in each) < self.budget.call:
                        each += self._again(key, steps)
            for key, m in found.items():
                median = {unit: statistics.median(each[unit] for each in taken[key]) for unit in UNITS}
                last[key] = {**m, **median, "steps": steps}
            yardstick = last[YARDSTICK]["seconds"] if YARDSTICK in found else None
            for key in found:
                entries.append(self._entry(key, steps, last[key], exact, yardstick))
        return entries

    def close(self) -> None:
        """End all processes."""
        for process in (*self._processes.values(), *self._references.values()):
            process.close()

    def _first(self, key: tuple[str, str], steps: int, last: dict[str, Any] | None) -> dict[str, Any] | None:
        """Measure for the first time at this number of steps, or note why not and drop the contestant."""
        self.observe(self._done(steps, key), self._total, f"{self.course.title}: {key[0]}, {key[1]}, {steps} steps")
        why = self._forbidden(steps, last)
        if why is None:
            found = self._processes[key].measure(steps, self.budget.patience)
            if self.budget.tensors and "failed" not in found:
                found |= self._processes[key].measure(steps, self.budget.patience, tensors=True)
            why = found.get("failed")
        if why is None:
            return found
        backend = "" if key[1] == "eager" else f" ({key[1]})"
        self.notes.append(f"{self.course.title}: {key[0]}{backend} stops before {steps} steps: {why}")
        self._processes.pop(key).close()
        return None

    def _again(self, key: tuple[str, str], steps: int) -> list[dict[str, Any]]:
        found = self._processes[key].measure(steps, self.budget.patience, again=True)
        return [] if "failed" in found else [found]

    def _forbidden(self, steps: int, last: dict[str, Any] | None) -> str | None:
        if last is None:
            return None
        growth = steps / last["steps"]
        if last["seconds"] * growth > self.budget.call:
            return f"it would take about {last['seconds'] * growth:.0f} s, where {self.budget.call:g} are allowed"
        if last["extra"] * growth > self.budget.memory:
            predicted, allowed = last["extra"] * growth / GIB, self.budget.memory / GIB
            return f"it would take up to {predicted:.1f} GiB, where {allowed:g} are allowed"
        return None

    def _reference(self, target: str, steps: int) -> Any:
        """Return the gradient that a target stands for, ``[P]`` in float64, or ``None`` when it takes too long."""
        if self._pace[target] * steps <= self.budget.reference:
            found = self._references[target].measure(steps, self.budget.patience)
            if "failed" not in found:
                self._pace[target] = found["seconds"] / steps
                return found["gradient"]
        self._references.pop(target).close()
        self.notes.append(f"{self.course.title}: no errors against {target} from {steps} steps on, for want of time")
        return None

    def _entry(
        self, key: tuple[str, str], steps: int, found: dict[str, Any], exact: dict[str, Any], yardstick: float | None
    ) -> dict[str, Any]:
        name, backend = key
        reference = exact.get(ENTRANTS[name].target or "")
        error = None
        if reference is not None:
            error = float(np.linalg.norm(found["gradient"] - reference) / np.linalg.norm(reference))
        return {
            "course": self.course.title,
            "workload": self.course.workload,
            "tasks": self.course.tasks,
            "contestant": name,
            "backend": backend,
            "steps": steps,
            "seconds": found["seconds"],
            "cpu_seconds": found["cpu_seconds"],
            "to_maml": None if yardstick is None else found["seconds"] / yardstick,
            "extra_mib": found["extra"] / 2**20,
            **({"tensor_mib": found["tensors"] / 2**20} if self.budget.tensors else {}),
            "error": error,
            "once": found["once"],
        }

    def _done(self, steps: int, key: tuple[str, str]) -> int:
        return self.course.steps.index(steps) * self._total // len(self.course.steps)


def _entrants(course: Course, device: torch.device) -> Iterator[tuple[str, str]]:
    """Yield contestants with their backends, those whose package is here."""
    for name in course.contestants:
        contestant = ENTRANTS[name]
        if not installed(contestant.package):
            continue
        yield name, "eager"
        if contestant.own and name in course.compiled:
            yield from (
                (name, backend) for backend in backends() if backend != "eager" and unavailable(backend, device) is None
            )
