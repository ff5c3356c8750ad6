"""From iMAML to the flow, in words and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..comparison import Comparison
from ..report import Report, Table
from ..statistics import holm, wilcoxon
from .implicit_to_flow_findings import FLOW, NAMES, ORDERS, Findings, mean
from .implicit_to_flow_plot import pictures


def report(found: Findings, setting: Mapping[str, Any]) -> Report:
    """Return the report."""
    paths, distance, error = pictures(found)
    return Report(
        title="From iMAML to the gradient flow by implicit steps",
        question=(
            "iMAML adapts to the proximal point of θ with strength λ. That is one backward Euler step of length "
            "T = 1/λ along the gradient flow, and its implicit derivative is the exact transpose of the step. n such "
            "steps of T/n make a family of methods: iMAML is n = 1, the flow of A-MAML is n → ∞. How does the "
            "meta-gradient get from one to the other, and does it matter for the test error?"
        ),
        findings=_findings(found),
        parts=[
            *(paths, distance, error),
            *_tables(found),
            _training(found.trained),
            *(f"Failed: {line}" for line in found.failed),
        ],
        records=[*_records(found), *found.trained.records()],
        departures=[
            "No paper draws this. Tasks and network of CosMixture are those of the A-MAML paper's section 5.1 (50 "
            "support points), the linear regressions those of the study imaml-accuracy.",
            f"Trained θ: {setting['meta_steps']} meta-steps with the flow by rk4, T = {setting['train_horizon']:g}; "
            "each n is meta-trained as long, from the same initialisation, over the same tasks in the same order.",
        ],
        setting=setting,
    )


def _findings(found: Findings) -> list[str]:
    return [
        *_identity(found),
        *(_start_of(found, case) for case in found.first),
        *(_orders(found, solver) for solver in NAMES),
        *_test_error(found),
        f"After meta-training, test error with each one's own adaptation: {found.trained.ordering()}",
    ]


def _identity(found: Findings) -> list[str]:
    """Return how far iMAML is from one implicit Euler step, over all cases and tasks."""
    known = {case: first.get("imaml") for case, first in found.first.items()}
    worst = {case: max(values) for case, values in known.items() if values is not None}
    close = [value for value in worst.values() if value < 1e-6]
    lines = []
    if close:
        lines.append(
            "iMAML, its inner problem solved by gradient descent and its linear system by CG, gives the meta-gradient "
            f"of one implicit Euler step to {max(close):.0e} relative for every task in {len(close)} of {len(known)} "
            "cases: they are one method."
        )
    for case in known:
        if worst.get(case, math.inf) >= 1e-6:
            values = known[case] or [math.nan]
            lines.append(
                f"{_name(case)}: there the two differ by {np.median(values):.0e} for the median task and "
                f"{max(values):.0e} for the worst: gradient descent is not at rest there, or rests elsewhere."
            )
    return lines


def _name(case: tuple[str, float]) -> str:
    return f"{case[0]}, T = {case[1]:g}"


def _start_of(found: Findings, case: tuple[str, float]) -> str:
    first = found.first[case]
    gradient, cosine = mean(first["gradient"]), mean(first["cosine"])
    within = {
        share: next(
            (each["n"] for each in found.along(case, "implicit_euler") if mean(each["gradient"]).mean < share), None
        )
        for share in (0.1, 0.01)
    }
    reached = ", ".join(f"{100 * share:g} % from n = {n}" for share, n in within.items() if n is not None)
    return (
        f"{_name(case)}: with n = 1 the meta-gradient is {100 * gradient.mean:.0f} ± "
        f"{100 * gradient.half:.0f} % off the flow's (cosine {cosine.mean:.3f}); "
        f"within {reached or '10 % at no n here'}."
    )


def _orders(found: Findings, solver: str) -> str:
    """Return the measured orders, of the cases where the steps resolve the flow and of the others."""
    slopes: dict[bool, list[float]] = {True: [], False: []}
    for case in found.cases:
        n, errors = found.curve(case, solver, "gradient")
        if len(n) > 1:
            slope = math.log(errors[-2].mean / errors[-1].mean) / math.log(n[-1] / n[-2])
            slopes[case[1] * found.flow(case)["radius"] / n[-2] < 1].append(slope)
    said = [
        f"{min(each):.2f} to {max(each):.2f} where h‖H‖ is {where} 1 ({len(each)} of {len(found.cases)} cases)"
        for each, where in ((slopes[True], "below"), (slopes[False], "above"))
        if each
    ]
    return (
        f"{NAMES[solver]}, a method of order {ORDERS[solver]}, approaches the flow with order "
        f"{' and '.join(said) or '(not measured)'}, over the last two n."
    )


def _test_error(found: Findings) -> list[str]:
    """Return for each case whether one step or the flow adapts better, paired over tasks."""
    pairs = [[np.array([each["rmse"]]) for each in (first, found.flow(case))] for case, first in found.first.items()]
    lines = []
    for case, (first, flow), p in zip(found.first, pairs, holm([wilcoxon(*pair) for pair in pairs]), strict=True):
        better = "the flow is better" if flow.mean() < first.mean() else "n = 1 is better"
        lines.append(
            f"{_name(case)}: adapted from the same θ the test error is {first.mean():.3f} with n = 1 and "
            f"{flow.mean():.3f} by the flow; {better if p < 0.05 else 'not told apart'} (paired Wilcoxon over tasks, "
            f"Holm-adjusted p = {p:.2g})."
        )
    return lines


def _tables(found: Findings) -> list[Table]:
    return [_table(found, case) for case in found.cases]


def _table(found: Findings, case: tuple[str, float]) -> Table:
    rows = []
    for solver, name in NAMES.items():
        for each in found.along(case, solver):
            label = f"{name}, n = {each['n']}" + (" (iMAML)" if (solver, each["n"]) == ("implicit_euler", 1) else "")
            rows.append(
                [
                    label,
                    _percent(each["gradient"]),
                    f"{mean(each['cosine']).mean:.5f}",
                    _percent(each["phi"]),
                    str(mean(each["rmse"])),
                    str(each["evaluations"]),
                ]
            )
    flow = found.flow(case)
    rows.append([FLOW, "0", "1", "0", str(mean(flow["rmse"])), str(flow["evaluations"])])
    check = max(flow["gradient"])
    return Table(
        f"{_name(case)} (λ = {1 / case[1]:g})",
        ["", "meta-gradient, %", "cosine", "φ(T), %", "test RMSE", "gradients + HVPs"],
        rows,
        "Relative distances from the flow, φ's in terms of the way moved ‖φ(T) − θ‖; mean over tasks ± half of the "
        f"95 % interval. Two tight solves of the flow agree to {check:.0e} in the meta-gradient of every task.",
    )


def _percent(values: Sequence[float]) -> str:
    found = mean(values)
    digits = max(0, min(5, 1 - math.floor(math.log10(max(100 * found.half, 1e-9)))))
    return f"{100 * found.mean:.{digits}f} ± {100 * found.half:.{digits}f}"


def _training(trained: Comparison) -> Table:
    columns, rows = trained.table()
    note = (
        f"{trained.metric} of the test tasks before and after each one's own adaptation; n = 1 is iMAML with its inner "
        "problem solved to rest. Mean ± half of the 95 % interval; p: Wilcoxon, paired, Holm-adjusted."
    )
    return Table("Meta-trained with n implicit Euler steps, and with the flow", columns, rows, note)


def _records(found: Findings) -> list[dict[str, Any]]:
    records = []
    for each in found.distances:
        record = {key: each[key] for key in ("problem", "horizon", "solver", "n")}
        for what in ("gradient", "cosine", "phi", "rmse"):
            if what in each:
                value = mean(each[what])
                record |= {what: value.mean, f"{what}_ci95": value.half}
        records.append({**record, "evaluations": each.get("evaluations"), "failed": each.get("failed")})
    return records
