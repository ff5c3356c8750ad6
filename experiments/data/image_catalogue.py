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
        splits: ways to divide the classes, the usual first, and how many then train, validate and test; ``None`` where
            that is not known beforehand.
        images: of each class, or 0 where they differ.
        mean, std: of the pixels on the scale 0…1, a channel each, by which the literature normalises them.
        archives: what can be downloaded.
        layout: what to put where, for what cannot.
        stored: whether it lies on disk at all, and is not drawn.
        terms: the owners' conditions.
        citation: the reference that they ask for.
    """

    name: str
    summary: str
    size: int
    channels: int
    splits: dict[str, tuple[int, int, int] | None]
    images: int
    native: int = 0
    invert: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    archives: tuple[Archive, ...] = ()
    layout: str = ""
    stored: bool = True
    terms: str = ""
    citation: str = ""


OMNIGLOT_PYTHON = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
OMNIGLOT = ImageSet(
    name="omniglot",
    summary="Omniglot: handwritten characters of 50 alphabets",
    size=28,
    channels=1,
    splits={"vinyals": (1028, 172, 423), "lake": (792, 172, 659)},
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

CIFAR_100 = Archive(
    "cifar-100-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    # Of the archive of 169,001,437 bytes, printed by its owners.
    "md5:eb9058c3a382ffc7106e4002c42a8d85",
    256 * 2**20,
)
CIFAR_CITATION = (
    "A. Krizhevsky (2009). Learning Multiple Layers of Features from Tiny Images. Technical report, Toronto"
)
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # of its 50,000 training images

CIFAR_FS = ImageSet(
    name="cifar-fs",
    summary="CIFAR-FS: photographs of CIFAR-100, classes split at random",
    size=32,
    channels=3,
    splits={"official": (64, 16, 20)},
    images=600,
    mean=CIFAR_MEAN,
    std=CIFAR_STD,
    archives=(CIFAR_100,),
    terms="none stated by the owners",
    citation=(
        f"{CIFAR_CITATION}; L. Bertinetto, J. F. Henriques, P. H. S. Torr and A. Vedaldi (2019). Meta-learning with "
        "differentiable closed-form solvers. ICLR"
    ),
)
FC100 = ImageSet(
    name="fc100",
    summary="FC100: photographs of CIFAR-100, superclasses kept apart",
    size=32,
    channels=3,
    splits={"official": (60, 20, 20)},
    images=600,
    mean=CIFAR_MEAN,
    std=CIFAR_STD,
    archives=(CIFAR_100,),
    terms="none stated by the owners",
    citation=(
        f"{CIFAR_CITATION}; B. Oreshkin, P. Rodriguez and A. Lacoste (2018). TADAM: Task dependent adaptive metric for "
        "improved few-shot learning. NeurIPS"
    ),
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those of torchvision's models
IMAGENET_TERMS = "non-commercial research and education, on request at image-net.org"
IMAGENET_CITATION = (
    "O. Russakovsky et al. (2015). ImageNet Large Scale Visual Recognition Challenge. International Journal of "
    "Computer Vision 115, 211-252"
)
MINI_IMAGENET = ImageSet(
    name="mini-imagenet",
    summary="mini-ImageNet: photographs of 100 classes of ImageNet",
    size=84,
    channels=3,
    splits={"official": (64, 16, 20), "folders": None},
    images=600,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    layout=(
        "put there a folder mini-imagenet with train|val|test/CLASS/*.jpg, an archive a class (CLASS.tar), or Ravi and "
        "Larochelle's train.csv, val.csv and test.csv beside images/"
    ),
    terms=IMAGENET_TERMS,
    citation=(
        f"{IMAGENET_CITATION}; O. Vinyals et al. (2016). Matching Networks for One Shot Learning. NeurIPS; S. Ravi and "
        "H. Larochelle (2017). Optimization as a Model for Few-Shot Learning. ICLR"
    ),
)
TIERED_IMAGENET = ImageSet(
    name="tiered-imagenet",
    summary="tieredImageNet: photographs of 608 classes of ImageNet, categories kept apart",
    size=84,
    channels=3,
    splits={"official": (351, 97, 160), "folders": None},
    images=0,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    layout="put there a folder tiered-imagenet with train|val|test/CLASS/*.jpg, or CLASS/*.jpg as ImageNet has it",
    terms=IMAGENET_TERMS,
    citation=(
        f"{IMAGENET_CITATION}; M. Ren et al. (2018). Meta-Learning for Semi-Supervised Few-Shot Classification. ICLR"
    ),
)

GLYPHS = ImageSet(
    name="glyphs",
    summary="glyphs: characters drawn by a program; embedded, nothing to fetch",
    size=28,
    channels=1,
    splits={"drawn": (320, 80, 100)},
    stored=False,
    images=20,
    terms="part of this package",
)

IMAGE_SETS = {each.name: each for each in (OMNIGLOT, CIFAR_FS, FC100, MINI_IMAGENET, TIERED_IMAGENET, GLYPHS)}


def image_set(name: str) -> ImageSet:
    """Return the set of this name.

    Raises:
        ValueError: if there is none; the message names the nearest.
    """
    from adjoint_meta.solvers.checks import one_of  # imports torch, which listing and fetching do not need

    return IMAGE_SETS[one_of("image set", name, IMAGE_SETS)]
