"""Tables 4 and 5 of the A-MAML paper as a report: how accurate gradients are at a number of states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from adjoint_meta.solvers import Discrete

from ..report import Report
from .appendix import Extent, Scheme, closed_form_errors, spread, table4, table5
from .meta_gradient_error_report import AUTODIFF, report
from .study import Setting

BUDGETS = {
    "quick": Extent(count=10, states5=(10, 20, 50, 100), own_states=200),
    "full": Extent(),
}

# The paper's column "autodiff": modified Euler forward, and reverse mode through its steps.
HEUN = Scheme("heun", Discrete("steps"))


def run(setting: Setting) -> Report:
    """Make both tables, a horizon at a time, and report."""
    extent = BUDGETS[setting.budget]
    work = 2 * (len(extent.states5) + 1)  # solves of a horizon
    total = 1 + work * len(extent.horizons5)
    setting.observe(0, total, "table 4")
    first = setting.cell("table-4", partial(_table4, extent))
    second: list[dict[str, Any]] = []
    for number, horizon in enumerate(extent.horizons5):

        def show(done: int, _: int, what: str, before: int = 1 + number * work) -> None:
            setting.step(before + done, total, what)

        compute = partial(table5, replace(extent, horizons5=(horizon,)), show)
        second += setting.cell(f"table-5-{horizon:g}", compute)
    setting.observe(total, total, "report")
    facts = {"budget": setting.budget, **asdict(extent), "dtype": "float64", "seed": 0}
    return report(first, second, facts)


def _table4(extent: Extent) -> Sequence[dict[str, Any]]:
    """Return Table 4 with the paper's other column too."""
    return [
        {**entry, AUTODIFF: spread(closed_form_errors(HEUN, entry["horizon"], entry["states"], extent.count))}
        for entry in table4(extent)
    ]
