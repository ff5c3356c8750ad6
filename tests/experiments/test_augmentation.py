"""Crops and flips against a loop over images."""

import numpy as np
import pytest
import torch

from adjoint_meta.experiments.augmentation import CropAndFlip
from adjoint_meta.experiments.random_keys import keys, whole


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 2])
def test_each_image_is_cropped_from_its_padded_self_and_perhaps_mirrored(padding, flip):
    pixels = torch.arange(40 * 3 * 5 * 4).remainder(251).to(torch.uint8).view(40, 3, 5, 4)
    draws = keys(0, 0, np.arange(40, dtype=np.uint64), 3)
    got = CropAndFlip(padding, flip)(pixels, draws)
    assert got.dtype == torch.uint8
    places = [
        whole(draws[:, which], below).tolist() for which, below in ((0, 2 * padding + 1), (1, 2 * padding + 1), (2, 2))
    ]
    assert flip is False or set(places[2]) == {0, 1}
    for image, top, left, mirrored, result in zip(pixels.numpy(), *places, got.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        expected = padded[:, top : top + 5, left : left + 4]
        assert np.array_equal(result, expected[:, :, ::-1] if mirrored and flip else expected)


def test_every_place_of_the_crop_comes_up():
    bright = torch.full((400, 1, 3, 3), 255, dtype=torch.uint8)
    got = CropAndFlip(1, False)(bright, keys(0, 0, np.arange(400, dtype=np.uint64), 3))
    assert len({tuple(image.flatten().tolist()) for image in got}) == 9


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="padding must be at least 0, got -1"):
        CropAndFlip(-1)
