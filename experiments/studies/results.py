"""Where a study leaves its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..run_directory import write_atomically


def make_directory(out: Path) -> None:
    """Make the directory, before anything is computed.

    Raises:
        ValueError: if that is not possible.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}; choose another --out") from error


def write(out: Path, name: str, result: dict[str, Any], report: str) -> None:
    """Write NAME.json and NAME.md."""
    write_atomically(out / f"{name}.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_atomically(out / f"{name}.md", report)
