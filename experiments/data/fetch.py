"""Downloading an official archive: resumed where it was cut, verified, and only then put in its place."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests

from .archive import ARCHIVE_LIMIT
from .catalogue import DataSet
from .errors import DataError
from .loading import verify
from .locate import Found, cache_folder, find_in, search_path

Progress = Callable[[int, int | None], None]
# Of one call: each has to bring the file forward, so that a dead connection fails at once.
ATTEMPTS = 10
HASHES = {"sha256": "SHA-256", "md5": "MD5"}
CHUNK = 2**14  # what is read of a chunk is lost when the connection breaks within it
CONNECT_SECONDS, READ_SECONDS = 10, 60
# The connection broke or stalled; what an HTTP status says is not among these, and is not tried again.
INTERRUPTIONS = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


def obtain(
    data_set: DataSet,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Found, bool]:
    """Return where a sound copy of the set lies, and whether it had to be downloaded, which goes into the cache.

    Raises:
        DataError: if the user's own directory holds a broken copy, or what came is not the official archive.
        RuntimeError: if it cannot be downloaded or stored.
        ValueError: if a directory is named that does not exist.
    """
    cache = cache_folder()
    for folder in search_path(data_dir):
        while (found := find_in(data_set, folder)) is not None:
            try:
                verify(found)
            except DataError as error:
                if folder != cache:
                    raise DataError(
                        f"{error}. It lies in a directory of yours, which is only read: remove it there, "
                        "and run the command again"
                    ) from error
                found.path.unlink()
            else:
                return found, False
    return Found(data_set, fetch(data_set, cache, progress)), True


def fetch(data_set: DataSet, folder: Path, progress: Progress = lambda done, total: None) -> Path:
    """Download the official archive of a set into ``folder``, unless it is there, and return its path.

    An interrupted download leaves ``<archive>.part``, and the next call goes on from it.

    Args:
        data_set: the set.
        folder: where the archive goes; made if need be.
        progress: called with the bytes on disk and, if the server tells, the bytes in all.

    Raises:
        RuntimeError: if it cannot be downloaded or stored; the message says how to do it by hand.
        DataError: if what came is not the official archive; it is removed.
    """
    return download(data_set.url, f"sha256:{data_set.sha256}", data_set.archives[0], folder, progress)


def download(url: str, known_hash: str, name: str, folder: Path, progress: Progress, limit: int | None = None) -> Path:
    """Download an archive as `fetch` does.

    Args:
        url: where it is.
        known_hash: algorithm and digest, such as "sha256:…".
        name: what to call it.
        folder: where it goes.
        progress: see `fetch`.
        limit: bytes beyond which it is given up; ARCHIVE_LIMIT unless given.
    """
    part = folder / f"{name}.part"
    downloader = _Resuming(part, progress, limit or ARCHIVE_LIMIT)
    try:
        path = pooch.retrieve(url, known_hash=known_hash, fname=name, path=folder, downloader=downloader)
    except requests.RequestException as error:
        raise RuntimeError(
            f"could not download {url} ({_reason(error)}); run the command again to go on from where it "
            f"stopped, or download {name} elsewhere and put it into {folder}"
        ) from error
    except OSError as error:
        raise RuntimeError(
            f"could not store {name} in {folder} ({error}); make room there, or make it writable"
        ) from error
    except ValueError as error:  # of pooch, which has removed the file: the hash is wrong; or of ours, too many bytes
        part.unlink(missing_ok=True)
        algorithm, digest = known_hash.split(":")
        raise DataError(
            f"what {url} sent is not the official archive, with {HASHES[algorithm]} {digest}, and was removed; "
            f"run the command again, or get {name} elsewhere and put it into {folder}"
        ) from error
    return Path(path)


@dataclass
class _Resuming:
    """A downloader for pooch that collects the bytes in ``part``, over as many connections as it takes."""

    part: Path
    progress: Progress
    limit: int

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        del pooch
        for attempt in range(1, ATTEMPTS + 1):
            before = self._size()
            try:
                self._go_on(url)
            except INTERRUPTIONS:
                if attempt == ATTEMPTS or self._size() <= before:
                    raise
            else:
                break
        os.replace(self.part, output_file)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _go_on(self, url: str) -> None:
        """Append the rest of the file, or the whole of it to an empty one when the server does not resume."""
        have = self._size()
        headers = {"Accept-Encoding": "identity"}  # so that lengths count the bytes of the file itself
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
            resumes = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
                f"bytes {have}-"
            )
            if have and response.status_code in (206, 416) and not resumes:
                self.part.unlink()  # it does not fit what the server holds now
                self._go_on(url)
                return
            response.raise_for_status()
            self._store(response, have if resumes else 0)

    def _store(self, response: requests.Response, done: int) -> None:
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdigit() else None
        with self.part.open("ab" if done else "wb") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                done += len(chunk)
                if done > self.limit:
                    raise DataError(f"got more than {self.limit} bytes")
                self.progress(done, total)
        if total is not None and done < total:
            raise requests.exceptions.ChunkedEncodingError(f"the connection ended after {done} of {total} bytes")


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    return "no connection" if isinstance(error, requests.ConnectionError) else type(error).__name__
