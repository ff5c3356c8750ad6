"""Decoded images on disk: one file of bytes a split, written once in the cache folder and mapped from then on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .image_classes import ImageClasses
from .locate import cache_folder

INDEX = "classes.json"
# Part of every key: raise it when what is stored for the same files changes.
VERSION = 1

# Fills a new folder: calls `store_split` for each split.
Build = Callable[[Path], None]


def cached(name: str, key: object, build: Build, *, anew: bool = False) -> dict[str, ImageClasses]:
    """Return the splits stored under this key, after building them if they are not there or not whole.

    They are built in a folder of their own, which is renamed when it is complete: what has the right name is whole.

    Args:
        name: of the data set.
        key: all that decides the content; its ``repr`` counts.
        build: writes the splits into a folder.
        anew: build them even if they are there.

    Raises:
        RuntimeError: if the cache cannot be written.
    """
    digest = hashlib.sha256(repr((VERSION, name, key)).encode()).hexdigest()[:16]
    folder = cache_folder() / "images" / f"{name}-{digest}"
    if anew:
        shutil.rmtree(folder, ignore_errors=True)
    if folder.is_dir():
        try:
            return _mapped(name, folder)
        except (OSError, ValueError, KeyError):
            shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        build(partial)
        if not folder.is_dir():  # another process was faster
            partial.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise RuntimeError(f"could not store {folder} ({error}); make room there, or make it writable") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _mapped(name, folder)


def store_split(
    folder: Path,
    split: str,
    counts: Mapping[str, int],
    shape: tuple[int, int, int],
    images: Iterable[tuple[int, NDArray[np.uint8]]],
) -> None:
    """Write one split.

    Args:
        folder: where to.
        split: its name.
        counts: images of each class, in order.
        shape: channels, height and width.
        images: places and pixels ``[channels, height, width]``, every place once, in any order.
    """
    total = sum(counts.values())
    array = np.lib.format.open_memmap(folder / f"{split}.npy", mode="w+", dtype=np.uint8, shape=(total, *shape))
    for place, pixels in images:
        array[place] = pixels
    array.flush()
    path = folder / INDEX
    index = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**index, split: dict(counts)}))


def _mapped(name: str, folder: Path) -> dict[str, ImageClasses]:
    index = json.loads((folder / INDEX).read_text())
    return {
        split: ImageClasses(f"{name} ({split})", tuple(counts), _map(folder / f"{split}.npy"), _starts(counts.values()))
        for split, counts in index.items()
    }


def _map(path: Path) -> Tensor:
    with warnings.catch_warnings():
        # That it must not be written to is said in `ImageClasses`; a writable private mapping would count as memory.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.load(path, mmap_mode="r"))


def _starts(counts: Iterable[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)
