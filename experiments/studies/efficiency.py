"""Figures 3 and 4 of the A-MAML paper and 2b of iMAML again: seconds and peak memory against inner steps."""

from __future__ import annotations

from dataclasses import replace

from ..prepare import choose_device
from ..report import Report
from .contestants import missing
from .courses import facts, race_all
from .efficiency_report import FLOW_METHODS, IMPLICIT_METHODS, report
from .published import STEPS_3
from .race import GIB, Budget, Course
from .study import Setting

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
    races = race_all(setting, budget, device)
    notes = [*missing(), *(line for race in races for line in race["notes"])]
    return report(races, notes, facts(setting, budget, device))
