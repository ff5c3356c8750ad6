"""The official archives of image sets: downloaded, copied from where the user has them, verified image by image."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pooch

from .errors import DataError, MissingDataError
from .fetch import Progress, download
from .image_catalogue import Archive, ImageSet
from .image_loading import decoded, differs
from .image_paths import find_paths
from .locate import cache_folder


@dataclass(frozen=True)
class VerifiedImages:
    """What verification found.

    Args:
        name: of the set.
        paths: where it lies.
        hash_of: "archive" when all of its archives are the official ones, "" when that is not known.
        classes, images: how many there are.
    """

    name: str
    paths: tuple[Path, ...]
    hash_of: str
    classes: int
    images: int

    def facts(self) -> dict[str, str | int]:
        """Return what a person wants to see of it, ready for JSON."""
        return {
            "name": self.name,
            "path": " and ".join(str(path) for path in self.paths),
            "hash_of": self.hash_of,
            "classes": self.classes,
            "images": self.images,
        }


def obtain_images(
    wanted: ImageSet, data_dir: str | os.PathLike[str] | None = None, progress: Progress = lambda done, total: None
) -> tuple[list[Path], bool]:
    """Return where the set lies, and whether it had to be downloaded, which goes into the cache.

    Raises:
        MissingDataError: if it is not here and cannot be downloaded; the message says how to lay it out.
        DataError: if what came is not the official archive.
        RuntimeError: if it cannot be downloaded or stored.
        ValueError: if the set is drawn, so that there is nothing to fetch.
    """
    try:
        found = find_paths(wanted, data_dir)
    except MissingDataError:
        if not wanted.archives:
            raise
    else:
        if not _broken(found, wanted):
            return found, False
    cache = cache_folder()
    return [download(each.url, each.hash, each.name, cache, progress, each.limit) for each in wanted.archives], True


def add_images(wanted: ImageSet, path: Path) -> list[Path]:
    """Copy official archives that the user has, at a path or in a folder, into the cache; return where they went.

    Raises:
        MissingDataError: if one of them is not there.
        DataError: if one is not the official archive.
        RuntimeError: if it cannot be stored.
        ValueError: if the set has no official archive.
    """
    if not wanted.archives:
        how = wanted.layout.replace("put there", "make") if wanted.stored else "it is part of this package"
        raise ValueError(f"{wanted.name} is not added: {how}, and name the folder around it with --data-dir")
    stored = []
    for archive in wanted.archives:
        source = path if path.is_file() and len(wanted.archives) == 1 else path / archive.name
        if not source.is_file():
            names = " and ".join(each.name for each in wanted.archives)
            raise MissingDataError(f"{source} does not exist; name the folder that holds {names}")
        if not _official(source, archive):
            raise DataError(
                f"{source} is not the official archive ({archive.hash}), so it is not added; it is read where it lies "
                f"when you name its folder with --data-dir"
            )
        stored.append(_copy(source, cache_folder() / archive.name))
    return stored


def verify_images(wanted: ImageSet, data_dir: str | os.PathLike[str] | None = None) -> VerifiedImages:
    """Return what lies there, after decoding every image and checking the published counts by the usual split.

    Raises:
        MissingDataError: if the set is not there.
        DataError: at the first thing that is wrong.
    """
    paths = find_paths(wanted, data_dir)
    split = next(iter(wanted.splits))
    images = decoded(wanted, paths, wanted.size, split, anew=True)
    if difference := differs(wanted, split, images):
        raise DataError(f"{paths[0]} is not the published {wanted.name}: it holds {difference}; restore it")
    official = bool(wanted.archives) and len(paths) == len(wanted.archives)
    for path, archive in zip(paths, wanted.archives, strict=False):
        official = official and path.is_file() and _official(path, archive)
    return VerifiedImages(
        wanted.name,
        tuple(paths),
        "archive" if official else "",
        sum(len(classes) for classes in images.values()),
        sum(len(classes.pixels) for classes in images.values()),
    )


def _broken(found: list[Path], wanted: ImageSet) -> bool:
    """Whether an archive of the cache is not the official one; what the user has is left to verification."""
    own = [(path, archive) for path, archive in zip(found, wanted.archives, strict=False) if path.is_file()]
    return any(path.parent == cache_folder() and not _official(path, archive) for path, archive in own)


def _official(path: Path, archive: Archive) -> bool:
    algorithm, digest = archive.hash.split(":")
    return bool(pooch.file_hash(str(path), alg=algorithm) == digest)


def _copy(source: Path, path: Path) -> Path:
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
        os.replace(partial, path)  # in one stroke: a reader sees all of it or nothing
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise RuntimeError(f"could not store {path} ({error}); make room there, or make it writable") from error
    return path
