"""The sets of images for few-shot classification: where they come from, how they are laid out, their terms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """An official archive.

    Args:
        name: of the file.
        url: where its owners keep it.
        hash: algorithm and digest, as pooch writes it.
        limit: bytes beyond which it is refused, a few times its true size.
    """

    name: str
    url: str
    hash: str
    limit: int


@dataclass(frozen=True)
class ImageSet:
    """One set of images.

    Args:
        name: what the command line calls it.
        summary: one line.
        size: height and width that experiments use.
        channels: 1 or 3.
        native: height and width of every file, or 0 where they differ.
        invert: whether ink is black in the files, as it is white in the arrays.
        splits: ways to divide the classes, the usual first.
        classes: how many train, validate and test, by the usual split.
        images: of each class, or 0 where they differ.
        mean, std: of the pixels on the scale 0…1, a channel each, by which the literature normalises them.
        archives: what can be downloaded.
        layout: what to put where, for what cannot.
        terms: the owners' conditions.
        citation: the reference that they ask for.
    """

    name: str
    summary: str
    size: int
    channels: int
    splits: tuple[str, ...]
    classes: tuple[int, int, int]
    images: int
    native: int = 0
    invert: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    archives: tuple[Archive, ...] = ()
    layout: str = ""
    terms: str = ""
    citation: str = ""


OMNIGLOT_PYTHON = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
OMNIGLOT = ImageSet(
    name="omniglot",
    summary="Omniglot: handwritten characters of 50 alphabets",
    size=28,
    channels=1,
    splits=("vinyals", "lake"),
    classes=(1028, 172, 423),
    images=20,
    native=105,
    invert=True,
    archives=(
        # 964 and 659 characters; the digests are those that torchvision checks.
        Archive(
            "images_background.zip",
            f"{OMNIGLOT_PYTHON}/images_background.zip",
            "md5:68d2efa1b9178cc56df9314c21c6e718",
            64 * 2**20,
        ),
        Archive(
            "images_evaluation.zip",
            f"{OMNIGLOT_PYTHON}/images_evaluation.zip",
            "md5:6b91aef0f799c5bb55b94e3f2daec811",
            64 * 2**20,
        ),
    ),
    terms="MIT licence",
    citation=(
        "B. M. Lake, R. Salakhutdinov and J. B. Tenenbaum (2015). Human-level concept learning through probabilistic "
        "program induction. Science 350(6266), 1332-1338. doi:10.1126/science.aab3050"
    ),
)

GLYPHS = ImageSet(
    name="glyphs",
    summary="glyphs: characters drawn by a program; embedded, nothing to fetch",
    size=28,
    channels=1,
    splits=("drawn",),
    classes=(320, 80, 100),
    images=20,
    terms="part of this package",
    citation="none",
)

IMAGE_SETS = {each.name: each for each in (OMNIGLOT, GLYPHS)}


def image_set(name: str) -> ImageSet:
    """Return the set of this name.

    Raises:
        ValueError: if there is none; the message names the nearest.
    """
    from adjoint_meta.solvers.checks import one_of  # imports torch, which listing and fetching do not need

    return IMAGE_SETS[one_of("image set", name, IMAGE_SETS)]
