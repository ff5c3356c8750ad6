"""What all studies share: their setting, a directory of their own, and results that survive an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..crew import Observer, processes
from ..prepare import choose_device
from ..report import Report
from ..run import Interrupted
from ..run_directory import write_atomically
from .results import make_directory


@dataclass(frozen=True)
class Setting:
    """Where and how a study runs.

    Args:
        budget: "quick" or "full".
        out: its directory.
        data_dir: where data sets lie; see `load_ratings`.
        jobs: processes at once.
        device: "auto", "cpu" or "cuda".
        observe: sees how far the study is.
        should_stop: asked now and then; the study can be continued.
    """

    budget: str
    out: Path
    data_dir: Path | None = None
    jobs: int = 1
    device: str = "auto"
    observe: Observer = lambda done, total, what: None
    should_stop: Callable[[], bool] = lambda: False

    def step(self, done: int, total: int, what: str) -> None:
        """Show how far the study is.

        Raises:
            Interrupted: if the study is to stop; what is not in a cell yet is computed anew when it goes on.
        """
        if self.should_stop():
            raise Interrupted(done)
        self.observe(done, total, what)

    def cell(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return ``compute()``, plain data, from the study's directory if an earlier call got that far.

        Args:
            key: a file name, of what is computed.

        Raises:
            Interrupted: if the study is to stop before it computes this.
        """
        path = self.out / "cells" / f"{key}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        if self.should_stop():
            raise Interrupted(0)
        found = compute()
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(found, allow_nan=False))
        return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Study:
    """A study of the catalogue.

    Args:
        summary: one line for the list.
        run: does it, or goes on with it, and returns the report.
        budgets: the sizes behind "quick" and "full"; results of other sizes are other results.
        side_by_side: whether it trains, several runs at once.
        on_gpu: whether it can compute on a GPU; float64 references in small pieces do not gain from one.
    """

    summary: str
    run: Callable[[Setting], Report]
    budgets: Mapping[str, Any]
    side_by_side: bool = False
    on_gpu: bool = False

    def resources(self, name: str, jobs: int | None, device: str) -> tuple[int, str]:
        """Return processes and device that the study called so works with, of those asked for.

        Raises:
            ValueError: for a number or a device that is not to be had, or that the study would not use.
        """
        count = processes(jobs, device)
        if not self.side_by_side:
            if jobs not in (None, 1):
                raise ValueError(f"{name} works in one process, got --jobs {jobs}; leave --jobs out")
            count = 1
        if not self.on_gpu:
            if choose_device("cpu" if device == "auto" else device).type != "cpu":
                raise ValueError(f"{name} computes on the CPU, got --device {device}; leave --device out")
            device = "cpu"
        return count, device


def claim(out: Path, identity: Mapping[str, Any]) -> None:
    """Make the directory that of one study or comparison, or see that it is.

    Raises:
        ValueError: if it holds another one, or something else, or cannot be written to.
    """
    note = out / "study.json"
    if note.exists():
        held = json.loads(note.read_text(encoding="utf-8"))
        if held != dict(identity):
            differing = [key for key in {**held, **identity} if held.get(key) != identity.get(key)]
            first = differing[0]
            raise ValueError(
                f"{out} holds other results: {first} is {held.get(first)!r} there, {identity.get(first)!r} here; "
                "choose another --out"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty, and holds no study that could be continued; choose another --out")
    make_directory(out)
    write_atomically(note, json.dumps(dict(identity), indent=1) + "\n")
