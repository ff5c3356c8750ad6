"""Omniglot: 1,623 characters of 50 alphabets, each drawn by 20 people; found on disk and split as is customary."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import DataError, MissingDataError
from .image_files import ImageFile, find_images
from .locate import search_path

# Archives under their official name and as they are often renamed, or the folders that they hold, alone or where
# torchvision and the official repository keep them.
PARTS = ("images_background", "images_evaluation")
FOLDERS = ("", "omniglot", "omniglot-py", "omniglot/python", "omniglot-py/omniglot-py")
PREFIXES = ("", "omniglot_")

# Vinyals et al. (2016): 1,200 characters train and 423 test; 172 of the former validate. The lists of Snell et al.
# (2017), github.com/jakesnell/prototypical-networks data/omniglot/splits/vinyals, come to this: five background
# alphabets validate, and the evaluation alphabets in order of name test from Gurmukhi's 42nd character on.
VALIDATION = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
FIRST_TEST = "Gurmukhi/character42"

Classes = dict[str, list[ImageFile]]


def find_parts(data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return where the background and the evaluation alphabets lie: an archive or a folder each.

    Raises:
        MissingDataError: if one is nowhere.
    """
    parts = []
    for part in PARTS:
        names = [f"{prefix}{part}{ending}" for ending in (".zip", "") for prefix in PREFIXES]
        places = [place / folder / name for place in search_path(data_dir) for folder in FOLDERS for name in names]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            searched = " or ".join(str(folder) for folder in search_path(data_dir))
            raise MissingDataError(
                f"omniglot: neither {part}.zip nor the folder {part} is in {searched}; run `adjoint-meta data fetch "
                "omniglot`, or put both archives there, from github.com/brendenlake/omniglot (python/)"
            )
        parts.append(found)
    return parts


def find_characters(parts: list[Path], split: str) -> dict[str, Classes]:
    """Return the files of each class of each split.

    A class is called by its alphabet and character, such as "Tifinagh/character50".

    Args:
        parts: where the background and the evaluation alphabets lie.
        split: "vinyals" (1028, 172 and 423 characters) or "lake" (background and evaluation alphabets, of the former
            those that validate in "vinyals": 792, 172 and 659).

    Raises:
        DataError: if an archive is broken, or holds an image outside of an alphabet's and a character's folder.
    """
    background, evaluation = (_by_character(find_images(part)) for part in parts)
    first = FIRST_TEST if split == "vinyals" else ""
    test = {name: files for name, files in evaluation.items() if name >= first}
    known = {**background, **{name: files for name, files in evaluation.items() if name not in test}}
    validation = {name: files for name, files in background.items() if name.split("/")[0] in VALIDATION}
    train = {name: files for name, files in known.items() if name not in validation}
    return {"train": train, "validation": validation, "test": test}


def _by_character(images: list[ImageFile]) -> Classes:
    characters: Classes = {}
    for file in images:
        if len(file.folders) < 3:
            raise DataError(f"{file} lies in no folder ALPHABET/CHARACTER of images_background or images_evaluation")
        characters.setdefault("/".join(file.folders[-2:]), []).append(file)
    return dict(sorted(characters.items()))
