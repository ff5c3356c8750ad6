"""The official splits of classes, from the short lists beside this file, each with its source in its first lines."""

from __future__ import annotations

from importlib.resources import files

SPLITS = ("train", "validation", "test")


def official_classes(name: str) -> dict[str, str]:
    """Return the split of each class, in the order of the list, for "cifar-fs", "fc100" and the two of ImageNet."""
    lines = (files(__package__) / "splits" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    home: dict[str, str] = {}
    for line in lines:
        if not line.startswith("#"):
            split, *classes = line.split()
            home.update(dict.fromkeys(classes, split))
    return home
