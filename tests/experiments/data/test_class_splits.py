"""The embedded lists: the published counts, no class twice, and what they must agree on."""

from pathlib import Path

import pytest

from adjoint_meta.experiments.data import class_splits
from adjoint_meta.experiments.data.class_splits import SPLITS, official_classes
from adjoint_meta.experiments.data.image_catalogue import IMAGE_SETS

COUNTS = {
    "cifar-fs": (64, 16, 20),
    "fc100": (60, 20, 20),
    "mini-imagenet": (64, 16, 20),
    "tiered-imagenet": (351, 97, 160),
}


def by_split(name):
    return {split: {each for each, home in official_classes(name).items() if home == split} for split in SPLITS}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_published_ones_and_no_class_is_listed_twice(name):
    assert (
        tuple(len(classes) for classes in by_split(name).values())
        == COUNTS[name]
        == IMAGE_SETS[name].splits["official"]
    )
    text = (Path(class_splits.__file__).parent / "splits" / f"{name}.txt").read_text()
    words = [word for line in text.splitlines() if not line.startswith("#") for word in line.split()[1:]]
    assert len(words) == len(set(words)) == sum(COUNTS[name])
    assert text.startswith("#")


def test_both_splits_of_cifar_100_are_of_the_same_hundred_classes():
    assert set(official_classes("cifar-fs")) == set(official_classes("fc100"))
    assert len(official_classes("fc100")) == 100


def test_classes_of_imagenet_are_wordnet_numbers():
    for name in ("mini-imagenet", "tiered-imagenet"):
        assert all(each[0] == "n" and each[1:].isdigit() and len(each) == 9 for each in official_classes(name))


def test_no_superclass_of_fc100_is_divided():
    """Twenty lines of five: the superclasses of CIFAR-100."""
    lines = (Path(class_splits.__file__).parent / "splits" / "fc100.txt").read_text().splitlines()
    groups = [line.split() for line in lines if not line.startswith("#")]
    assert len(groups) == 20 and all(len(group) == 6 for group in groups)
    assert [sum(group[0] == split for group in groups) for split in SPLITS] == [12, 4, 4]


# Superclasses of CIFAR-100 that FC100 does not train on (Krizhevsky 2009; Oreshkin et al., NeurIPS 2018).
HELD_OUT = {
    "validation": {
        "large carnivores": "bear leopard lion tiger wolf",
        "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
        "non-insect invertebrates": "crab lobster snail spider worm",
        "small mammals": "hamster mouse rabbit shrew squirrel",
    },
    "test": {
        "aquatic mammals": "beaver dolphin otter seal whale",
        "insects": "bee beetle butterfly caterpillar cockroach",
        "medium-sized mammals": "fox porcupine possum raccoon skunk",
        "people": "baby boy girl man woman",
    },
}


def test_fc100_holds_out_the_published_superclasses():
    found = by_split("fc100")
    for split, superclasses in HELD_OUT.items():
        assert found[split] == {each for classes in superclasses.values() for each in classes.split()}
