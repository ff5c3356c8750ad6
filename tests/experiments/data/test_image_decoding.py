"""Pixels of images against arrays from which the images were made."""

import numpy as np
import pytest
from image_builders import encode, plain

from adjoint_meta.experiments.data import image_decoding
from adjoint_meta.experiments.data.errors import DataError
from adjoint_meta.experiments.data.image_decoding import Decoder

RANDOM = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)


def test_pixels_of_the_right_size_come_out_as_they_went_in():
    assert np.array_equal(Decoder(6, 3)(encode(RANDOM), "x"), RANDOM.transpose(2, 0, 1))
    grey = RANDOM[:, :, 0]
    assert np.array_equal(Decoder(6, 1)(encode(grey), "x"), grey[None])
    assert np.array_equal(Decoder(6, 1, invert=True)(encode(grey), "x"), 255 - grey[None])


def test_one_bit_ink_becomes_255():
    bits = np.eye(6, dtype=np.uint8) * 255
    assert np.array_equal(Decoder(6, 1, invert=True)(encode(bits, "1"), "x")[0], 255 - bits)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "YCbCr"])
def test_photographs_without_three_colours_get_them(mode):
    kind = "PNG" if mode in "LP" else "JPEG"
    got = Decoder(8, 3)(plain(90, mode=mode, kind=kind), "x")
    assert got.shape == (3, 8, 8) and np.abs(got.astype(int) - 90).max() <= 2  # JPEG rounds


def test_resizing_keeps_the_mean_and_takes_the_whole_image():
    """A filter whose weights add up to 1 keeps the ink: 105 × 105 to 28 × 28, and both halves of an oblong."""
    disc = (np.hypot(*np.mgrid[-52:53, -52:53]) < 30).astype(np.uint8) * 255
    got = Decoder(28, 1, native=105)(encode(disc), "x")
    assert got.mean() == pytest.approx(disc.mean(), rel=0.01)
    oblong = np.zeros((40, 80), dtype=np.uint8)
    oblong[:, 40:] = 255
    square = Decoder(20, 1)(encode(oblong), "x")[0]
    assert square[:, :8].max() <= 2 and square[:, 12:].min() >= 253  # Lanczos' filter rings a little at the edge


@pytest.mark.parametrize(
    ("decode", "data", "message"),
    [
        (Decoder(8, 1), plain(0), "x.png has mode RGB, expected a grey image"),
        (Decoder(8, 3), plain(0, mode="RGBA"), "x.png has mode RGBA, expected an RGB or grey image"),
        (Decoder(8, 1, native=8), plain(0, (8, 9), "L"), "x.png is 9 × 8 pixels, expected 8 × 8 as all others"),
        (Decoder(8, 1), b"", "x.png is no PNG or JPEG image"),
        (Decoder(8, 1), b"\x89PNG rubbish", "x.png is no PNG or JPEG image"),
        (Decoder(8, 3), plain(7, (50, 50), kind="BMP"), "x.png is no PNG or JPEG image"),
        (Decoder(6, 3), encode(RANDOM)[:-30], "x.png is a broken image"),
        (Decoder(6, 3), encode(RANDOM, kind="JPEG")[:-20], "x.png is a broken image"),
    ],
)
def test_what_is_no_image_of_the_set_is_refused_by_name(decode, data, message):
    with pytest.raises(DataError, match=message):
        decode(data, "x.png")


def test_an_image_too_large_to_decode_is_not_decoded(monkeypatch):
    monkeypatch.setattr(image_decoding, "PIXEL_LIMIT", 80)
    with pytest.raises(DataError, match=r"x\.png is 9 × 9 pixels, expected at most 80; remove it"):
        Decoder(8, 3)(plain(0, (9, 9)), "x.png")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 50)  # Pillow refuses twice as many by itself
    with pytest.raises(DataError, match="of a sane size"):
        Decoder(8, 3)(plain(0, (20, 20)), "x.png")
