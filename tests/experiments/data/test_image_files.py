"""Finding and reading images in folders and archives of every kind."""

import os

import pytest
from image_builders import snapshot, write

from adjoint_meta.experiments.data import image_files
from adjoint_meta.experiments.data.errors import DataError
from adjoint_meta.experiments.data.image_files import find_images, fingerprint, read_images

CONTENTS = {"a/2.png": b"two", "a/1.JPG": b"one", "b/c/3.jpeg": b"three", "b/notes.txt": b"no image"}
EXPECTED = [
    (("root", "a"), "1.JPG", b"one"),
    (("root", "a"), "2.png", b"two"),
    (("root", "b", "c"), "3.jpeg", b"three"),
]


def listed(path):
    files = find_images(path)
    data = dict(read_images(files))
    assert sorted(data) == list(range(len(files)))
    return [(file.folders, file.name, data[place]) for place, file in enumerate(files)]


@pytest.mark.parametrize("ending", ["", ".zip", ".tar", ".tar.gz", ".tgz"])
def test_a_folder_and_every_kind_of_archive_read_the_same(ending, tmp_path):
    path = write(tmp_path / f"root{ending}", CONTENTS)
    before = snapshot(tmp_path)
    assert listed(path) == EXPECTED
    assert snapshot(tmp_path) == before


def test_an_archive_in_a_folder_counts_as_a_folder(tmp_path):
    write(tmp_path / "root" / "b.tar", {"c/3.jpeg": b"three"})
    write(tmp_path / "root" / "a.zip", {"2.png": b"two", "1.JPG": b"one"})
    assert listed(tmp_path / "root") == EXPECTED


def test_what_systems_leave_behind_is_no_image(tmp_path):
    write(tmp_path / "r.zip", {"__MACOSX/a/._1.png": b"", "a/.hidden.png": b"", ".git/1.png": b"", "a/1.png": b"1"})
    write(tmp_path / "r" / ".git", {"1.png": b""})
    write(tmp_path / "r", {"a/._1.png": b"", "a/1.png": b"1"})
    for name in ("r", "r.zip"):
        assert listed(tmp_path / name) == [(("r", "a"), "1.png", b"1")]


def test_a_file_is_named_in_its_archive(tmp_path):
    (file,) = find_images(write(tmp_path / "r.zip", {"a/1.png": b"1"}))
    assert str(file) == f"{tmp_path / 'r.zip'}: a/1.png"


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_a_cut_archive_is_one_clear_error(ending, keep, tmp_path):
    path = write(tmp_path / f"r{ending}", {"a/1.png": os.urandom(40_000), "a/2.png": os.urandom(40_000)})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DataError, match=rf"r{ending} is not a sound (zip|tar) archive .*; replace it"):
        listed(path)


def test_a_changed_byte_in_a_zip_is_found_by_its_checksum(tmp_path):
    path = write(tmp_path / "r.zip", {"a/1.png": b"some bytes of an image"})
    path.write_bytes(path.read_bytes().replace(b"some bytes", b"same bytes"))
    with pytest.raises(DataError, match="Bad CRC-32"):
        listed(path)


@pytest.mark.parametrize("ending", ["", ".zip", ".tar"])
def test_a_file_too_large_for_an_image_is_refused(ending, tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "IMAGE_LIMIT", 10)
    path = write(tmp_path / f"r{ending}", {"a/1.png": b"eleven byte"})
    with pytest.raises(DataError, match="10"):
        listed(path)


def test_the_fingerprint_changes_with_what_is_there(tmp_path):
    folder, archive = write(tmp_path / "r", CONTENTS), write(tmp_path / "s.zip", CONTENTS)
    first = fingerprint([folder, archive])
    assert fingerprint([folder, archive]) == first
    write(folder, {"a/4.png": b"four"})
    second = fingerprint([folder, archive])
    os.utime(archive, ns=(0, 0))
    third = fingerprint([folder, archive])
    (folder / "a" / "4.png").rename(folder / "a" / "5.png")
    os.utime(folder / "a", ns=(1, 1))  # two changes within the clock's grain
    assert len({first, second, third, fingerprint([folder, archive])}) == 4
