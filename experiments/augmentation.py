"""Random changes to images that leave their class as it is, on batches of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from adjoint_meta.solvers import checks

from .random_keys import whole


@dataclass(frozen=True)
class CropAndFlip:
    """A random crop of the zero-padded image, at the size it had, mirrored left to right every other time.

    Args:
        padding: pixels on each side.
        flip: whether to mirror; leave it out where left and right tell classes apart, as with characters.
    """

    padding: int = 8
    flip: bool = True

    def __post_init__(self) -> None:
        checks.count("padding", self.padding, least=0)

    def __call__(self, pixels: Tensor, draws: NDArray[np.uint64]) -> Tensor:
        """Return changed images.

        Args:
            pixels: ``[images, channels, height, width]``.
            draws: random keys ``[images, 3]``, see `random_keys.keys`.
        """
        images, channels, height, width = pixels.shape
        top, left = (whole(draws[:, which], 2 * self.padding + 1) for which in (0, 1))
        rows = top[:, None] + np.arange(height)
        columns = left[:, None] + np.arange(width)
        if self.flip:
            mirrored = whole(draws[:, 2], 2) == 1
            columns[mirrored] = columns[mirrored, ::-1]
        row, column = (torch.from_numpy(each).to(pixels.device) for each in (rows, columns))
        padded = pad(pixels, [self.padding] * 4)
        tall = padded.gather(2, row[:, None, :, None].expand(-1, channels, -1, padded.shape[3]))
        return tall.gather(3, column[:, None, None, :].expand(images, channels, height, width))
