"""Tables 4 and 5 beside the paper's, as rows for the terminal and as Markdown."""

from __future__ import annotations

from typing import Any

from .published import SCHEME
from .work_precision_report import error, markdown

Rows = list[list[str]]


def report(result: dict[str, Any]) -> str:
    """Return both tables as Markdown."""
    return "\n\n".join(
        [
            "# Tables 4 and 5 of the A-MAML paper",
            f"Means over {result['initialisations']} initial states, and as many initialisations, each on a task of "
            f"its own with {result['points']} support and query points. As many equal steps as states.",
            "## Table 4: dy/dt = −2t³ − 2ty, relative error of dL/dy(0)",
            markdown(*table4_rows(result)),
            "## Table 5: CosMixture, relative error of the meta-gradient",
            markdown(*table5_rows(result)),
            "\n".join(f"* {line}" for line in target_lines(result)),
            "",
        ]
    )


def table4_rows(result: dict[str, Any]) -> tuple[list[str], Rows]:
    """Return Table 4."""
    schemes = ("rk4", "tsit5", "dopri5", SCHEME)
    rows = [
        [
            f"T = {entry['horizon']:g}, {entry['states']}",
            error(entry["paper"]["autodiff"]),
            error(entry["paper"]["adjoint"]),
            *(error(entry[name]["mean"]) for name in schemes),
        ]
        for entry in result["table4"]
    ]
    return ["T, states", "paper, autodiff", "paper, adjoint", *schemes], rows


def table5_rows(result: dict[str, Any]) -> tuple[list[str], Rows]:
    """Return Table 5; the gain is the paper's error over rk4's, both against the own gradient with 1000 states."""
    rows = []
    for entry in result["table5"]:
        own = entry["rk4"]["own"]["mean"]
        rows.append(
            [
                f"T = {entry['horizon']:g}, {entry['states']}",
                error(entry["paper"]),
                _both(entry["rk4"]["own"]),
                error(entry["rk4"]["reference"]["mean"]),
                _both(entry[SCHEME]["own"]),
                error(entry[SCHEME]["reference"]["mean"]),
                "–" if entry["paper"] is None else f"{entry['paper'] / own:.1e}",
            ]
        )
    columns = ["T, states", "paper", "rk4, own", "rk4, reference", f"{SCHEME}, own", "reference", "gain of rk4"]
    return columns, rows


def _both(found: dict[str, float]) -> str:
    return f"{error(found['mean'])} ± {error(found['std'])}"


def target_lines(result: dict[str, Any]) -> list[str]:
    """Return how the two tables stand to what was aimed at."""
    found = result["targets"]
    largest = ", ".join(f"{name} {error(value)}" for name, value in found["table4_largest_at_100"].items())
    gain = found["table5_least_gain"]
    check = max(entry["reference_check"] for entry in result["table5"])
    return [
        f"Table 4, 100 states, largest error for T ≤ 1: {largest}",
        f"Table 5, rk4's error is smaller than the paper's by at least {gain['own']:.0f}× (own gradient), "
        f"{gain['reference']:.0f}× (reference); the two reference solves agree to {error(check)}",
    ]
