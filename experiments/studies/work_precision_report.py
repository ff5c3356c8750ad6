"""The work-precision study in words and tables: Markdown for solvers.md, rows for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Rows = list[list[str]]


def report(result: dict[str, Any]) -> str:
    """Return the whole study as Markdown."""
    parts = [
        f"# Work and precision, `{result['budget']}` budget",
        f"CosMixture, {result['tasks']} tasks × {result['points_a_task']} support and query points, 2-32-32-1 tanh, "
        f"½MSE, float64; trained θ: {result['meta_steps']} meta-steps of the default method.",
        "![error of the meta-gradient](work_precision.png)",
        "## Evaluations (gradients + HVPs a task) for a meta-gradient within 1e-2 and 1e-3",
        *(part for start in starts(result) for part in (f"### {start} θ", markdown(*reach_table(result, start)))),
        '## `solver="auto"` and the best choice in hindsight',
        markdown(*auto_table(result)),
        "\n".join(f"* {line}" for line in euler_lines(result)),
        "## Meta-gradients worse than ten times φ(T)",
        "\n".join(trust_lines(result)),
        "## Adjoints",
        markdown(*adjoint_table(result)),
        "## One step size a row against one shared by the batch",
        shared_line(result),
        markdown(*shared_table(result)),
        "## References",
        markdown(*reference_table(result)),
    ]
    for title, lines in (("Failed", failures(result)), ("Skipped", result["skipped"]), ("Missing", result["missing"])):
        if lines:
            parts += [f"## {title}", "\n".join(f"* {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; every column but the first lines up on the right."""
    cells = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def starts(result: dict[str, Any]) -> list[str]:
    """Return the names of the initialisations."""
    return list(dict.fromkeys(each["start"] for each in result["references"]))


def reach_table(result: dict[str, Any], start: str) -> tuple[list[str], Rows]:
    """Return evaluations a task by curve, two columns a horizon; – where the target was not reached."""
    cases = [case for case in result["summary"] if case["start"] == start]
    columns = [f"T = {case['horizon']:g}, {target}" for case in cases for target in case["best"]]
    curves = dict.fromkeys(curve for case in cases for curve in case["reached"] if curve != "auto")
    rows = []
    for curve in curves:
        cells = [
            _evaluations(case["reached"].get(curve, {}).get(target), best, curve)
            for case in cases
            for target, best in case["best"].items()
        ]
        rows.append(["euler = MAML" if curve == "euler" else curve, *cells])
    auto = [case["auto"][target] for case in cases for target in case["auto"]]
    rows.append(["auto, asked for it", *("–" if each is None else _automatic(each) for each in auto)])
    return ["", *columns], rows


def _evaluations(found: dict[str, Any] | None, best: dict[str, Any] | None, curve: str) -> str:
    if found is None:
        return "–"
    shown = f"{found['evaluations']:.0f}"
    if found["coarsest"]:
        shown = f"≤ {shown}"
    return f"**{shown}**" if best is not None and best["curve"] == curve else shown


def _automatic(each: dict[str, Any]) -> str:
    ratio = "" if each["to_best"] is None else f" ({each['to_best']:.2f}×)"
    missed = "" if each["met"] else f", missed: {error(each['gradient_error'])}"
    return f"{each['evaluations']:.0f}{ratio}{missed}"


def auto_table(result: dict[str, Any]) -> tuple[list[str], Rows]:
    """Return how auto did where it was asked for a target, beside the best of our solvers in hindsight."""
    rows = []
    for case in result["summary"]:
        for target, auto in case["auto"].items():
            if auto is None:
                continue
            best = case["best"][target]
            rows.append(
                [
                    f"{case['start']}, T = {case['horizon']:g}, {target}",
                    auto["choice"] or "–",
                    error(auto["gradient_error"]) + ("" if auto["met"] else " MISSED"),
                    f"{auto['evaluations']:.0f} ({auto['n_grad']} + {auto['n_hvp']})",
                    "none" if best is None else f"{best['curve']}, {_asked(best)}: {best['evaluations']:.0f}",
                    "–" if auto["to_best"] is None else f"{auto['to_best']:.2f}",
                ]
            )
    columns = ["asked for", "auto chose", "error", "evaluations a task (batched)", "best in hindsight", "ratio"]
    return columns, rows


def euler_lines(result: dict[str, Any]) -> list[str]:
    """Return what rkc takes as a share of what Euler takes."""
    cases = [case for case in result["summary"] if case["rkc_to_euler"] is not None]
    return [
        f"{case['start']} θ, T = {case['horizon']:g}: rkc reaches 1e-2 in {case['rkc_to_euler']:.2f} of Euler's "
        "evaluations"
        for case in cases
    ]


