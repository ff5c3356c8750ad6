"""From the bytes of an image file to its pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

if TYPE_CHECKING:
    from PIL import Image

GREY, COLOUR = 1, 3
# Of a file, known before it is decoded: below the number from which Pillow warns.
PIXEL_LIMIT = 2**26
# Modes of Pillow that hold no more than these channels; ImageNet has grey and CMYK files among its photographs.
MODES = {GREY: ("1", "L"), COLOUR: ("RGB", "L", "P", "CMYK", "YCbCr")}


@dataclass(frozen=True)
class Decoder:
    """How the images of a set become arrays of one shape.

    Args:
        size: height and width after resizing, by Lanczos' filter over the whole image; its aspect is not kept.
        channels: 1 or 3; photographs without colour get three equal channels.
        native: height and width that every file must have, or 0 where they differ.
        invert: whether ink is 0 in the files; in the array it is 255 always.
    """

    size: int
    channels: int
    native: int = 0
    invert: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an array: channels, height, width."""
        return self.channels, self.size, self.size

    def __call__(self, data: bytes, where: object) -> NDArray[np.uint8]:
        """Return the pixels, uint8 ``[channels, size, size]``.

        Args:
            data: the file.
            where: what to call it in a message.

        Raises:
            DataError: if it is no sound image, or has other channels or another size than all of the set have.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                self._check(image.mode, image.size, where)
                mode = "L" if self.channels == GREY else "RGB"
                pixels = image.convert(mode)
        except (UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(f"{where} is no PNG or JPEG image of a sane size; restore it, or remove it") from error
        except (OSError, SyntaxError, ValueError, EOFError) as error:  # DataError passes below: it is a ValueError
            if isinstance(error, DataError):
                raise
            raise DataError(f"{where} is a broken image ({error}); restore it, or remove it") from error
        return self.fit(pixels)

    def fit(self, pixels: Image.Image) -> NDArray[np.uint8]:
        """Return an image that Pillow holds in mode L or RGB as pixels, uint8 ``[channels, size, size]``."""
        from PIL import Image

        if pixels.size != (self.size, self.size):
            pixels = pixels.resize((self.size, self.size), Image.Resampling.LANCZOS)
        array = np.asarray(pixels, dtype=np.uint8).reshape(self.size, self.size, self.channels).transpose(2, 0, 1)
        return np.asarray(255 - array if self.invert else array)

    def _check(self, mode: str, size: tuple[int, int], where: object) -> None:
        if size[0] * size[1] > PIXEL_LIMIT:
            raise DataError(f"{where} is {size[0]} × {size[1]} pixels, expected at most {PIXEL_LIMIT}; remove it")
        if mode not in MODES[self.channels]:
            kind = "a grey" if self.channels == GREY else "an RGB or grey"
            raise DataError(f"{where} has mode {mode}, expected {kind} image; convert it, or remove it")
        if self.native and size != (self.native, self.native):
            raise DataError(
                f"{where} is {size[0]} × {size[1]} pixels, expected {self.native} × {self.native} as all others; "
                "restore it"
            )
