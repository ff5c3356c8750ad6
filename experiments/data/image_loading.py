"""From a set's name to its images by class, decoded once and mapped from then on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adjoint_meta.solvers import checks

from . import omniglot
from .glyphs import draw_glyphs
from .image_cache import cached, store_split
from .image_catalogue import ImageSet, image_set
from .image_classes import ImageClasses, check_disjoint
from .image_decoding import Decoder
from .image_files import ImageFile, fingerprint, read_images

Progress = Callable[[int, int], None]
Classes = Mapping[str, list[ImageFile]]


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

    Args:
        name: "omniglot", "cifar-fs", "fc100", "mini-imagenet", "tiered-imagenet" or "glyphs".
        data_dir: where the files lie, else ADJOINT_META_DATA, else the cache.
        size: height and width; the set's usual one unless given.
        split: which classes go where, if the set has more than one way; the usual one unless given.
        progress: called with images decoded and images in all.

    Raises:
        MissingDataError: if the set is not there.
        DataError: if an image or archive is broken, or a class lies in two splits.
        ValueError: if there is no set or split of this name.
        RuntimeError: if the cache cannot be written.
    """
    wanted = image_set(name)
    if size is not None:
        checks.count("size", size)
    if split is not None:
        checks.one_of(f"split of {name}", split, wanted.splits)
    split = split or wanted.splits[0]
    if name == "glyphs":
        if size not in (None, wanted.size):
            raise ValueError(f"glyphs are drawn at {wanted.size} × {wanted.size} pixels only, got size {size}")
        return draw_glyphs()
    decode = Decoder(size or wanted.size, wanted.channels, wanted.native, wanted.invert)
    return _omniglot(wanted, data_dir, split, decode, progress)


def _omniglot(
    wanted: ImageSet, data_dir: str | os.PathLike[str] | None, split: str, decode: Decoder, progress: Progress
) -> dict[str, ImageClasses]:
    parts = omniglot.find_parts(data_dir)

    def build(folder: Path) -> None:
        _store(wanted.name, folder, omniglot.find_characters(parts, split), decode, progress)

    return cached(wanted.name, (fingerprint(parts), split, decode), build)


def _store(name: str, folder: Path, splits: Mapping[str, Classes], decode: Decoder, progress: Progress) -> None:
    """Decode the files of each split into a folder of the cache."""
    check_disjoint(name, splits)
    total = sum(len(files) for classes in splits.values() for files in classes.values())
    done = itertools.count(1)

    def decoded(files: list[ImageFile]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for place, data in read_images(files):
            yield place, decode(data, files[place])
            progress(next(done), total)

    for split, classes in splits.items():
        files = [file for each in classes.values() for file in each]
        counts = {name: len(each) for name, each in classes.items()}
        store_split(folder, split, counts, decode.shape, decoded(files))
