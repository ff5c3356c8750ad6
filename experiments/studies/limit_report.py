"""The limit study as rows for the terminal and as Markdown."""

from __future__ import annotations

from typing import Any

from .meta_gradient_report import where
from .work_precision_report import Rows, markdown

Table = tuple[list[str], Rows]


def report(result: dict[str, Any]) -> str:
    """Return the whole study as Markdown."""
    parts = [f"# A meta-gradient and its bare evaluations, `{result['budget']}` budget", headline(result)]
    parts.append("\n".join(f"* {line}" for line in result["workloads"]))
    for title, table in tables(result):
        parts += [f"## {title}", markdown(*table)]
    if result["notes"]:
        parts += ["## Left out", "\n".join(f"* {line}" for line in result["notes"])]
    return "\n\n".join(parts) + "\n"


def headline(result: dict[str, Any]) -> str:
    """Return where and how it was measured."""
    return (
        f"{where(result)}; medians of {result['rounds']} rounds. An HVP is timed with the gradient that falls out of "
        "it; the count of gradients leaves those out."
    )


def tables(result: dict[str, Any]) -> list[tuple[str, Table]]:
    """Return the table of methods and that of kernels, with their titles."""
    return [
        ("meta-gradient / (gradients + HVPs timed alone)", _methods(result)),
        ("kernels, and their share of the rate of batched matrix products", _kernels(result)),
    ]


def _methods(result: dict[str, Any]) -> Table:
    rows = [
        [
            f"{case['case']}: {each['method']}",
            case["backend"],
            f"{each['n_grad']} + {each['n_hvp']}",
            f"{1000 * each['seconds']:.4g}",
            f"{each['to_evaluations']:.2f}",
        ]
        for case in result["cases"]
        for each in case["methods"]
    ]
    return ["", "backend", "gradients + HVPs", "ms", "ratio"], rows


def _kernels(result: dict[str, Any]) -> Table:
    rows = []
    for case in result["cases"]:
        gradient, hvp, bmm = (case["kernels"][kind] for kind in ("gradient", "hvp", "bmm"))
        rows.append(
            [
                case["case"],
                case["backend"],
                f"{1000 * gradient['seconds']:.3g}",
                f"{1000 * hvp['seconds']:.3g}",
                f"{case['hvp_to_gradient']:.2f}",
                f"{gradient['flops'] / 1e6:.4g}",
                f"{gradient['flops'] / gradient['seconds'] / 1e9:.3g}",
                f"{bmm['flops'] / bmm['seconds'] / 1e9:.3g}",
                f"{case['share']['gradient']:.0%}, {case['share']['hvp']:.0%}",
            ]
        )
    columns = ["", "backend", "gradient, ms", "gradient + HVP, ms", "ratio"]
    columns += ["gradient, MFLOP", "GFLOP/s", "bmm, GFLOP/s", "share: gradient, HVP"]
    return columns, rows
