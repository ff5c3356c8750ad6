"""Downloads from a server on the loopback interface that cuts, ignores, refuses or lies."""

import dataclasses
import hashlib
import io
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from adjoint_meta.experiments.data import archive, catalogue
from adjoint_meta.experiments.data import fetch as fetching
from adjoint_meta.experiments.data.errors import DataError
from adjoint_meta.experiments.data.locate import find

RATINGS = b"7\t30\t5\t1\n2\t30\t1\t2\n"


def official_archive():
    """A zip file of some 300 kB, so that it takes several reads."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("ml-100k/u.data", RATINGS)
        file.writestr("ml-100k/noise", np.random.default_rng(0).bytes(300_000))
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves ``body``; cuts the first ``cuts`` answers halfway through what is left."""

    body = official_archive()
    cuts = 0
    ranges = True
    status = 200

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/ml-100k.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if start >= len(server.body):
            self.send_error(416)
            return
        rest = server.body[start:]
        self.send_response(206 if wanted and server.ranges else 200)
        if wanted and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if server.cuts > 0:
            server.cuts -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def official(server, monkeypatch):
    data_set = dataclasses.replace(
        catalogue.MOVIELENS_100K,
        url=server.url,
        sha256=hashlib.sha256(server.body).hexdigest(),
        members=(catalogue.Member("u.data", 1000),),
        users=2,
        items=1,
        ratings=2,
    )
    monkeypatch.setitem(catalogue.DATA_SETS, data_set.name, data_set)
    return data_set


def test_an_archive_is_downloaded_once_and_then_found(server, official, cache):
    seen = []
    path = fetching.fetch(official, cache, lambda done, total: seen.append((done, total)))
    assert path == cache / "ml-100k.zip" == find(official).path
    assert list(cache.iterdir()) == [path] and path.read_bytes() == server.body
    assert seen == sorted(seen) and seen[-1] == (len(server.body), len(server.body)) and len(seen) > 3
    assert fetching.fetch(official, cache) == path
    assert server.asked == [None]


def test_a_cut_connection_is_resumed_from_where_it_was_cut(server, official, cache):
    server.cuts = 2
    path = fetching.fetch(official, cache)
    first, *later = server.asked
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in later]
    # half of all, then half of the rest, less the chunk that the cut spoilt
    assert first is None and len(starts) == 2
    assert len(server.body) / 2 - fetching.CHUNK <= starts[0] <= len(server.body) / 2
    middle = (starts[0] + len(server.body)) / 2
    assert middle - fetching.CHUNK <= starts[1] <= middle
    assert path.read_bytes() == server.body and list(cache.iterdir()) == [path]


def test_a_part_of_an_earlier_call_is_resumed(server, official, cache):
    cache.mkdir(parents=True)
    (cache / "ml-100k.zip.part").write_bytes(server.body[:1000])
    assert fetching.fetch(official, cache).read_bytes() == server.body
    assert server.asked == ["bytes=1000-"]


def test_a_server_that_ignores_ranges_sends_all_of_it_again(server, official, cache):
    server.ranges, server.cuts = False, 1
    assert fetching.fetch(official, cache).read_bytes() == server.body
    assert len(server.asked) == 2 and server.asked[1] is not None


def test_a_part_longer_than_the_file_is_thrown_away(server, official, cache):
    cache.mkdir(parents=True)
    (cache / "ml-100k.zip.part").write_bytes(b"0" * (len(server.body) + 5))
    assert fetching.fetch(official, cache).read_bytes() == server.body
    assert server.asked[1:] == [None]


def test_a_wrong_hash_is_an_error_and_leaves_nothing(server, official, cache):
    server.body = b"not the archive"
    with pytest.raises(DataError, match=f"not the official archive, with SHA-256 {official.sha256}, and was removed"):
        fetching.fetch(official, cache)
    assert list(cache.iterdir()) == []


def test_a_wrong_part_is_an_error_once_and_the_next_call_starts_afresh(server, official, cache):
    cache.mkdir(parents=True)
    (cache / "ml-100k.zip.part").write_bytes(b"junk")
    with pytest.raises(DataError, match="run the command again"):
        fetching.fetch(official, cache)
    assert fetching.fetch(official, cache).read_bytes() == server.body


def test_a_download_without_end_is_stopped(server, official, cache, monkeypatch):
    monkeypatch.setattr(fetching, "ARCHIVE_LIMIT", 100_000)
    with pytest.raises(DataError, match="not the official archive"):
        fetching.fetch(official, cache)
    assert list(cache.iterdir()) == []
    assert archive.ARCHIVE_LIMIT > 100_000


def test_a_connection_that_brings_nothing_is_given_up_and_the_part_is_kept(server, official, cache):
    server.cuts = 10**6
    with pytest.raises(RuntimeError, match="the connection was cut") as caught:
        fetching.fetch(official, cache)
    assert 2 < len(server.asked) <= fetching.ATTEMPTS
    (part,) = cache.iterdir()
    assert part.name == "ml-100k.zip.part" and server.body.startswith(part.read_bytes())
    assert "run the command again" in str(caught.value)


@pytest.mark.parametrize("status", [404, 500])
def test_an_http_error_is_not_tried_again(server, official, cache, status):
    server.status = status
    with pytest.raises(RuntimeError, match=f"HTTP status {status}"):
        fetching.fetch(official, cache)
    assert len(server.asked) == 1


def test_without_a_network_one_message_says_what_to_do(official, cache):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    official = dataclasses.replace(official, url=f"http://127.0.0.1:{port}/ml-100k.zip")
    with pytest.raises(RuntimeError) as caught:
        fetching.fetch(official, cache)
    message = str(caught.value)
    assert "\n" not in message
    for part in (official.url, "no connection", "download ml-100k.zip elsewhere", str(cache)):
        assert part in message


def test_a_cache_that_cannot_be_made_is_one_clear_error(server, official, tmp_path):
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises(RuntimeError, match=r"could not store ml-100k\.zip"):
        fetching.fetch(official, tmp_path / "blocked")


def test_obtaining_leaves_a_sound_copy_alone(server, official, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "u.data").write_bytes(RATINGS)
    found, fetched = fetching.obtain(official, tmp_path / "mine")
    assert (found.path, fetched, server.asked) == (tmp_path / "mine" / "u.data", False, [])


def test_obtaining_replaces_a_broken_copy_in_the_cache(server, official, cache):
    (cache / "ml-100k").mkdir(parents=True)
    for name in ("ml-100k.zip", "ml-100k/u.data"):
        (cache / name).write_bytes(b"broken")
    found, fetched = fetching.obtain(official)
    assert fetched and found.path.read_bytes() == server.body
    assert fetching.obtain(official) == (found, False)


def test_obtaining_does_not_touch_a_broken_copy_of_the_user(server, official, tmp_path):
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "ml-100k.zip"
    mine.write_bytes(b"broken")
    with pytest.raises(DataError, match="remove it there"):
        fetching.obtain(official, tmp_path / "mine")
    assert mine.read_bytes() == b"broken" and server.asked == []
