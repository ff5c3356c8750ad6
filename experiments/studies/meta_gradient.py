"""Meta-gradients side by side: seconds, peak memory and error of our methods and of other packages."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from adjoint_meta.solvers import checks

from .. import plots
from ..prepare import choose_device
from .contestants import CONTESTANTS, backends, missing, unavailable
from .meta_gradient_plot import draw
from .meta_gradient_report import report
from .race import CORE, GIB, Budget, Course, Observer, Race
from .results import make_directory, write
from .workloads import details

PEERS = tuple(name for name, contestant in CONTESTANTS.items() if not contestant.own)

BUDGETS = {
    "quick": Budget(
        courses=(
            Course("regression", 5, (10, 50, 200)),
            Course("regression", 64, (10, 50), (*CORE, *PEERS), ("MAML",)),
            Course("ratings", 5, (10, 50), (*CORE, *PEERS), ()),
            Course("omniglot", 2, (1,), ("MAML", "torch.func unrolled", "higher", "torchopt"), ()),
        ),
        repeats=3,
        call=3.0,
        patience=40.0,
        memory=2 * GIB,
        reference=4.0,
        total=240.0,
    ),
    "full": Budget(
        courses=(
            Course("regression", 5, (10, 50, 100, 200, 500, 1000, 5000), compiled=tuple(CONTESTANTS)),
            Course("regression", 64, (10, 50, 100, 200, 500, 1000, 5000), compiled=tuple(CONTESTANTS)),
            Course("ratings", 5, (10, 50, 100, 200, 500, 1000, 5000), compiled=tuple(CONTESTANTS)),
            Course("omniglot", 16, (1, 2, 5, 10, 50), compiled=tuple(CONTESTANTS)),
        ),
        repeats=5,
        call=40.0,
        patience=300.0,
        memory=6 * GIB,
        reference=30.0,
        total=3600.0,
    ),
}


def study(
    budget: str = "quick",
    out: Path = Path("runs/bench-meta-gradient"),
    *,
    device: str = "auto",
    threads: int = 1,
    observe: Observer = lambda done, total, what: None,
) -> dict[str, Any]:
    """Measure, and write meta-gradient.json, meta-gradient.md and the two pictures.

    Args:
        budget: a name of `BUDGETS`.
        out: the directory.
        device: "auto", "cpu" or "cuda".
        threads: of torch; with more of them a small network waits for other work on the machine.
        observe: sees each measurement before it is made.

    Raises:
        ValueError: for an unknown budget, a device that is not here or a directory that cannot be used.
    """
    chosen = BUDGETS[checks.one_of("budget", budget, BUDGETS)]
    place = choose_device(device)
    checks.count("threads", threads)
    make_directory(out)
    started = time.perf_counter()
    notes = [*missing(), *filter(None, (unavailable(backend, place) for backend in backends()))]
    result: dict[str, Any] = {
        "study": "meta-gradient",
        "budget": budget,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU",
        "threads": threads,
        "torch": torch.__version__,
        "repeats": chosen.repeats,
        "workloads": details(course.workload for course in chosen.courses),
        "entries": [],
        "notes": notes,
        "out": str(out),
    }
    for course in chosen.courses:
        if time.perf_counter() - started > chosen.total:
            notes.append(f"{course.title}: left out, the budget's {chosen.total:.0f} s were spent")
        else:
            race = Race(course, chosen, place, threads, observe)
            try:
                result["entries"] += race.run()
            finally:
                race.close()
            notes += race.notes
        _write(result, started, out)
    notes += _busy(result["entries"])
    _write(result, started, out)
    plots.save(draw(result, "seconds"), out / "meta_gradient_time.png")
    plots.save(draw(result, "extra_mib"), out / "meta_gradient_memory.png")
    return result


def _busy(entries: list[dict[str, Any]]) -> list[str]:
    """Return a line if measurements on the CPU had to wait for other work: then ratios are not to be trusted."""
    waited = statistics.median(entry["seconds"] / entry["cpu_seconds"] for entry in entries) if entries else 1.0
    if waited < 1.2:
        return []
    return [
        f"the machine was busy: the median measurement took {waited:.1f} times the processor's seconds "
        "(cpu_seconds in the JSON file); measure again on a quiet one"
    ]


def _write(result: dict[str, Any], started: float, out: Path) -> None:
    """Write what there is so far: a long study that is interrupted leaves the numbers of the courses it finished."""
    result["seconds"] = time.perf_counter() - started
    write(out, "meta-gradient", result, report(result))
