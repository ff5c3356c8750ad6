"""Where a set of images lies, looking at names only."""

from __future__ import annotations

import os
from pathlib import Path

from . import cifar, image_folders, omniglot
from .image_catalogue import ImageSet


def find_paths(wanted: ImageSet, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return the archives or folders that hold a set.

    Raises:
        MissingDataError: if it is nowhere.
        ValueError: if the set is drawn and lies nowhere.
    """
    if not wanted.stored:
        raise ValueError(f"{wanted.name} is part of this package: it is drawn, and there is no file of it")
    if wanted.name == "omniglot":
        return omniglot.find_parts(data_dir)
    if wanted.name in ("cifar-fs", "fc100"):
        return [cifar.find_cifar(wanted.name, data_dir)]
    return [image_folders.find_folder(wanted.name, wanted.layout, data_dir)]
