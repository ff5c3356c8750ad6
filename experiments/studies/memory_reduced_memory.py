"""Peak memory and seconds of a few-shot meta-gradient against inner steps: memory-reduced, MAML, ANIL, ITD-BiO."""

from __future__ import annotations

from dataclasses import replace

from ..prepare import choose_device
from ..report import Report
from .contestants import FEW_SHOT
from .courses import facts, race_all
from .memory_reduced_memory_report import report
from .race import GIB, Budget, Course
from .study import Setting, Study

STEPS = (1, 5, 10, 20, 50)


def _course(workload: str, tasks: int, steps: tuple[int, ...]) -> Course:
    return Course(workload, tasks, steps, tuple(FEW_SHOT), ())


_FULL = Budget(
    courses=(
        _course("five-way", 32, STEPS),
        _course("five-way-84", 32, STEPS),
        _course("five-way-halves", 32, STEPS),
    ),
    repeats=3,
    call=600.0,
    patience=1200.0,
    memory=24 * GIB,
    reference=0.0,
    total=0.0,
    tensors=True,
)
BUDGETS = {
    "quick": replace(
        _FULL,
        courses=(_course("five-way", 2, STEPS), _course("five-way-halves", 2, (20,))),
        repeats=1,
        call=30.0,
        patience=120.0,
        memory=4 * GIB,
    ),
    "full": _FULL,
}


def run(setting: Setting) -> Report:
    """Measure every contestant in a process of its own, and report."""
    budget = BUDGETS[setting.budget]
    device = choose_device(setting.device)
    races = race_all(setting, budget, device)
    notes = [line for race in races for line in race["notes"]]
    return report([race["entries"] for race in races], notes, facts(setting, budget, device))


MEMORY = Study("Memory-reduced meta-learning: peak memory and seconds against inner steps", run, BUDGETS, on_gpu=True)
