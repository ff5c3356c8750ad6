"""The data sets of ratings that the experiments use: where they come from, how to recognise them, their terms."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 2**20


@dataclass(frozen=True)
class Member:
    """A file that holds the ratings of a set.

    Args:
        name: its basename, in an archive or alone.
        limit: bytes beyond which it is refused unread, a few times its true size.
        sha256: of the official file, or "" where it is not known.
    """

    name: str
    limit: int
    sha256: str = ""


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Args:
        name: what the command line calls it.
        summary: one line.
        url: the official archive.
        sha256: of the official archive.
        archives: names under which an archive of it is looked for; the first is the official one.
        folders: names of the folder that unpacking makes.
        members: files that hold the ratings, any of which will do, the preferred first.
        users, items, ratings: how many the complete set holds.
        terms: the owners' conditions in a sentence.
        citation: the reference that they ask for.
    """

    name: str
    summary: str
    url: str
    sha256: str
    archives: tuple[str, ...]
    folders: tuple[str, ...]
    members: tuple[Member, ...]
    users: int
    items: int
    ratings: int
    terms: str
    citation: str


# The owners' READMEs ("usage license") in both archives.
MOVIELENS_TERMS = "research use with citation; no redistribution and no commercial use without GroupLens' permission"
MOVIELENS_CITATION = (
    "F. M. Harper and J. A. Konstan (2015). The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems 5(4), 19. doi:10.1145/2827872"
)

MOVIELENS_100K = DataSet(
    name="movielens-100k",
    summary="MovieLens 100K: stars (1-5) for films",
    url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
    # Of the official archive of 4,924,029 bytes (md5 0e33842e24a9c977be4e0107933c0723, printed by GroupLens).
    sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    archives=("ml-100k.zip",),
    folders=("ml-100k",),
    # u.data of that archive: 1,979,173 bytes.
    members=(Member("u.data", 8 * MEGABYTE, "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"),),
    users=943,  # the three counts are those of the archive's README
    items=1682,
    ratings=100_000,
    terms=MOVIELENS_TERMS,
    citation=MOVIELENS_CITATION,
)

MOVIELENS_1M = DataSet(
    name="movielens-1m",
    summary="MovieLens 1M: stars (1-5) for films",
    url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
    # Of the official archive of 5,917,549 bytes (md5 c4d9eecfca2ab87c1945afe126590906, printed by GroupLens).
    sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    archives=("ml-1m.zip",),
    folders=("ml-1m",),
    # ratings.dat of that archive: 24,594,131 bytes, hashed after the archive's own hash was found right.
    members=(Member("ratings.dat", 64 * MEGABYTE, "506d64ca44484487c11dc2d9a28de5c54948213e6b96285e298afe28d6ea4e0f"),),
    users=6040,  # the README's counts; 3,706 is the number of films with a rating, of 3,883 listed
    items=3706,
    ratings=1_000_209,
    terms=MOVIELENS_TERMS,
    citation=MOVIELENS_CITATION,
)

JESTER = DataSet(
    name="jester",
    summary="Jester 1, first part: ratings (-10 to 10) of 100 jokes",
    url="https://eigentaste.berkeley.edu/dataset/jester_dataset_1_1.zip",
    # Of the official archive of 4,171,628 bytes.
    sha256="cb7841756ded125b15f3d95c9f8241224065e96354c132a46ae4214deeab7615",
    archives=("jester_dataset_1_1.zip", "jester-data-1.zip"),
    folders=("jester_dataset_1_1", "jester-data-1"),
    # The official file is the .xls; the same sheet saved as CSV (11.7 MB) needs no xlrd, so it is preferred. How
    # a spreadsheet program writes its numbers is its own affair, so that neither has one right hash: the counts decide.
    members=(Member("jester-data-1.csv", 64 * MEGABYTE), Member("jester-data-1.xls", 128 * MEGABYTE)),
    users=24_983,  # users: the owners' page; ratings: the sum of the sheet's first column, which counts them
    items=100,
    ratings=1_810_455,
    terms="research use with citation",
    citation=(
        "K. Goldberg, T. Roeder, D. Gupta and C. Perkins (2001). Eigentaste: A Constant Time Collaborative Filtering "
        "Algorithm. Information Retrieval 4(2), 133-151"
    ),
)

DATA_SETS = {data_set.name: data_set for data_set in (MOVIELENS_100K, MOVIELENS_1M, JESTER)}


def data_set(name: str) -> DataSet:
    """Return the set of this name.

    Raises:
        ValueError: if there is none; the message names the nearest.
    """
    from adjoint_meta.solvers.checks import one_of  # imports torch, which listing and fetching do not need

    return DATA_SETS[one_of("data set", name, DATA_SETS)]
