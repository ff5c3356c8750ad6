"""Where a data set lies: a directory that the user names, or the cache; an archive, its folder, or the file alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from .archive import read_file, read_member
from .catalogue import DataSet, Member
from .errors import DataError, MissingDataError

VARIABLE = "ADJOINT_META_DATA"


@dataclass(frozen=True)
class Found:
    """A data set on disk: ``path`` is the file ``member``, or an archive when ``member`` is ``None``."""

    data_set: DataSet
    path: Path
    member: Member | None = None

    def read(self) -> tuple[Member, bytes]:
        """Return the file of ratings and its bytes; nothing is unpacked on disk.

        Raises:
            DataError: if the archive is broken, or the file too large or not readable.
        """
        if self.member is None:
            return read_member(self.path, self.data_set.members)
        return self.member, read_file(self.path, self.member.limit)


def cache_folder() -> Path:
    """Return the user's cache folder of this project, the only place that data is written to."""
    return platformdirs.user_cache_path("adjoint-meta", appauthor=False)


def search_path(data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return the folders to look in: ``data_dir``, else the variable ADJOINT_META_DATA, and last the cache.

    Raises:
        ValueError: if a directory is named that does not exist.
    """
    for source, value in (("--data-dir", data_dir), (VARIABLE, os.environ.get(VARIABLE))):
        if value:
            folder = Path(value).expanduser()
            if not folder.is_dir():
                raise ValueError(f"{source} names {folder}, which is not a directory; name the one that holds the data")
            return [folder, cache_folder()]
    return [cache_folder()]


def find(data_set: DataSet, data_dir: str | os.PathLike[str] | None = None) -> Found:
    """Return where the set lies, looking at names only.

    Raises:
        MissingDataError: if it is nowhere.
        ValueError: if a directory is named that does not exist.
    """
    folders = search_path(data_dir)
    for folder in folders:
        found = find_in(data_set, folder)
        if found is not None:
            return found
    places = " or ".join(str(folder) for folder in folders)
    raise MissingDataError(
        f"{data_set.name} is not in {places}; run `adjoint-meta data fetch {data_set.name}`, "
        f"or put {data_set.archives[0]} there, from {data_set.url}"
    )


def find_in(data_set: DataSet, folder: Path) -> Found | None:
    """Return where the set lies in this folder: archive, then unpacked folder, then the file alone."""
    for name in data_set.archives:
        if (folder / name).is_file():
            return Found(data_set, folder / name)
    for inner in (*data_set.folders, ""):
        for member in data_set.members:
            path = folder / inner / member.name
            if path.is_file():
                return Found(data_set, path, member)
    return None


def recognise(data_set: DataSet, path: Path) -> Found:
    """Return what a file or folder named by the user is: an archive, a file of ratings, or a folder of either.

    Raises:
        DataError: if it holds nothing of this set.
        MissingDataError: if it does not exist.
    """
    if not path.exists():
        raise MissingDataError(f"{path} does not exist; name a file or archive of {data_set.name}")
    if path.is_dir():
        found = find_in(data_set, path)
    else:
        members = {member.name: member for member in data_set.members}
        archive = path.suffix.lower() == ".zip"
        found = Found(data_set, path, members.get(path.name)) if archive or path.name in members else None
    if found is None:
        wanted = " or ".join((data_set.archives[0], *(member.name for member in data_set.members)))
        raise DataError(f"{path} is no file of {data_set.name}; expected {wanted}")
    return found
