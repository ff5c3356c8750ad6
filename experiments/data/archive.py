"""Reading one file out of an archive that nobody vouches for: in place, by exact name, within bounds.

Nothing is unpacked on disk, so no path in the archive can lead anywhere; sizes are bounded as declared and as read.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from .catalogue import MEGABYTE, Member
from .errors import DataError

# Of the archive itself: ten times the largest, and little enough that its table of contents fits in memory.
ARCHIVE_LIMIT = 64 * MEGABYTE
# The only two that the official archives use; bzip2 and LZMA let an archive choose how much memory reading takes.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1
REMEDY = "download it again"


def read_file(path: Path, limit: int) -> bytes:
    """Return a file's bytes.

    Raises:
        DataError: if it holds more than ``limit`` bytes or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions or {REMEDY}") from error
    if len(data) > limit:
        raise DataError(f"{path} holds more than {limit} bytes, far more than the official file; {REMEDY}")
    return data


def read_member(path: Path, members: Sequence[Member]) -> tuple[Member, bytes]:
    """Return the first of these members that the zip archive holds, in whatever folder, and its bytes.

    Raises:
        DataError: if the archive is corrupted, truncated, encrypted or too large, or holds none of them or one twice.
    """
    try:
        if path.stat().st_size > ARCHIVE_LIMIT:
            raise DataError(f"{path} is larger than {ARCHIVE_LIMIT} bytes, far more than the official one; {REMEDY}")
        with zipfile.ZipFile(path) as archive:
            member, entry = _entry(path, archive, members)
            _inspect(path, entry, member)
            with archive.open(entry) as file:
                data = file.read(member.limit + 1)
    except DataError:
        raise
    # What zipfile lets out when the bytes are wrong: NotImplementedError is a RuntimeError, UnicodeError a ValueError.
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
        OverflowError,
    ) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is not a sound zip archive ({reason}); {REMEDY}") from error
    if len(data) != entry.file_size:
        raise DataError(
            f"{path}: {entry.filename} unpacks to {len(data)} bytes or more, "
            f"where its header declares {entry.file_size}; {REMEDY}"
        )
    return member, data


def _entry(path: Path, archive: zipfile.ZipFile, members: Sequence[Member]) -> tuple[Member, zipfile.ZipInfo]:
    for member in members:
        entries = [
            entry
            for entry in archive.infolist()
            if not entry.is_dir() and PurePosixPath(entry.filename).name == member.name
        ]
        if len(entries) > 1:
            raise DataError(f"{path} holds {len(entries)} files called {member.name}, expected one; {REMEDY}")
        if entries:
            return member, entries[0]
    wanted = " or ".join(member.name for member in members)
    raise DataError(f"{path} holds no {wanted}; {REMEDY}")


def _inspect(path: Path, entry: zipfile.ZipInfo, member: Member) -> None:
    what = f"{path}: {entry.filename}"
    if entry.flag_bits & ENCRYPTED:
        raise DataError(f"{what} is encrypted; the official archive is not: {REMEDY}")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(f"{what} is a symbolic link, expected a file; {REMEDY}")
    if entry.compress_type not in METHODS:
        raise DataError(f"{what} uses compression method {entry.compress_type}, expected deflate; {REMEDY}")
    if entry.file_size > member.limit:
        raise DataError(f"{what} declares {entry.file_size} bytes, expected at most {member.limit}; {REMEDY}")
