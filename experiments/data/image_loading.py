"""From a set's name to its images by class, decoded once and mapped from then on."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adjoint_meta.solvers import checks

from . import cifar, image_folders, omniglot
from .class_splits import SPLITS, official_classes
from .errors import DataError
from .glyphs import draw_glyphs
from .image_cache import cached, store_split
from .image_catalogue import ImageSet, image_set
from .image_classes import ImageClasses, check_disjoint
from .image_decoding import Decoder
from .image_files import ImageFile, fingerprint, read_images
from .image_paths import find_paths

Progress = Callable[[int, int], None]
# Images whose files are held in memory at once.
TOGETHER = 256
Splits = Mapping[str, Mapping[str, list[ImageFile]]]


def load_images(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    size: int | None = None,
    split: str | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, ImageClasses]:
    """Return the classes "train", "validation" and "test" of the set of this name.

    The first call decodes every image into the user's cache; later ones map what is there. It is decoded again when
    an archive changes or files are added, removed or renamed, not when a file in a folder is written over in place.

    Warns when it holds other numbers of classes or images than published, since results would not be comparable.

    Args:
        name: "omniglot", "cifar-fs", "fc100", "mini-imagenet", "tiered-imagenet" or "glyphs".
        data_dir: where the files lie, else ADJOINT_META_DATA, else the cache.
        size: height and width; the set's usual one unless given.
        split: which classes go where, if the set has more than one way; the usual one unless given.
        progress: called with images decoded and images in all.

    Raises:
        MissingDataError: if the set is not there.
        DataError: if an image or archive is broken, a class lies in two splits, or a file is in a class twice.
        ValueError: if there is no set or split of this name.
        RuntimeError: if the cache cannot be written.
    """
    wanted = image_set(name)
    split = _checked(wanted, size, split)
    if not wanted.stored:
        return draw_glyphs()
    paths = find_paths(wanted, data_dir)
    images = decoded(wanted, paths, size or wanted.size, split, progress)
    if difference := differs(wanted, split, images):
        warnings.warn(f"{paths[0]} is not the published {name}: it holds {difference}", stacklevel=2)
    return images


def decoded(
    wanted: ImageSet,
    paths: list[Path],
    size: int,
    split: str,
    progress: Progress = lambda done, total: None,
    *,
    anew: bool = False,
) -> dict[str, ImageClasses]:
    """Return the images of a set that lies at these paths, from the cache or into it; see `load_images`.

    Args:
        anew: decode them even if they are in the cache.
    """
    decode = Decoder(size, wanted.channels, wanted.native, wanted.invert)

    def build(folder: Path) -> None:
        if wanted.name in ("cifar-fs", "fc100"):
            _store_arrays(wanted.name, folder, cifar.read_cifar(paths[0]), decode, progress)
        elif wanted.name == "omniglot":
            _store_files(wanted, folder, omniglot.find_characters(paths, split), decode, progress)
        else:
            _store_files(wanted, folder, image_folders.divide(wanted.name, paths[0], split), decode, progress)

    deciding = [*paths, *(table for path in paths for table in image_folders.tables(path))]
    return cached(wanted.name, (fingerprint(deciding), split, decode), build, anew=anew)


def differs(wanted: ImageSet, split: str, images: Mapping[str, ImageClasses]) -> str:
    """Return in what the images differ from the published set, "" if in nothing that is known of it."""
    expected = wanted.splits[split]
    got = tuple(len(images[each]) for each in SPLITS)
    if expected is not None and got != expected:
        return f"{_counts(got)} classes for training, validation and test, expected {_counts(expected)}"
    if expected is not None and wanted.images:
        for classes in images.values():
            for name, count in zip(classes.names, classes.counts.tolist(), strict=True):
                if count != wanted.images:
                    return f"{count} images of class {name}, expected {wanted.images}"
    return ""


def _counts(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(number) for number in numbers)


def _checked(wanted: ImageSet, size: int | None, split: str | None) -> str:
    if split is not None:
        checks.one_of(f"split of {wanted.name}", split, wanted.splits)
    if size is not None:
        checks.count("size", size)
        if not wanted.stored and size != wanted.size:
            raise ValueError(f"{wanted.name} are drawn at {wanted.size} × {wanted.size} pixels only, got size {size}")
    return split or next(iter(wanted.splits))


def _store_files(wanted: ImageSet, folder: Path, splits: Splits, decode: Decoder, progress: Progress) -> None:
    check_disjoint(wanted.name, splits)
    _check_once(wanted.name, splits)
    total = sum(len(files) for classes in splits.values() for files in classes.values())
    done = itertools.count(1)

    def pixels(files: list[ImageFile]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        read = read_images(files)
        with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes outside of Python's lock
            while some := list(itertools.islice(read, TOGETHER)):
                for place, array in pool.map(lambda each: (each[0], decode(each[1], files[each[0]])), some):
                    yield place, array
                    progress(next(done), total)

    for split, classes in splits.items():
        if not classes:
            raise DataError(f"{wanted.name} holds no class for {split}; {wanted.layout or 'restore it'}")
        files = [file for each in classes.values() for file in each]
        counts = {name: len(each) for name, each in classes.items()}
        store_split(folder, split, counts, decode.shape, pixels(files))


def _check_once(name: str, splits: Splits) -> None:
    """Refuse a file that a class holds twice, as where an archive lies beside its unpacked folder.

    Else an episode could ask for the very image that it has shown.
    """
    for classes in splits.values():
        for label, files in classes.items():
            seen: dict[str, ImageFile] = {}
            for file in files:
                if file.name in seen:
                    raise DataError(
                        f"{name}: class {label} holds {file.name} twice, as {seen[file.name]} and {file}; remove one"
                    )
                seen[file.name] = file


def _store_arrays(
    name: str, folder: Path, images: Mapping[str, NDArray[np.uint8]], decode: Decoder, progress: Progress
) -> None:
    from PIL import Image

    home = official_classes(name)
    done = itertools.count(1)
    for split in SPLITS:
        classes = {each: images[each] for each in home if home[each] == split}
        fitted = (decode.fit(Image.fromarray(image)) for each in classes.values() for image in each)
        counts = {each: len(array) for each, array in classes.items()}
        store_split(folder, split, counts, decode.shape, enumerate(fitted))
        progress(next(done), len(SPLITS))
