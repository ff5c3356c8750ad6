"""Images by class: what episodes are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import DataError


@dataclass(frozen=True, eq=False)
class ImageClasses:
    """Images, those of one class next to each other.

    Args:
        name: of the data set, with the split in brackets.
        names: of the classes.
        pixels: uint8 ``[images, channels, height, width]``, 0…255; it may be a file mapped read-only, so never write
            to it.
        starts: int64 ``[classes + 1]``: the images of class c are those from ``starts[c]`` to ``starts[c + 1]``.

    Raises:
        DataError: if the tensors have other shapes or types, there is no class, two classes share a name, or a class
            has no image.
    """

    name: str
    names: tuple[str, ...]
    pixels: Tensor
    starts: Tensor

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise DataError(
                f"{self.name}: pixels must be uint8 [images, channels, height, width], "
                f"got {self.pixels.dtype} {list(self.pixels.shape)}"
            )
        if self.pixels.shape[1] not in (1, 3):
            raise DataError(f"{self.name}: images must have 1 or 3 channels, got {self.pixels.shape[1]}")
        if not self.names:
            raise DataError(f"{self.name} holds no class; expected at least one")
        if self.starts.dtype != torch.int64 or self.starts.shape != (len(self.names) + 1,):
            raise DataError(
                f"{self.name}: starts must be int64 [{len(self.names) + 1}] for {len(self.names)} classes, "
                f"got {self.starts.dtype} {list(self.starts.shape)}"
            )
        ends = (int(self.starts[0]), int(self.starts[-1]))
        if ends != (0, len(self.pixels)):
            raise DataError(
                f"{self.name}: starts must run from 0 to {len(self.pixels)} images, got {ends[0]}…{ends[1]}"
            )
        least = int(self.counts.argmin())
        if self.counts[least] < 1:
            raise DataError(f"{self.name}: class {self.names[least]} has no image, expected at least one")
        seen: set[str] = set()
        for name in self.names:
            if name in seen:
                raise DataError(f"{self.name}: two classes are called {name}, expected different names")
            seen.add(name)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def counts(self) -> Tensor:
        """Images of each class, int64 ``[classes]``."""
        return self.starts.diff()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width


def check_disjoint(name: str, splits: Mapping[str, ImageClasses | Mapping[str, object]]) -> None:
    """Refuse splits that share a class, since a test class must not have been trained on.

    Args:
        name: of the data set.
        splits: the classes of each.

    Raises:
        DataError: naming the first class that lies in two of them.
    """
    home: dict[str, str] = {}
    for split, classes in splits.items():
        for each in classes.names if isinstance(classes, ImageClasses) else classes:
            if each in home:
                raise DataError(
                    f"{name}: class {each} lies in both {home[each]} and {split}, expected one; remove it from one"
                )
            home[each] = split
