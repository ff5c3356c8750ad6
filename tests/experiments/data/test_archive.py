import io
import stat
import struct
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adjoint_meta.experiments.data import archive
from adjoint_meta.experiments.data.catalogue import Member
from adjoint_meta.experiments.data.errors import DataError

CONTENT = b"1\t2\t3\t4\n" * 20
MEMBERS = (Member("u.data", 1000),)
CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


def zipped(*entries, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in entries:
            file.writestr(name, data)
    return buffer.getvalue()


def patched(data, at_central, at_local, form, value):
    """The archive with one field of its only entry's two headers overwritten."""
    data = bytearray(data)
    for mark, offset in ((CENTRAL, at_central), (LOCAL, at_local)):
        struct.pack_into(form, data, data.index(mark) + offset, value)
    return bytes(data)


@pytest.fixture
def read(tmp_path):
    def read(data):
        path = tmp_path / "ml.zip"
        path.write_bytes(data)
        return archive.read_member(path, MEMBERS)

    return read


@pytest.mark.parametrize("name", ["u.data", "ml-100k/u.data", "a/b/c/u.data"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_member_is_found_in_any_folder(read, name, method):
    member, data = read(zipped(("README", "no"), ("x/not-u.data", "no"), (name, CONTENT), method=method))
    assert (member, data) == (MEMBERS[0], CONTENT)


def test_the_preferred_member_is_taken(tmp_path):
    path = tmp_path / "both.zip"
    path.write_bytes(zipped(("second", b"2"), ("first", b"1")))
    assert archive.read_member(path, (Member("first", 9), Member("second", 9)))[1] == b"1"


def test_a_path_that_climbs_out_is_read_in_place_and_nothing_is_written(read, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = inside / "evil.zip"
    path.write_bytes(zipped(("../../u.data", CONTENT), ("/tmp/u.item", b"no")))
    assert archive.read_member(path, MEMBERS)[1] == CONTENT
    assert sorted(tmp_path.rglob("*")) == [inside, path]


def link():
    entry = zipfile.ZipInfo("u.data")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zipped((entry, "/etc/passwd"))


ENCRYPTED = patched(zipped(("u.data", CONTENT)), 8, 6, "<H", 1)
BROKEN_CRC = zipped(("u.data", CONTENT), method=zipfile.ZIP_STORED).replace(b"1\t2\t3", b"1\t2\t9", 1)
# A header that promises less than the member unpacks to, and one that promises more.
UNDERSTATED = patched(zipped(("u.data", b"0" * 10**6)), 24, 22, "<I", 10)
OVERSTATED = patched(zipped(("u.data", CONTENT)), 24, 22, "<I", 999)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a sound zip archive"),
        (b"PK\x03\x04 no zip at all", "not a sound zip archive"),
        (zipped(("u.data", CONTENT))[:-30], "not a sound zip archive"),
        (zipped(("u.data", CONTENT))[40:], "not a sound zip archive"),
        (BROKEN_CRC, "CRC"),
        (ENCRYPTED, "encrypted"),
        (link(), "symbolic link"),
        (zipped(("u.data", CONTENT), method=zipfile.ZIP_LZMA), "compression method 14"),
        (zipped(("u.data", CONTENT), method=zipfile.ZIP_BZIP2), "compression method 12"),
        (zipped(("u.data", b"0" * 10**6)), "declares 1000000 bytes, expected at most 1000"),
        (UNDERSTATED, "CRC"),
        (OVERSTATED, "unpacks to 160 bytes or more, where its header declares 999"),
        (zipped(("a/u.data", CONTENT), ("b/u.data", CONTENT)), "2 files called u.data"),
        (zipped(("u.item", CONTENT)), "holds no u.data"),
        (zipped(("u.data/", b"")), "holds no u.data"),
    ],
    ids=lambda value: value if isinstance(value, str) else "zip",  # archives hold the time at which they were made
)
def test_a_bad_archive_is_refused(read, data, message):
    with pytest.raises(DataError, match=message) as caught:
        read(data)
    assert "download it again" in str(caught.value) and "\n" not in str(caught.value)


def test_a_huge_archive_is_refused_unopened(tmp_path):
    path = tmp_path / "huge.zip"
    with path.open("wb") as file:
        file.truncate(archive.ARCHIVE_LIMIT + 1)
    with pytest.raises(DataError, match="is larger than"):
        archive.read_member(path, MEMBERS)


def test_a_file_beyond_its_bound_is_refused(tmp_path):
    path = tmp_path / "u.data"
    path.write_bytes(b"0" * 11)
    assert archive.read_file(path, 11) == b"0" * 11
    with pytest.raises(DataError, match="more than 10 bytes"):
        archive.read_file(path, 10)
    with pytest.raises(DataError, match="cannot be read"):
        archive.read_file(tmp_path, 10)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_bytes_changed_anywhere_give_the_content_or_a_data_error(read, data):
    sound = zipped(("ml-100k/u.data", CONTENT), ("README", b"x"))
    broken = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    try:
        _, content = read(bytes(broken))
    except DataError:
        return
    assert content == CONTENT
