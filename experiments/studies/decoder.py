"""The exact meta-gradient of a decoder by every mode, beside plain unrolling: seconds, peak memory and error."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from adjoint_meta.solvers import checks

from ..prepare import choose_device
from .contestants import DEEP
from .decoder_report import report
from .race import GIB, Budget, Course, Observer, Race
from .results import make_directory, write
from .workloads import details


def _budget(course: Course, repeats: int, call: float, memory: float) -> Budget:
    return Budget((course,), repeats, call, patience=4 * call, memory=memory, reference=call, total=20 * call)


BUDGETS = {
    "quick": _budget(Course("decoder", 1, (1, 4, 16), tuple(DEEP), ()), repeats=1, call=240.0, memory=8 * GIB),
    "full": _budget(Course("decoder", 4, (1, 4, 16), tuple(DEEP), ()), repeats=3, call=600.0, memory=32 * GIB),
}


def study(
    budget: str = "quick",
    out: Path = Path("runs/bench-decoder"),
    *,
    device: str = "auto",
    threads: int = 1,
    observe: Observer = lambda done, total, what: None,
) -> dict[str, Any]:
    """Measure, and write decoder.json and decoder.md.

    Args:
        budget: a name of `BUDGETS`.
        out: the directory.
        device: "auto", "cpu" or "cuda".
        threads: of torch.
        observe: sees each measurement before it is made.

    Raises:
        ValueError: for an unknown budget, a device that is not here or a directory that cannot be used.
    """
    chosen = BUDGETS[checks.one_of("budget", budget, BUDGETS)]
    place = choose_device(device)
    checks.count("threads", threads)
    make_directory(out)
    started = time.perf_counter()
    (course,) = chosen.courses
    race = Race(course, chosen, place, threads, observe)
    try:
        entries = race.run()
    finally:
        race.close()
    result: dict[str, Any] = {
        "study": "decoder",
        "budget": budget,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU",
        "threads": threads,
        "torch": torch.__version__,
        "repeats": chosen.repeats,
        "workloads": details((course.workload,)),
        "entries": entries,
        "notes": race.notes,
        "seconds": time.perf_counter() - started,
        "out": str(out),
    }
    write(out, "decoder", result, report(result))
    return result
