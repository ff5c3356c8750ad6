"""The report on the convergence of memory-reduced meta-learning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..report import Report, Table
from ..statistics import Values
from .memory_reduced_convergence_plot import Found, error_picture, floors, residual_picture

# What is below this is rounding, and no error.
ROUNDING = 1e-13
TARGETS = (1e-1, 1e-2, 1e-3, 1e-4)


def report(found: Found, budget: Any, known: Mapping[str, Any], setting: Mapping[str, Any]) -> Report:
    """Return the report.

    Args:
        found: curves by ``part/name``: errors by inner steps and by products, ‖∇Φ‖² by meta-steps.
        budget: where they were measured.
        known: step sizes, spectra, and the predicted residuals by size of batch.
    """
    many, few = budget.inner
    problem = budget.problem
    return Report(
        title="Memory-reduced meta-learning: how exact is the hypergradient, and does it converge?",
        question=(
            "Every task fits its own linear head by gradient descent, and all share coefficients ψ. Both levels are "
            "strongly convex quadratics, so that the exact ∇Φ is known from dense linear algebra. How wrong is each "
            "method's hypergradient after n inner steps, and after k products with the Hessian? Does ‖∇Φ‖² vanish at "
            "the rate of O(1/ε) meta-steps when each takes all tasks, and where does it stay when each draws a few? "
            "AID-BiO starts its heads and CG where the meta-step before left them; ITD-BiO differentiates the inner "
            "steps; stocBiO takes a Neumann series in place of CG."
        ),
        findings=findings(found, budget, known),
        parts=[
            error_picture(found, budget),
            _error_table(found, budget),
            residual_picture(found, budget, known),
            _descent_table(found, budget),
            _batch_table(found, budget, known),
        ],
        records=_records(found, budget, known),
        departures=[
            "The paper's theorems could not be obtained, only its abstract: O(1/ε) for all tasks, a residual of "
            "O(1/|B|) for batches. The problem and its sizes are ours, and no number of the paper stands beside them.",
            f"{problem.tasks} tasks of {problem.points} support points, heads of {problem.head} entries, ψ of "
            f"{problem.shared}; inner step 1/max ‖∇²_φL_s‖ = {known['inner_lr']:.3f}, outer step 1/‖∇²Φ‖ = "
            f"{known['outer_lr']:.3f}.",
            "A softmax head, as in the paper's experiments, is convex and not strongly so; the theory that asks for "
            "strong convexity does not cover it.",
            "stocBiO takes all support points in each of its products, where its authors draw some of them.",
            f"Random batches are drawn with replacement, and adapt by {(many + few) // 2} inner steps.",
        ],
        setting=setting,
    )


# What follows from the curves


def exponent(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Return p of y ∝ xᵖ, fitted to the logarithms, and its standard error (NaN from two points)."""
    a, b = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    p, shift = np.polyfit(a, b, 1)
    spread = float(((b - p * a - shift) ** 2).sum())
    if len(a) < 3:
        return float(p), math.nan
    return float(p), math.sqrt(spread / (len(a) - 2) / float(((a - a.mean()) ** 2).sum()))


def mean_so_far(residuals: Sequence[float]) -> Values:
    """Return for each K the mean of the first K, which the theorems bound by a constant over K."""
    values: Values = np.cumsum(residuals) / np.arange(1, len(residuals) + 1)
    return values


def reached(residuals: Sequence[float], target: float) -> int | None:
    """Return after how many meta-steps ‖∇Φ‖² stays below a share of its first value."""
    above = np.flatnonzero(np.array(residuals) > target * residuals[0])
    after = int(above[-1]) + 1 if above.size else 0
    return None if after >= len(residuals) else after


