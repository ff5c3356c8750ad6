"""The report of the inner optimisers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..comparison_report import MARKERS, PALETTE
from ..plots import figure
from ..report import Picture, Report, Table

Records = Sequence[Mapping[str, Any]]
MIB = 2**20
# Relative errors of the meta-gradient at which costs are compared.
TARGETS = (1e-1, 1e-2, 1e-4)
# A task is at a stationary point when its slope is below the first, and at another one when it is that far away.
_AT_REST, _ELSEWHERE = 1e-4, 1e-2


def report(records: Records, memory: Mapping[str, Mapping[str, float]], setting: Mapping[str, Any]) -> Report:
    """Return the report of the records, one a solver, rate, λ, number of steps and task, and of each one's memory."""
    lambdas = sorted({r["lambda"] for r in records})
    return Report(
        title="The inner solver of iMAML: gradient descent, momentum, Adam, Newton-CG",
        question=(
            "iMAML's gradient is exact at the minimiser of L_s(φ) + ½λ‖φ − θ‖², however one gets there. Four solvers "
            "start at θ on the same tasks: how far is φ from the minimiser after so many evaluations (gradients and "
            "Hessian-vector products of the whole batch), how wrong is the implicit meta-gradient taken there, and "
            "what does it cost in time and memory? Smaller is better."
        ),
        findings=[line for value in lambdas for line in findings(value, records)] + _memory_finding(memory),
        parts=[
            *[part for value in lambdas for part in (_picture(value, records), _table(value, records))],
            _memory_table(memory),
        ],
        records=records,
        departures=[
            "The reviewers' question has no published figure; there are no numbers of a paper to compare with.",
            "The reference is the stationary point that Newton-CG finds from θ to rounding. Where the inner problem is "
            "not convex, another solver may end at another one, and is then as far from it as these are apart. "
            "Newton-CG's own path ends at the reference, so that its last errors are rounding, drawn at 1e-16.",
            "The implicit gradient is taken by CG to 1e-10 in every case, so that only the inner solver differs; its "
            "evaluations are not counted.",
            "A first-order solver is shown with the best of its learning rates: the one that comes within 1 % of "
            "the meta-gradient first, or else ends nearest to the minimiser.",
        ],
        setting={key: str(value) for key, value in setting.items()},
    )


