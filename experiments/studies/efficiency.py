"""Figures 3 and 4 of the A-MAML paper and 2b of iMAML again: seconds and peak memory against inner steps."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from ..prepare import choose_device
from ..report import Report
from .contestants import missing
from .efficiency_report import FLOW_METHODS, IMPLICIT_METHODS, report
from .published import STEPS_3
from .race import GIB, Budget, Course, Race
from .study import Setting
from .workloads import details

_FULL = Budget(
    courses=(
        Course("regression", 5, STEPS_3, FLOW_METHODS, ("MAML", "A-MAML rk4", "A-MAML Heun", "iMAML", "FOMAML")),
        Course("omniglot-5-shot", 16, (1, 2, 5, 8, 10, 12, 16), IMPLICIT_METHODS, ()),
    ),
    repeats=5,
    call=120.0,
    patience=600.0,
    memory=16 * GIB,
    reference=0.0,
    total=7200.0,
)
BUDGETS = {
    "quick": replace(
        _FULL,
        courses=(
            Course("regression", 5, (1, 10, 50, 200, 500), FLOW_METHODS, ("MAML", "A-MAML rk4")),
            Course("omniglot-5-shot", 1, (1, 2, 5, 10, 16), IMPLICIT_METHODS, ()),
        ),
        repeats=2,
        call=12.0,
        patience=90.0,
        memory=3 * GIB,
        total=480.0,
    ),
    "full": _FULL,
}


def run(setting: Setting) -> Report:
    """Measure each figure's methods, every one in a process of its own, and report."""
    budget = BUDGETS[setting.budget]
    device = choose_device(setting.device)
    races = []
    for number, course in enumerate(budget.courses):

        def measured(course: Course = course) -> dict[str, Any]:
            race = Race(course, budget, device, 1, setting.step)
            try:
                return {"entries": [_own_seconds(entry, device) for entry in race.run()], "notes": race.notes}
            finally:
                race.close()

        races.append(setting.cell(f"{number}-{course.workload}", measured))
    facts = {
        "budget": setting.budget,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, 1 thread",
        "dtype": "float32",
        "repeats": budget.repeats,
        "courses": [asdict(course) for course in budget.courses],
        "workloads": details(course.workload for course in budget.courses),
    }
    return report(races, [*missing(), *(line for race in races for line in race["notes"])], facts)


def _own_seconds(entry: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Take the processor's seconds on a CPU, where one thread works and other work on the machine shall not count."""
    if device.type != "cpu":
        return entry
    return {**entry, "wall_seconds": entry["seconds"], "seconds": entry["cpu_seconds"]}
