"""Few-shot classification as meta-learning: one task is a few classes, and a few images of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adjoint_meta.solvers import checks
from adjoint_meta.tasks import Batch, TaskBatch, TaskSource

from .augmentation import CropAndFlip
from .data.image_classes import ImageClasses
from .random_keys import choose, keys

# Streams of random numbers of one seed.
CLASSES, IMAGES, SUPPORT_CHANGES, QUERY_CHANGES = 0, 1, 2, 3
WHITE = 255.0


class Episodes(TaskSource):
    """Episodes without end: ``ways`` different classes in random order, and of each different images for both sets.

    The images lie on the device as bytes; support and query of a batch are each taken from them by one indexing
    operation, divided by 255 and normalised: (x − mean) / std. Labels are 0…ways − 1 and mean something within an
    episode only.

    Args:
        classes: the images to draw from.
        ways: classes of an episode.
        shots: images of each class in the support.
        queries: images of each class in the query.
        seed: episode i is a function of (seed, first + i) alone, the same on every machine.
        rotations: every class counts four times, turned by 0, 90, 180 and 270 degrees, as is usual on Omniglot
            (Santoro et al. 2016). The turned copies are held in memory, so four times as much is needed.
        augment: a random crop and flip of every image, support and query; a function of (seed, first + i) too.
        mean, std: of the pixels on the scale 0…1, one number or one a channel.
        device: where the images lie and the episodes are assembled.
        first: index of the first episode, for a stretch of episodes of its own.

    Raises:
        ValueError: if there are fewer classes than ways, a class has fewer than ``shots + queries`` images, rotations
            are asked of images that are not square, or std is not positive.
    """

    def __init__(
        self,
        classes: ImageClasses,
        ways: int,
        shots: int,
        queries: int,
        *,
        seed: int,
        rotations: bool = False,
        augment: CropAndFlip | None = None,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        device: torch.device | str = "cpu",
        first: int = 0,
    ) -> None:
        for what, value in (("ways", ways), ("shots", shots), ("queries", queries)):
            checks.count(what, value)
        checks.count("seed", seed, least=0)
        checks.count("first", first, least=0)
        _check_images(classes, ways, shots + queries, rotations)
        self.classes, self.ways, self.shots, self.queries = classes, ways, shots, queries
        self.seed, self.rotations, self.augment, self.first = seed, rotations, augment, first
        self.mean, self.std = _per_channel("mean", mean, classes), _per_channel("std", std, classes)
        if not bool((self.std > 0).all()):
            raise ValueError(f"std must be positive, got {self.std.flatten().tolist()}")
        self._starts, self._counts = classes.starts.numpy()[:-1], classes.counts.numpy()
        self.pixels = classes.pixels
        if rotations:
            self.pixels = torch.cat([classes.pixels.rot90(turn, (2, 3)) for turn in range(4)])
        self.to(device)

    @property
    def device(self) -> torch.device:
        """Where the images lie and the episodes are assembled."""
        return self.pixels.device

    def to(self, device: torch.device | str) -> Episodes:
        """Move the images to a device, where episodes are assembled from then on; returns itself."""
        self.pixels, self.mean, self.std = (each.to(device) for each in (self.pixels, self.mean, self.std))
        return self

    def fixed(self, count: int) -> TaskBatch:
        """Return the first ``count`` episodes as one batch, for validation and testing.

        All their images are in memory as float32; where that is too much, take stretches: ``episodes[0:100]``.
        """
        return self[0:count]

    def batch(self, indices: Sequence[int]) -> TaskBatch:
        """Return the episodes with these indices.

        Returns:
            Support x float32 ``[tasks, ways · shots, channels, height, width]`` and y int64 ``[tasks, ways · shots]``,
            the images of a class next to each other; the query likewise, with ``ways · queries``.
        """
        numbers = np.asarray(indices, dtype=np.uint64) + np.uint64(self.first)
        image = self.draw(numbers)
        return TaskBatch(
            self._points(image[..., : self.shots], numbers, SUPPORT_CHANGES),
            self._points(image[..., self.shots :], numbers, QUERY_CHANGES),
        )

    def draw(self, numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return which images the episodes of these numbers show, ``[tasks, ways, shots + queries]``."""
        turns = 4 if self.rotations else 1
        turned = choose(keys(self.seed, CLASSES, numbers, self.ways), turns * len(self.classes))
        turn, which = np.divmod(turned, len(self.classes))
        needed = self.shots + self.queries
        draws = keys(self.seed, IMAGES, numbers, self.ways * needed).reshape(*which.shape, needed)
        chosen = choose(draws, self._counts[which])
        start = self._starts[which] + turn * len(self.classes.pixels)
        return np.asarray(start[..., None] + chosen)

    def _points(self, image: NDArray[np.int64], numbers: NDArray[np.uint64], stream: int) -> Batch:
        """Return the images of these numbers ``[tasks, ways, images]`` with their labels."""
        tasks, ways, each = image.shape
        pixels = self.pixels.index_select(0, torch.from_numpy(image.reshape(-1)).to(self.device))
        if self.augment is not None:
            pixels = self.augment(pixels, keys(self.seed, stream, numbers, 3 * ways * each).reshape(-1, 3))
        x = pixels.to(torch.float32).mul_(1 / (WHITE * self.std)).sub_(self.mean / self.std)
        y = torch.arange(ways, device=self.device).repeat_interleave(each).repeat(tasks, 1)
        return Batch(x.unflatten(0, (tasks, ways * each)), y)


def _check_images(classes: ImageClasses, ways: int, needed: int, rotations: bool) -> None:
    have = len(classes) * (4 if rotations else 1)
    if ways > have:
        raise ValueError(f"{classes.name} has {have} classes to draw from, got ways {ways}; ask for fewer ways")
    least = int(classes.counts.argmin())
    if classes.counts[least] < needed:
        raise ValueError(
            f"{classes.name}: class {classes.names[least]} has {int(classes.counts[least])} images, expected at least "
            f"{needed} (shots + queries); ask for fewer, or leave the class out"
        )
    if rotations and classes.shape[1] != classes.shape[2]:
        raise ValueError(f"{classes.name}: rotations need square images, got {classes.shape[1]} × {classes.shape[2]}")


def _per_channel(what: str, value: float | Sequence[float], classes: ImageClasses) -> Tensor:
    numbers = torch.as_tensor(value, dtype=torch.float32).flatten()
    channels = classes.shape[0]
    if len(numbers) not in (1, channels):
        raise ValueError(f"{what} must be one number or {channels}, one a channel, got {len(numbers)}")
    return numbers.view(-1, 1, 1)