def trust_lines(result: dict[str, Any]) -> list[str]:
    """Return how many points are worse than they should be, and those that did not say so."""
    trust = result["trust"]
    head = (
        f"{trust['points']} points of ours; {trust['untrusted']} say that they are not to be trusted; "
        f"{trust['worse']} are worse than ten times φ(T), {len(trust['exceptions'])} of these without saying so."
    )
    return [head, ""] + [
        f"* {each['start']} θ, T = {each['horizon']:g}, {each['curve']}, {each['adjoint']}, {_asked(each)}: φ(T) "
        f"{error(each['phi_error_moved'])}, meta-gradient {error(each['gradient_error'])}, "
        f"h‖H‖/limit {each['stability'] or 0:.2f}"
        for each in trust["exceptions"]
    ]


def _asked(point: dict[str, Any]) -> str:
    return f"{point['steps']} steps" if point["steps"] is not None else f"rtol {point['rtol']:g}"


ADJOINTS = ("discrete", "checkpointed", "interpolating", "backsolve")


def adjoint_table(result: dict[str, Any]) -> tuple[list[str], Rows]:
    """Return the solves that were differentiated in several ways: error (gradients + HVPs, seconds) of each."""
    own = [point for point in result["points"] if point["own"]]
    rows = []
    for key in dict.fromkeys(_solve_key(point) for point in own if point["adjoint"] != "discrete"):
        by_adjoint = {point["adjoint"]: point for point in own if _solve_key(point) == key}
        point = next(iter(by_adjoint.values()))
        head = f"{point['start']}, T = {point['horizon']:g}, {point['curve']}, {_asked(point)}"
        rows.append([head, *(_differentiated(by_adjoint.get(adjoint)) for adjoint in ADJOINTS)])
    return ["solve", *ADJOINTS], rows


def _differentiated(point: dict[str, Any] | None) -> str:
    if point is None:
        return "–"
    if point["failed"]:
        return "failed"
    doubt = "" if point["trusted"] else ", not trusted"
    return f"{error(point['gradient_error'])} ({point['n_grad']} + {point['n_hvp']}, {point['seconds']:.2f} s{doubt})"


def _solve_key(point: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(point[name] for name in ("start", "horizon", "curve", "steps", "rtol"))


def shared_table(result: dict[str, Any]) -> tuple[list[str], Rows]:
    """Return own against shared step sizes."""
    rows = []
    for each in result["shared_step"]:
        for name in ("own", "shared"):
            part = each[name]
            errors = part["gradient_error"]
            rows.append(
                [
                    f"{each['solver']}, {name}",
                    f"{part['evaluations_a_task']:.0f}",
                    str(part["evaluations"]),
                    f"{part['seconds']:.2f}",
                    f"{error(errors['median'])}, {error(errors['largest'])}",
                    f"{each['saved']:.0%}" if name == "own" else "",
                ]
            )
    columns = ["steps", "evaluations a task", "batched", "seconds", "error of the gradients: median, largest", "saved"]
    return columns, rows


def shared_line(result: dict[str, Any]) -> str:
    """Return what was compared."""
    each = result["shared_step"][0]
    low, high = each["radius"]
    return (
        f"{each['tasks']} tasks whose observations have different precision, ‖H‖ from {low:.1f} to {high:.0f}, "
        f"T = {each['horizon']:g}, rtol {each['rtol']:g}."
    )


def reference_table(result: dict[str, Any]) -> tuple[list[str], Rows]:
    """Return how far the two reference solves are apart."""
    rows = [
        [
            f"{each['start']}, T = {each['horizon']:g}",
            f"{each['radius']:.1f}",
            f"{each['moved']:.1%}",
            error(each["self_consistency"]["phi"]),
            error(each["self_consistency"]["gradient"]),
            str(each["evaluations"]),
        ]
        for each in result["references"]
    ]
    columns = ["", "largest ‖H‖", "‖φ(T) − θ‖ / ‖φ(T)‖", "φ(T), two solves", "meta-gradient, two solves", "evaluations"]
    return columns, rows


def failures(result: dict[str, Any]) -> list[str]:
    """Return a line for each point that failed."""
    return [
        f"{p['start']}, T = {p['horizon']:g}, {p['curve']}, {p['adjoint']}, {_asked(p)}: {first_sentence(p['failed'])}"
        for p in result["points"]
        if p["failed"]
    ]


def first_sentence(text: str) -> str:
    """Return the first sentence of a message."""
    return text.split(". ")[0].rstrip(".")


def error(value: float | None) -> str:
    """Return an error with two digits."""
    return "–" if value is None else f"{value:.1e}"