def best(records: Records) -> dict[str, list[Mapping[str, Any]]]:
    """Return each solver's records at its best learning rate.

    It is the one that reaches the middle target in the fewest evaluations, or else ends nearest to the minimiser.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name in dict.fromkeys(r["optimiser"] for r in records):
        of = [r for r in records if r["optimiser"] == name]
        rates = {rate: [r for r in of if r["rate"] == rate] for rate in dict.fromkeys(r["rate"] for r in of)}
        found[name] = min(rates.values(), key=_rank)
    return found


def _rank(records: Records) -> tuple[float, float]:
    reached = reach(records, TARGETS[1])
    return math.inf if reached is None else reached[0], list(_curve(records, "distance").values())[-1]


def _curve(records: Records, key: str) -> dict[int, float]:
    """Return the median over tasks at each number of steps."""
    steps = sorted({r["steps"] for r in records})
    return {n: float(np.median([r[key] for r in records if r["steps"] == n])) for n in steps}


def reach(records: Records, target: float) -> tuple[int, float] | None:
    """Return the evaluations and seconds after which the median error of the meta-gradient stays below the target."""
    errors = _curve(records, "error")
    for n in errors:
        if all(error <= target for m, error in errors.items() if m >= n):
            at = next(r for r in records if r["steps"] == n)
            return at["evaluations"], at["seconds"]
    return None


def findings(value: float, records: Records) -> list[str]:
    """Return for one λ who reaches the middle target first, and who ends elsewhere."""
    chosen = best([r for r in records if r["lambda"] == value])
    target = TARGETS[1]
    reached = {name: found for name, of in chosen.items() if (found := reach(of, target)) is not None}
    late = [name for name in chosen if name not in reached]
    lines = []
    if reached:
        least = min(evaluations for evaluations, _ in reached.values())
        fewest = " and ".join(name for name, (evaluations, _) in reached.items() if evaluations == least)
        fastest = min(reached, key=lambda name: reached[name][1])
        costs = ", ".join(f"{name} {cost[0]} ({cost[1]:.2f} s)" for name, cost in reached.items())
        verdict = f"{fewest} take{'' if ' and ' in fewest else 's'} the fewest evaluations, {fastest} the least time"
        lines.append(
            f"λ = {value:g}: for a meta-gradient within {100 * target:g} %, {verdict}. Evaluations: {costs}"
            + (f"; {' and '.join(late)} did not get there" if late else "")
            + "."
        )
    else:
        lines.append(f"λ = {value:g}: no solver came within {100 * target:g} % of the meta-gradient.")
    for name, of in chosen.items():
        last = [r for r in of if r["steps"] == max(r["steps"] for r in of)]
        elsewhere = sum(r["slope"] < _AT_REST and r["distance"] > _ELSEWHERE for r in last)
        if elsewhere:
            lines.append(
                f"λ = {value:g}: {name} ends at another stationary point than the reference in {elsewhere} of "
                f"{len(last)} tasks."
            )
    return lines


def _memory_finding(memory: Mapping[str, Mapping[str, float]]) -> list[str]:
    least = min(memory, key=lambda name: memory[name]["bytes"])
    most = max(memory, key=lambda name: memory[name]["bytes"])
    return [
        f"Memory: {least} needs the least, {memory[least]['bytes'] / MIB:.1f} MiB, and {most} the most, "
        f"{memory[most]['bytes'] / MIB:.1f} MiB, where φ itself takes {memory[least]['phi_bytes'] / MIB:.1f} MiB."
    ]


def _table(value: float, records: Records) -> Table:
    rows = []
    for name, of in best([r for r in records if r["lambda"] == value]).items():
        last = max(r["steps"] for r in of)
        rate = of[0]["rate"]
        end = next(r for r in of if r["steps"] == last)
        row = [
            name if rate is None else f"{name}, rate {rate:g}",
            str(last),
            str(end["evaluations"]),
            f"{end['seconds']:.2f}",
        ]
        row += [f"{_curve(of, key)[last]:.1e}" for key in ("distance", "error")]
        for target in TARGETS:
            found = reach(of, target)
            row.append("–" if found is None else f"{found[0]} ({found[1]:.2f} s)")
        rows.append(row)
    columns = ["", "steps", "evaluations", "CPU seconds", "distance", "error", *(f"error ≤ {t:g}" for t in TARGETS)]
    note = (
        "After the most steps: distance ‖φ − φ*‖ / ‖φ* − θ‖ and relative error of the implicit meta-gradient, medians "
        "over tasks. Right: evaluations (CPU seconds) until the median error stays below; –: not reached."
    )
    return Table(f"λ = {value:g}: where each inner solver gets", columns, rows, note)


def _memory_table(memory: Mapping[str, Mapping[str, float]]) -> Table:
    rows = [[name, f"{m['bytes'] / MIB:.1f}", f"{m['bytes'] / m['phi_bytes']:.1f}"] for name, m in memory.items()]
    size = next(iter(memory.values()))["phi_bytes"] / MIB
    note = (
        f"Growth of the process's peak during two steps; the second column is in units of φ, {size:.1f} MiB. Newton-CG "
        "keeps the graph of a gradient for its products; the others free it."
    )
    return Table("Memory of the inner solver", ["", "MiB", "in units of φ"], rows, note)


def _picture(value: float, records: Records) -> Picture:
    made, axes = figure(3, width=4.6, height=4.2)
    panels = (("evaluations", "distance"), ("evaluations", "error"), ("seconds", "error"))
    for number, (name, of) in enumerate(best([r for r in records if r["lambda"] == value]).items()):
        color, marker = PALETTE[number], MARKERS[number]
        for each, (across, up) in zip(axes, panels, strict=True):
            x = list(_curve(of, across).values())
            steps = list(_curve(of, up))
            values = [np.maximum([r[up] for r in of if r["steps"] == n], 1e-16) for n in steps]
            each.plot(x, [np.median(v) for v in values], color=color, marker=marker, markersize=4, label=name)
            low, high = [float(v.min()) for v in values], [float(v.max()) for v in values]
            each.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    for each, (across, up) in zip(axes, panels, strict=True):
        each.set_xscale("log")
        each.set_yscale("log")
        each.set_xlabel("evaluations: gradients and products" if across == "evaluations" else "CPU seconds")
        each.set_ylabel("distance to the minimiser" if up == "distance" else "error of the implicit meta-gradient")
    axes[1].set_title(f"λ = {value:g}", fontsize=11)
    axes[0].legend(frameon=False, fontsize=9)
    caption = (
        f"λ = {value:g}: medians over tasks, shaded from the smallest to the largest; distance relative to that "
        "between θ and the minimiser, error relative to the exact implicit gradient."
    )
    return Picture(f"inner-optimisers-{value:g}", caption, made)
