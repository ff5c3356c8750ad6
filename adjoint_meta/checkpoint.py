"""Checkpoints: written atomically, read without unpickling code, refused when they belong to another model."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORMAT = 1

ANEW = "delete it and run the same command with --resume, which then starts from the beginning"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that a reader sees the old file or the new one, never a part.

    Raises:
        OSError: if the folder cannot be written to.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged or of another format.
        OSError: if it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; train first, or name a run directory that holds one")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load does not look at the check sums
                raise ValueError("a check sum is wrong")
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a readable checkpoint (truncated, damaged or not one of ours); {ANEW}"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of format {FORMAT}; {ANEW}")
    return state


def load_module(module: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Load a module's state, or say in one line in what it differs.

    Raises:
        ValueError: if names or shapes differ.
    """
    own = module.state_dict()
    for problem, names in (
        ("has no parameter", own.keys() - state.keys()),
        ("has an unexpected parameter", state.keys() - own.keys()),
    ):
        if names:
            raise ValueError(f"{source} {problem} {min(names)!r}: it belongs to another model or method")
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise ValueError(
                f"{source} holds {name!r} of shape {list(state[name].shape)}, the model has {list(value.shape)}: it "
                "belongs to another model; use the configuration it was trained with"
            )
    module.load_state_dict(state)
