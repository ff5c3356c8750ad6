"""CIFAR-100 as torchvision reads it, its classes divided as CIFAR-FS or FC100; 600 images of each, 32 × 32."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, MissingDataError
from .image_files import BROKEN
from .locate import cache_folder, search_path

ARCHIVE, FOLDER = "cifar-100-python.tar.gz", "cifar-100-python"
# Files of the folder; the largest holds 50,000 images of 3,072 bytes.
MEMBERS, LIMIT = ("meta", "train", "test"), 256 * 2**20
REMEDY = "download it again, with `adjoint-meta data fetch cifar-fs`"


def find_cifar(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return where CIFAR-100 lies: its archive, or the folder in it.

    Raises:
        MissingDataError: if it is nowhere.
    """
    for place in search_path(data_dir):
        for path in (place / ARCHIVE, place / FOLDER):
            if path.exists():
                return path
    searched = " or ".join(str(place) for place in search_path(data_dir))
    raise MissingDataError(
        f"{name}: neither {ARCHIVE} nor the folder {FOLDER} is in {searched}; run `adjoint-meta data fetch {name}`, "
        "or put the archive there, from www.cs.toronto.edu/~kriz/cifar.html"
    )


def read_cifar(path: Path) -> dict[str, NDArray[np.uint8]]:
    """Return the images of each class, uint8 ``[images, height, width, channels]``, the 500 for training first.

    Raises:
        DataError: if the archive is broken or holds other files than the official ones.
        RuntimeError: if there is no room to unpack it, which is undone afterwards.
    """
    if path.is_dir():
        return _by_class(path.parent, path)
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            _unpack(path, Path(folder, FOLDER))
            return _by_class(Path(folder), path)
    except BROKEN as error:
        if isinstance(error, DataError):
            raise
        if isinstance(error, OSError) and error.errno is not None:  # those of what is read have no number
            raise RuntimeError(
                f"could not unpack {path} into {cache_folder()} ({error}); make room there, or make it writable"
            ) from error
        raise DataError(f"{path} cannot be unpacked ({error or type(error).__name__}); {REMEDY}") from error


def _unpack(path: Path, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(path) as archive:
        for name in MEMBERS:
            try:
                entry = archive.getmember(f"{FOLDER}/{name}")
            except KeyError as error:
                raise DataError(f"{path} holds no {FOLDER}/{name}; {REMEDY}") from error
            content = archive.extractfile(entry)
            if content is None or entry.size > LIMIT:
                raise DataError(f"{path}: {entry.name} is no file of at most {LIMIT} bytes; {REMEDY}")
            (folder / name).write_bytes(content.read())


def _by_class(root: Path, path: Path) -> dict[str, NDArray[np.uint8]]:
    from torchvision.datasets import CIFAR100

    try:
        parts = [CIFAR100(root, train=train) for train in (True, False)]
    except RuntimeError as error:  # torchvision compares the files with the official digests before it unpickles them
        raise DataError(f"{path} is not the official CIFAR-100, or is incomplete; {REMEDY}") from error
    images = np.concatenate([part.data for part in parts])
    labels = np.concatenate([part.targets for part in parts])
    return {name: images[labels == label] for label, name in enumerate(parts[0].classes)}
