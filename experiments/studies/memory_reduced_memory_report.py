"""The report on the memory of memory-reduced meta-learning: shares, growth, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..report import Report, Table
from .bilevel_peers import CG_STEPS, DAMPING
from .memory_reduced_memory_plot import STYLES, Entries, picture, series

OURS = "memory-reduced"
# What the claim is about: this many inner steps, and at most this share of the others' memory.
AT, SHARE = 20, 0.5
RIVALS = ("plain MAML", "plain ITD-BiO", "plain ANIL", "plain Algorithm 1", "MAML, task by task", "ANIL and ITD-BiO")


def report(courses: Sequence[Entries], notes: Sequence[str], setting: Mapping[str, Any]) -> Report:
    """Return the report.

    Args:
        courses: the entries of each.
        notes: what was left out, and why.
        setting: what decided the numbers.
    """
    parts: list[Any] = []
    for entries in courses:
        if len({entry["steps"] for entry in entries}) > 1:
            parts.append(picture(entries, f"memory_{entries[0]['workload'].replace('-', '_')}"))
        parts += _tables(entries)
    return Report(
        title="Memory-reduced meta-learning: memory and seconds against inner steps",
        question=(
            "What does one meta-gradient of Conv4 on 5-way 5-shot tasks take as the inner loop gets longer? MAML "
            "adapts the whole network; ANIL, ITD-BiO and memory-reduced meta-learning adapt the head. Each is measured "
            "as this package computes it, and in plain torch with a graph of all inner steps, in a process of its own. "
            "Plain ITD-BiO has the whole network in every step's loss; on features evaluated once, as in its authors' "
            "code, it is what ANIL computes, and stands under that name."
        ),
        findings=[line for entries in courses for line in findings(entries)],
        parts=[*parts, *(f"Left out: {line}" for line in notes)],
        records=[dict(entry) for entries in courses for entry in entries],
        departures=[
            "The paper's memory in MB and its seconds could not be obtained, only its claim of more than 50 % less: no "
            "number of it stands beside ours. Images are random, since pixels do not change the cost.",
            "A course of tasks with as many query as support images is the authors' split of 10 images a class; the "
            "usual 15 query images are the other.",
            f"CG takes {CG_STEPS} steps as in the authors' code, with a damping of {DAMPING:g} that it has not: a head "
            "with more features than support points has no bounded v without. It changes no memory.",
            "Tensors alive are what an allocator of exactly their sizes would count. The growth of the process adds "
            "scratch memory of the convolution library and what the C library does not give back; on a GPU it is the "
            "allocator's peak, as the authors measure.",
        ],
        setting=setting,
    )


def findings(entries: Entries) -> list[str]:
    """Return what follows from one course."""
    course = entries[0]["course"]
    tensors = {name: series(entries, name, "tensor_mib") for name in STYLES}
    process = {name: series(entries, name, "extra_mib") for name in STYLES}
    seconds = {name: series(entries, name, "seconds") for name in STYLES}
    lines = []
    if AT in tensors[OURS]:
        less = [
            f"{name} {1 - tensors[OURS][AT] / tensors[name][AT]:.0%} ({1 - process[OURS][AT] / process[name][AT]:.0%})"
            for name in RIVALS
            if AT in tensors[name]
        ]
        lines.append(
            f"{course}: at {AT} inner steps memory-reduced meta-learning takes {tensors[OURS][AT]:.1f} MiB of tensors, "
            f"and {process[OURS][AT]:.0f} in all. That is less, by tensors and in brackets in all, than "
            f"{', '.join(less)}."
        )
        lines.append(_verdict(course, tensors, process))
        ratios = [f"{name} {seconds[OURS][AT] / seconds[name][AT]:.1f}" for name in RIVALS if AT in seconds[name]]
        lines.append(f"{course}: its seconds at {AT} steps, as multiples of the others': {', '.join(ratios)}.")
    growth = [
        f"{name} {found[max(found)] / found[min(found)]:.2f}" for name, found in tensors.items() if len(found) > 1
    ]
    low, high = min(tensors[OURS], default=0), max(tensors[OURS], default=0)
    if growth:
        lines.append(f"{course}: from {low} to {high} steps the tensors grow by: {', '.join(growth)} times.")
    return lines


def _verdict(course: str, *measures: Mapping[str, Mapping[int, float]]) -> str:
    """Return against whom the claim holds, by tensors and in all."""
    said: dict[str, list[str]] = {"by both measures": [], "by one of them": [], "by neither": []}
    for name in RIVALS:
        if AT in measures[0][name]:
            met = sum(found[OURS][AT] <= SHARE * found[name][AT] for found in measures)
            said[list(said)[2 - met]].append(name)
    told = "; ".join(f"{where} against {', '.join(names)}" for where, names in said.items() if names)
    return f"{course}: the claim of at least {1 - SHARE:.0%} less memory holds {told}."


def _tables(entries: Entries) -> list[Table]:
    course, steps = entries[0]["course"], sorted({entry["steps"] for entry in entries})
    columns = ["", *(f"{n} step{'' if n == 1 else 's'}" for n in steps)]

    def table(title: str, quantity: str, form: str, note: str) -> Table:
        rows = []
        for name in STYLES:
            found = series(entries, name, quantity)
            if found:
                rows.append([name, *(f"{found[n]:{form}}" if n in found else "–" for n in steps)])
        return Table(f"{course}: {title}", columns, rows, note)

    return [
        table("peak of tensors alive, MiB", "tensor_mib", ".1f", "The same each time, whatever the machine does."),
        table("peak extra memory, MiB", "extra_mib", ".0f", "Of the process, or of the allocator on a GPU; once."),
        table("seconds", "seconds", ".3g", "On a CPU, those that the processor spent."),
    ]
