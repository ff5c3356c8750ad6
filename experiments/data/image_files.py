"""The image files of a folder and of the archives in it, found and read in place; nothing is unpacked on disk."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from .archive import read_file
from .catalogue import MEGABYTE
from .errors import DataError

IMAGES = (".png", ".jpg", ".jpeg")
ZIP = ".zip"
ARCHIVE_ENDINGS = (ZIP, ".tar", ".tar.gz", ".tgz")
# Of one image: far more than a photograph of these sets takes.
IMAGE_LIMIT = 32 * MEGABYTE
# What the readers of archives let out when the bytes are wrong: NotImplementedError is a RuntimeError.
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError, ValueError, OverflowError)


@dataclass(frozen=True)
class ImageFile:
    """One image on disk.

    Args:
        folders: what it lies in, from the folder searched inwards; an archive counts as a folder of its name.
        name: of the file.
        source: the file itself, or the archive.
        member: its name in the archive, or "".
    """

    folders: tuple[str, ...]
    name: str
    source: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.source}: {self.member}" if self.member else str(self.source)


def fingerprint(roots: Sequence[Path]) -> str:
    """Return a digest of folders and archives that changes with their content, found without reading an image.

    It does so when an archive changes, or a file is added to a folder, removed or renamed, but not when a file in a
    folder is written over in place.
    """
    digest = hashlib.sha256()
    for root in roots:
        for path, _ in _walk(root):
            state = path.stat()
            digest.update(repr((str(path.absolute()), state.st_mtime_ns, path.is_dir() or state.st_size)).encode())
    return digest.hexdigest()


def find_images(root: Path) -> list[ImageFile]:
    """Return the images in a folder or archive, and in the folders and archives inside it, in order of place.

    Raises:
        DataError: if an archive is broken.
    """
    files: list[ImageFile] = []
    for path, folders in _walk(root):
        if path.is_dir():
            files += [ImageFile(folders, name, path / name) for name in os.listdir(path) if _is_image(name)]
        else:
            files += _members(path, folders)
    return sorted(files, key=lambda file: (file.folders, file.name))


def read_images(files: Sequence[ImageFile]) -> Iterator[tuple[int, bytes]]:
    """Yield the place of each file in the sequence and its bytes, archive by archive, each in its own order.

    Raises:
        DataError: if a file or archive is broken, or a file larger than an image may be.
    """
    by_source: dict[Path, dict[str, int]] = {}
    for place, file in enumerate(files):
        by_source.setdefault(file.source, {})[file.member] = place
    for source, places in by_source.items():
        if "" in places:
            yield places[""], read_file(source, IMAGE_LIMIT)
            continue
        with _opened(source) as archive:
            for name, size, read in archive:
                if name in places:
                    if size > IMAGE_LIMIT:
                        raise DataError(f"{source}: {name} declares {size} bytes, expected at most {IMAGE_LIMIT}")
                    yield places[name], read()


def _walk(root: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield folders and archives at and below a path, with the folders that lead there, in order of name."""
    if root.is_file():
        yield root, (_stem(root.name) or root.name,)
        return
    for path, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if not _hidden(name))
        folders = (root.name, *Path(path).relative_to(root).parts)
        yield Path(path), folders
        for name in sorted(names):
            if _stem(name) and not _hidden(name):
                yield Path(path, name), (*folders, _stem(name))


def _members(path: Path, folders: tuple[str, ...]) -> Iterator[ImageFile]:
    with _opened(path) as archive:
        for name, _, _ in archive:
            inside = PurePosixPath(name)
            if _is_image(inside.name) and not any(_hidden(part) for part in inside.parts):
                yield ImageFile((*folders, *inside.parts[:-1]), inside.name, path, name)


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[tuple[str, int, Callable[[], bytes]]]]:
    """Open an archive: its regular files as name, size and a function that reads the bytes."""
    try:
        with path.open("rb") as file:
            yield _zip_members(file) if path.name.lower().endswith(ZIP) else _tar_members(file)
    except DataError:
        raise
    except BROKEN as error:
        kind = "zip" if path.name.lower().endswith(ZIP) else "tar"
        raise DataError(
            f"{path} is not a sound {kind} archive ({error or type(error).__name__}); replace it"
        ) from error


def _zip_members(file: IO[bytes]) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                yield entry.filename, entry.file_size, lambda entry=entry: archive.read(entry)  # type: ignore[misc]


def _tar_members(file: IO[bytes]) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        for entry in archive:
            content = archive.extractfile(entry) if entry.isfile() else None
            if content is not None:
                yield entry.name, entry.size, content.read


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES) and not _hidden(name)


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _stem(name: str) -> str:
    """Return an archive's name without its ending, or "" if it is none."""
    for ending in ARCHIVE_ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return ""
