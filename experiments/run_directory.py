"""A run's directory: its files, what may be continued, and the log of its meta-steps."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adjoint_meta import checkpoint
from adjoint_meta.training import STATE

from .config import RunConfig, long_form, merge, read_yaml
from .registry import resolve

# What a resumed run may change without becoming another run.
CHANGEABLE = ("meta_steps", "checkpoint_every", "max_skipped", "test", "device")


class RunDirectory:
    """The files of one run.

    Args:
        path: the directory; nothing is created before `create`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoint.pt"
        self.summary = path / "summary.json"
        self.outcomes = path / "outcomes.json"
        self.curves = path / "curves.png"
        self.adaptation = path / "adaptation.png"
        self.events = path / "events"

    def check_free(self) -> None:
        """Refuse a directory that holds a run or cannot be written to.

        Raises:
            ValueError: with what is in the way and what to do.
        """
        if self.config.exists():
            raise ValueError(f"{self.path} already holds a run; continue it with --resume or choose another --out")
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; choose another --out")
        parent = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ValueError(f"cannot write to {parent}; choose another --out")

    def create(self, config: RunConfig) -> None:
        """Make the directory and write the resolved configuration.

        Raises:
            ValueError: if that is not possible.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.config, config.dump())
        except OSError as error:
            raise ValueError(f"cannot write to {self.path}: {error.strerror}; choose another --out") from error

    def read_config(self) -> RunConfig:
        """Return the configuration of the run that lies here.

        Raises:
            ValueError: if there is none, or it is not readable.
        """
        if not self.config.is_file():
            raise ValueError(f"{self.path} is not a run directory: it has no config.yaml")
        return resolve(read_yaml(self.config))

    def read_checkpoint(self) -> dict[str, Any]:
        """Return the checkpoint of the run that lies here, on the CPU: ``trainer`` and ``metrics_bytes``.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, or not one of a run.
        """
        state = checkpoint.load(self.checkpoint)
        trainer = state.get("trainer")
        if not (isinstance(trainer, dict) and trainer.keys() >= STATE and isinstance(state.get("metrics_bytes"), int)):
            raise ValueError(f"{self.checkpoint} is a checkpoint, but not one of a run; {checkpoint.ANEW}")
        return state

    def continued(self, overrides: Mapping[str, Any]) -> RunConfig:
        """Return the configuration of the run that lies here, with what a resumed run may change.

        Raises:
            ValueError: if anything else would change.
        """
        held = self.read_config()
        asked = resolve(merge(read_yaml(self.config), long_form(dict(overrides))))
        for key, value in held:
            if key not in CHANGEABLE and getattr(asked, key) != value:
                raise ValueError(
                    f"a resumed run cannot change {key!r}, only {', '.join(CHANGEABLE)}; start another run without "
                    "--resume"
                )
        return asked


class MetricsLog:
    """``metrics.jsonl``: one JSON object a meta-step, appended; a resumed run cuts it back to its checkpoint."""

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        if keep_bytes and (not path.exists() or path.stat().st_size < keep_bytes):
            raise ValueError(f"{path} is shorter than its checkpoint says; it was changed: start another run")
        self._file = path.open("ab")
        self._file.truncate(keep_bytes)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        standard = {key: None if _not_finite(value) else value for key, value in record.items()}
        self._file.write((json.dumps(standard, allow_nan=False) + "\n").encode())

    def flush(self) -> int:
        """Put everything on disk and return the length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)  # JSON has no infinity


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def free_directory(base: Path) -> Path:
    """Return ``base``, or ``base-2``, ``base-3``, … if runs lie there already."""
    candidates = (base if number == 1 else base.with_name(f"{base.name}-{number}") for number in range(1, 10_000))
    return next(path for path in candidates if not path.exists())
