"""mini-ImageNet and tieredImageNet, in whatever layout they come: which image belongs to which class and split.

The name of the innermost folder is the class, and the nearest folder outside of it called train, val or test is the
split. An archive counts as a folder of its name, so that ``train/n01532829/a.jpg``, ``n01532829.tar``,
``train/n01532829.zip`` and ``train.tar.gz`` are all understood. Where ``train.csv``, ``val.csv`` and ``test.csv`` lie
beside the images, with lines FILENAME,CLASS, they say both, wherever the images are.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from .class_splits import SPLITS, official_classes
from .errors import DataError, MissingDataError
from .image_files import ARCHIVE_ENDINGS, ImageFile, find_images
from .locate import search_path

# What folders and tables are called, and the split that they mean.
NAMES = {"train": "train", "val": "validation", "validation": "validation", "valid": "validation", "test": "test"}
HEADER = ["filename", "label"]

Splits = dict[str, dict[str, list[ImageFile]]]


def find_folder(name: str, layout: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder or archive of the set, which may be called with or without hyphens, in any case.

    Raises:
        MissingDataError: if it is nowhere; ``layout`` says what was expected.
    """
    wanted = _plain(name)
    for place in search_path(data_dir):
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            stem = next((path.name[: -len(end)] for end in ARCHIVE_ENDINGS if path.name.endswith(end)), path.name)
            if _plain(stem) == wanted and (path.is_dir() or stem != path.name):
                return path
    searched = " or ".join(str(place) for place in search_path(data_dir))
    raise MissingDataError(f"{name} is not in {searched}, and cannot be fetched; {layout}")


def tables(root: Path) -> list[Path]:
    """Return the tables that say which image belongs where."""
    return [path for name in NAMES if (path := root / f"{name}.csv").is_file()]


def divide(name: str, root: Path, split: str) -> Splits:
    """Return the files of each class of each split.

    Args:
        name: of the set.
        root: its folder or archive.
        split: "official": the embedded lists decide, folders and tables must agree with them, and classes that lie in
            no split's folder and on no list are left out; "folders": folders and tables decide, whatever the classes.

    Raises:
        DataError: if an image lies in no class, a class in two splits or in another than the official one.
    """
    found = find_images(root)
    placed = _by_table(tables(root), found) if tables(root) else _by_folder(found)
    official = official_classes(name) if split == "official" else None
    splits: Splits = {each: {} for each in SPLITS}
    for file, claimed, label in placed:
        home = claimed if official is None else official.get(label, "")
        if official is not None and not home and not claimed:
            continue
        if not home or claimed not in ("", home):
            raise DataError(_misplaced(name, file, label, claimed, home, official is not None))
        splits[home].setdefault(label, []).append(file)
    return {each: dict(sorted(classes.items())) for each, classes in splits.items()}


def _by_folder(found: list[ImageFile]) -> Iterator[tuple[ImageFile, str, str]]:
    """Yield each file, the split that its folders claim or "", and its class."""
    for file in found:
        *outer, label = file.folders
        if not outer or label in NAMES:
            raise DataError(f"{file} lies in no folder of a class; put each class into a folder of its own")
        yield file, next((NAMES[folder] for folder in reversed(outer[1:]) if folder in NAMES), ""), label


def _by_table(paths: list[Path], found: list[ImageFile]) -> Iterator[tuple[ImageFile, str, str]]:
    by_name: dict[str, list[ImageFile]] = {}
    for file in found:
        by_name.setdefault(file.name, []).append(file)
    listed: dict[str, str] = {}
    for path in paths:
        for number, row in _rows(path):
            line = f"{path}, line {number}"
            if len(row) != 2:
                raise DataError(f"{line}: got {len(row)} fields, expected FILENAME,CLASS")
            image, label = row
            if image in listed:
                raise DataError(f"{line}: {image} is listed before, in {listed[image]}; take one line out")
            files = by_name.get(image, [])
            if len(files) > 1:
                raise DataError(
                    f"{line}: {image} is both {files[0]} and {files[1]}, expected one; rename or remove one"
                )
            if not files:
                raise DataError(f"{line}: there is no image {image} below; restore it, or take the line out")
            listed[image] = line
            yield files[0], NAMES[path.stem], label


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line that has any, without the header."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            for number, row in enumerate(csv.reader(lines), 1):
                if row and row != HEADER:
                    yield number, row
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{path} is no table of FILENAME,CLASS ({error}); restore it") from error


def _misplaced(name: str, file: ImageFile, label: str, claimed: str, home: str, official: bool) -> str:
    if not official:
        return f"{name}: {file} lies in no folder train, val or test, which decide the split; put its class into one"
    expected = f"the official split has it in {home}" if home else "it is none of the official split"
    return f"{name}: {file} puts class {label} into {claimed}, but {expected}; move it, or use split 'folders'"


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
