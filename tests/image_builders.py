"""Image files, folders and archives that tests make."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def encode(pixels: np.ndarray, mode: str | None = None, kind: str = "PNG") -> bytes:
    """The bytes of an image file of these pixels, ``[height, width]`` or ``[height, width, channels]``."""
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


def plain(value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB", kind: str = "PNG") -> bytes:
    """An image of one grey."""
    return encode(np.full(size, value, dtype=np.uint8), mode, kind)


def write(path: Path, contents: Mapping[str, bytes]) -> Path:
    """Write files by relative name: into a zip or tar archive if the path ends like one, else into a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
    elif path.suffix in (".tar", ".gz", ".tgz"):
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
            for name, data in contents.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    else:
        for name, data in contents.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def snapshot(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder and its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
