"""From a data set's name to its ratings, checked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from . import jester, movielens
from .archive import ARCHIVE_LIMIT, read_file
from .catalogue import DataSet, Member, data_set
from .errors import DataError
from .locate import Found, find, recognise
from .ratings import Ratings


@dataclass(frozen=True)
class Verified:
    """What verification found.

    Args:
        found: where the set lies.
        member: the file of ratings.
        data: its bytes.
        ratings: its content.
        hash_of: what a known SHA-256 confirmed: "archive", "file", or "" when none is known for what is there.
    """

    found: Found
    member: Member
    data: bytes
    ratings: Ratings
    hash_of: str

    def facts(self) -> dict[str, str | int | float]:
        """Return what a person wants to see of it, ready for JSON."""
        return {
            "name": self.ratings.name,
            "path": str(self.found.path),
            "file": self.member.name,
            "sha256_of": self.hash_of,
            "users": self.ratings.users,
            "items": self.ratings.items,
            "ratings": len(self.ratings),
            "mean": float(self.ratings.value.mean()),
        }


def load_ratings(name: str, data_dir: str | os.PathLike[str] | None = None) -> Ratings:
    """Return the ratings of the set of this name, from ``data_dir``, else ADJOINT_META_DATA, else the cache.

    Warns when they are fewer or more than the published set holds, since results would not be comparable.

    Raises:
        MissingDataError: if the set is not there.
        DataError: if it is corrupted or malformed.
        ValueError: if there is no set of this name or no such directory.
    """
    found = find(data_set(name), data_dir)
    member, data = found.read()
    ratings = parse(found.data_set, member, data, found.path)
    difference = _difference(found.data_set, ratings)
    if difference:
        warnings.warn(f"{found.path} is not the published {name}: it holds {difference}", stacklevel=2)
    return ratings


def verify(found: Found) -> Verified:
    """Return what lies there, after checking the hashes that are known, every line, and the published counts.

    An archive of another hash passes if the file in it is the official one: archives are repacked, files seldom change.

    Raises:
        DataError: at the first thing that is wrong.
    """
    official = found.data_set
    member, data = found.read()
    ratings = parse(official, member, data, found.path)
    difference = _difference(official, ratings)
    if difference:
        raise DataError(
            f"{found.path} is not the published {official.name}: it holds {difference}; {_remedy(official)}"
        )
    hash_of = ""
    if found.member is None and _sha256(read_file(found.path, ARCHIVE_LIMIT)) == official.sha256:
        hash_of = "archive"
    elif member.sha256:
        got = _sha256(data)
        if got != member.sha256:
            raise DataError(
                f"{found.path}: {member.name} has SHA-256 {got}, expected {member.sha256}; {_remedy(official)}"
            )
        hash_of = "file"
    return Verified(found, member, data, ratings, hash_of)


def add(official: DataSet, path: Path, folder: Path) -> Verified:
    """Verify a file, archive or folder of this set that the user has, and store its ratings in the cache folder.

    Raises:
        MissingDataError: if there is nothing at that path.
        DataError: if it is not the published set.
        RuntimeError: if it cannot be stored.
    """
    verified = verify(recognise(official, path))
    stored = _store(verified, folder)
    return replace(verified, found=Found(official, stored, verified.member))


def parse(official: DataSet, member: Member, data: bytes, path: Path) -> Ratings:
    """Return the ratings in the bytes of a member of this set.

    Raises:
        DataError: if they are malformed; the message names the path, the line and the fault.
    """
    where = str(path) if path.name == member.name else f"{path}: {member.name}"
    if member.name.endswith(".xls"):
        return jester.parse_xls(data, where)
    if member.name.endswith(".csv"):
        return jester.parse_csv(data, where)
    return movielens.parse(official.name, data, b"::" if member.name == "ratings.dat" else b"\t", where)


def _difference(official: DataSet, ratings: Ratings) -> str:
    expected = (official.users, official.items, official.ratings)
    got = (ratings.users, ratings.items, len(ratings))
    if got == expected:
        return ""

    def counts(numbers: tuple[int, int, int]) -> str:
        return "{:,} users, {:,} items and {:,} ratings".format(*numbers)

    return f"{counts(got)}, expected {counts(expected)}"


def _remedy(official: DataSet) -> str:
    return f"restore it, with `adjoint-meta data fetch {official.name}`"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _store(verified: Verified, folder: Path) -> Path:
    """Write the verified bytes, and nothing else of what lay beside them; return the path."""
    path = folder / verified.found.data_set.folders[0] / verified.member.name
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(verified.data)
        os.replace(partial, path)  # in one stroke: a reader sees all of it or nothing
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise RuntimeError(f"could not store {path} ({error}); make room there, or make it writable") from error
    return path
