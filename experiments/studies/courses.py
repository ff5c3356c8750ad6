"""The courses of a budget as cells of a study: each is raced once, and kept."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from .race import Budget, Course, Race
from .study import Setting
from .workloads import details


def race_all(setting: Setting, budget: Budget, device: torch.device) -> list[dict[str, Any]]:
    """Return a mapping a course: its ``entries``, and ``notes`` on what was left out.

    On a CPU, where one thread works, ``seconds`` are the processor's: other work on the machine shall not count.

    Raises:
        Interrupted: if the study is to stop; the course that was being raced is raced anew when it goes on.
    """
    races = []
    for number, course in enumerate(budget.courses):

        def raced(course: Course = course) -> dict[str, Any]:
            race = Race(course, budget, device, 1, setting.step)
            try:
                return {"entries": [_own_seconds(entry, device) for entry in race.run()], "notes": race.notes}
            finally:
                race.close()

        races.append(setting.cell(f"{number}-{course.workload}", raced))
    return races


def facts(setting: Setting, budget: Budget, device: torch.device) -> dict[str, Any]:
    """Return what decides the numbers, for the report."""
    return {
        "budget": setting.budget,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, 1 thread",
        "dtype": "float32",
        "repeats": budget.repeats,
        "courses": [asdict(course) for course in budget.courses],
        "workloads": details(course.workload for course in budget.courses),
    }


def _own_seconds(entry: dict[str, Any], device: torch.device) -> dict[str, Any]:
    if device.type != "cpu":
        return entry
    return {**entry, "wall_seconds": entry["seconds"], "seconds": entry["cpu_seconds"]}