def rests(residuals: Sequence[float]) -> bool:
    """Return whether ‖∇Φ‖² no longer falls: over the last third to no less than half."""
    return residuals[-1] > 0.5 * residuals[2 * len(residuals) // 3]


def findings(found: Found, budget: Any, known: Mapping[str, Any]) -> list[str]:
    """Return what follows from the curves."""
    return [
        _accuracy(found, budget, known),
        _linear_solve(found, budget),
        _all_tasks(found, budget),
        _few_steps(found, budget),
        _random_tasks(found, budget, known),
    ]


def _accuracy(found: Found, budget: Any, known: Mapping[str, Any]) -> str:
    steps, errors = np.array(budget.steps), np.array(found["steps/memory-reduced"])
    late = (errors > ROUNDING) & (steps >= 5)
    slope = float(np.polyfit(steps[late], np.log(errors[late]), 1)[0])
    bound = math.log(1 - known["inner_lr"] * known["least_curvature"])
    at = budget.steps.index(budget.inner[0])
    others = ", ".join(f"{name} {found[f'steps/{name}'][at]:.1e}" for name in ("AID-BiO", "ITD-BiO", "stocBiO"))
    return (
        f"The hypergradient's error falls by a factor of {math.exp(slope):.2f} an inner step, down to rounding; "
        f"the slowest mode of all heads contracts by 1 − αμ = {math.exp(bound):.2f}. At {budget.inner[0]} steps it is "
        f"{errors[at]:.1e} ({others})."
    )


def _linear_solve(found: Found, budget: Any) -> str:
    target = 1e-6
    needed = {
        name: next((k for k, e in zip(budget.products, found[f"products/{name}"], strict=True) if e < target), None)
        for name in ("CG", "Neumann series")
    }
    said = ", ".join(f"{name} {'more than all' if k is None else k}" for name, k in needed.items())
    return (
        f"Products with the Hessian for an error below {target:g} at heads at rest: {said}. Without any, which leaves "
        f"∂_ψL_q alone, the error is {found['products/CG'][0]:.2g}."
    )


def _all_tasks(found: Found, budget: Any) -> str:
    residuals = found["all/memory-reduced"]
    k = np.arange(1, len(residuals) + 1)
    late = k >= max(3, len(k) // 10)
    mean, _ = exponent(k[late], mean_so_far(residuals)[late])
    last, _ = exponent(k[late], np.array(residuals)[late])
    verdict = "as O(1/ε) asks" if mean < -0.9 else "more slowly than O(1/ε)"
    return (
        f"With all tasks and {budget.inner[0]} inner steps the mean of ‖∇Φ‖² over the first K meta-steps falls as "
        f"K^{mean:.2f}, {verdict}; ‖∇Φ‖² itself falls as k^{last:.1f} over the last decade, to "
        f"{residuals[-1] / residuals[0]:.1e} of what it was."
    )


def _few_steps(found: Found, budget: Any) -> str:
    few = ("memory-reduced, few steps", "AID-BiO", "ITD-BiO", "stocBiO")
    stay = {name: found[f"all/{name}"] for name in few if rests(found[f"all/{name}"])}
    go_on = [name for name in few if name not in stay]
    lines = f"With {budget.inner[1]} inner steps "
    if stay:
        where = ", ".join(f"{name} {r[-1] / r[0]:.0e}" for name, r in stay.items())
        lines += f"‖∇Φ‖² stays at the bias of the hypergradient ({where}, of its first value)"
    if go_on:
        ends = ", ".join(f"{name} {found[f'all/{name}'][-1] / found[f'all/{name}'][0]:.0e}" for name in go_on)
        lines += f"{'; ' if stay else ''}it keeps falling for {ends}"
    return lines + (", whose heads go on from where they were." if go_on == ["AID-BiO"] else ".")


def _random_tasks(found: Found, budget: Any, known: Mapping[str, Any]) -> str:
    measured = floors(found, budget)
    p, error = exponent(list(measured), list(measured.values()))
    ratios = [value / known["predicted"][size] for size, value in measured.items()]
    return (
        f"With random tasks ‖∇Φ‖² stays at a residual that falls as |B|^{p:.2f} (± {error:.2f}; 1/|B| is -1), between "
        f"{min(ratios):.2f} and {max(ratios):.2f} times what the variance of the tasks' gradients predicts."
    )


# Tables


def _error_table(found: Found, budget: Any) -> Table:
    names = [key.split("/")[1] for key in found if key.startswith("steps/")]
    rows = [
        [str(n), *(f"{found[f'steps/{name}'][place]:.1e}" for name in names)] for place, n in enumerate(budget.steps)
    ]
    note = (
        "At ψ = 0. v by CG to rounding, and by as many products as inner steps for stocBiO; AID-BiO at the tenth "
        "meta-gradient at the same ψ."
    )
    return Table("‖ĝ − ∇Φ‖ / ‖∇Φ‖ against inner steps", ["inner steps", *names], rows, note)


def _descent_table(found: Found, budget: Any) -> Table:
    rows = []
    for key, residuals in found.items():
        part, name, *_ = key.split("/")
        if part == "all":
            meta_steps = [reached(residuals, target) for target in TARGETS]
            inner = budget.inner[0 if name == "memory-reduced" else 1]
            rows.append(
                [
                    name.split(",")[0],
                    str(inner),
                    *("–" if k is None else str(k) for k in meta_steps),
                    f"{residuals[-1] / residuals[0]:.0e}",
                ]
            )
    columns = ["all tasks", "inner steps", *(f"{target:g}" for target in TARGETS), "at the end"]
    note = f"‖∇Φ‖² relative to its first value; –: not within {budget.meta_steps} meta-steps."
    return Table("Meta-steps until ‖∇Φ‖² stays below", columns, rows, note)


def _batch_table(found: Found, budget: Any, known: Mapping[str, Any]) -> Table:
    rows = [
        [str(size), f"{value:.3g}", f"{known['predicted'][size]:.3g}", f"{value / known['predicted'][size]:.2f}"]
        for size, value in floors(found, budget).items()
    ]
    note = (
        f"Mean over the last half of {budget.meta_steps} meta-steps and {budget.seeds} seed"
        f"{'s' if budget.seeds > 1 else ''}; predicted from the covariance of the tasks' exact gradients at the "
        "minimiser, to first order in 1/|B|."
    )
    return Table("‖∇Φ‖² that remains with random batches", ["tasks", "measured", "predicted", "ratio"], rows, note)


def _records(found: Found, budget: Any, known: Mapping[str, Any]) -> list[dict[str, Any]]:
    places = {"steps": budget.steps, "products": budget.products}
    records: list[dict[str, Any]] = []
    for key, values in found.items():
        part, name, *seed = key.split("/")
        across = places.get(part, range(len(values)))
        of = {"batch": int(name), "seed": int(seed[0])} if part == "random" else {"method": name}
        what = "error" if part in places else "residual"
        records += [{"part": part, **of, "at": x, what: y} for x, y in zip(across, values, strict=True)]
    for size, value in known["predicted"].items():
        records.append({"part": "predicted", "batch": size, "residual": value})
    return records
