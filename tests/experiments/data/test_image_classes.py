"""What an `ImageClasses` refuses, with the class named."""

import pytest
import torch

from adjoint_meta.experiments.data.errors import DataError
from adjoint_meta.experiments.data.image_classes import ImageClasses, check_disjoint


def build(**change):
    options = {
        "name": "set",
        "names": ("a", "b"),
        "pixels": torch.zeros(5, 1, 4, 4, dtype=torch.uint8),
        "starts": torch.tensor([0, 2, 5]),
    }
    return ImageClasses(**options | change)


def test_length_counts_and_shape():
    classes = build()
    assert len(classes) == 2 and classes.counts.tolist() == [2, 3] and classes.shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": torch.zeros(5, 1, 4, 4)}, "pixels must be uint8"),
        ({"pixels": torch.zeros(5, 4, 4, dtype=torch.uint8)}, r"got torch.uint8 \[5, 4, 4\]"),
        ({"pixels": torch.zeros(5, 2, 4, 4, dtype=torch.uint8)}, "1 or 3 channels, got 2"),
        ({"names": (), "starts": torch.tensor([0])}, "holds no class"),
        ({"starts": torch.tensor([0, 5])}, r"starts must be int64 \[3\] for 2 classes"),
        ({"starts": torch.tensor([0, 2, 4])}, "starts must run from 0 to 5 images, got 0…4"),
        ({"starts": torch.tensor([0, 5, 5])}, "class b has no image"),
        ({"names": ("a", "a")}, "two classes are called a"),
    ],
)
def test_what_is_malformed_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        build(**change)


def test_overlapping_splits_are_refused_with_the_class():
    train, test = build(), build(names=("b", "c"))
    check_disjoint("set", {"train": train, "test": build(names=("c", "d"))})
    with pytest.raises(DataError, match="set: class b lies in both train and test"):
        check_disjoint("set", {"train": train, "test": test})
