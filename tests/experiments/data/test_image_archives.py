"""Downloading, adding and verifying archives of images; nothing is downloaded."""

import dataclasses
import hashlib

import pytest
from image_builders import plain, snapshot, write

from adjoint_meta.experiments.data import image_archives
from adjoint_meta.experiments.data.errors import DataError, MissingDataError
from adjoint_meta.experiments.data.image_archives import add_images, obtain_images, verify_images
from adjoint_meta.experiments.data.image_catalogue import IMAGE_SETS, MINI_IMAGENET, OMNIGLOT, Archive

CHARACTERS = {"images_background": ("Armenian/c1", "Greek/c1"), "images_evaluation": ("ULOG/c1",)}


@pytest.fixture
def mine(tmp_path):
    for part, characters in CHARACTERS.items():
        contents = {
            f"{part}/{each}/{drawing}.png": plain(0, (105, 105), "1") for each in characters for drawing in "12"
        }
        write(tmp_path / "mine" / f"{part}.zip", contents)
    return tmp_path / "mine"


@pytest.fixture
def official(mine, monkeypatch):
    """Omniglot, as if the files of ``mine`` were what its owners published."""

    def archive(part):
        digest = hashlib.md5((mine / f"{part}.zip").read_bytes()).hexdigest()
        return Archive(f"{part}.zip", f"https://example.org/{part}.zip", f"md5:{digest}", 10**6)

    little = dataclasses.replace(
        OMNIGLOT, splits={"vinyals": (1, 1, 1)}, images=2, archives=tuple(archive(part) for part in CHARACTERS)
    )
    monkeypatch.setitem(IMAGE_SETS, "omniglot", little)
    return little


@pytest.fixture
def downloads(monkeypatch, mine):
    """Downloads copy what ``mine`` holds."""
    asked = []

    def download(url, known_hash, name, folder, progress, limit):
        asked.append((url, known_hash, limit))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((mine / name).read_bytes())
        return folder / name

    monkeypatch.setattr(image_archives, "download", download)
    return asked


def test_what_is_missing_is_downloaded_and_then_here(official, downloads, cache):
    expected = [cache / each.name for each in official.archives]
    assert obtain_images(official) == (expected, True)
    assert downloads == [(each.url, each.hash, each.limit) for each in official.archives]
    assert obtain_images(official) == (expected, False)
    assert len(downloads) == 2


def test_a_broken_archive_of_the_cache_is_downloaded_again(official, downloads, cache):
    obtain_images(official)
    (cache / "images_background.zip").write_bytes(b"rubbish")
    assert obtain_images(official)[1] is True
    assert verify_images(official).hash_of == "archive"


def test_what_the_user_has_is_left_alone(official, downloads, mine):
    (mine / "images_background.zip").write_bytes(b"rubbish")
    assert obtain_images(official, mine)[1] is False
    assert downloads == []
    with pytest.raises(DataError, match=r"images_background.zip is not a sound zip archive"):
        verify_images(official, mine)


def test_verification_counts_and_hashes(official, mine):
    facts = verify_images(official, mine).facts()
    assert (facts["classes"], facts["images"], facts["hash_of"]) == (3, 6, "archive")
    repacked = {f"images_evaluation/ULOG/c1/{drawing}.png": plain(0, (105, 105), "1") for drawing in "21"}
    write(mine / "images_evaluation.zip", repacked)
    assert verify_images(official, mine).hash_of == ""
    write(mine / "images_evaluation.zip", dict(list(repacked.items())[:1]))
    with pytest.raises(
        DataError, match="is not the published omniglot: it holds 1 images of class ULOG/c1, expected 2"
    ):
        verify_images(official, mine)


def test_verification_decodes_what_loading_takes_from_the_cache(official, mine):
    """A file in a folder that is written over in place changes neither its folder nor, so, the cache's key."""
    for part in CHARACTERS:
        (mine / f"{part}.zip").unlink()
    for part, characters in CHARACTERS.items():
        for each in characters:
            write(mine / part / each, {f"{drawing}.png": plain(0, (105, 105), "1") for drawing in "12"})
    assert verify_images(official, mine).images == 6
    (mine / "images_background" / "Greek" / "c1" / "2.png").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"c1/2\.png is no PNG or JPEG image"):
        verify_images(official, mine)


def test_official_archives_are_copied_and_nothing_else(official, mine, cache):
    before = snapshot(mine)
    assert add_images(official, mine) == [cache / each.name for each in official.archives]
    assert {path.name: data for path, data in snapshot(cache).items()} == {path.name: d for path, d in before.items()}
    (mine / "images_evaluation.zip").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"images_evaluation.zip is not the official archive \(md5:"):
        add_images(official, mine)
    (mine / "images_evaluation.zip").unlink()
    with pytest.raises(
        MissingDataError, match=r"name the folder that holds images_background.zip and images_evaluation"
    ):
        add_images(official, mine)


def test_a_set_of_one_archive_is_added_by_its_file(official, mine, cache):
    single = dataclasses.replace(official, archives=official.archives[:1])
    renamed = (mine / "images_background.zip").rename(mine / "download (1).zip")
    assert add_images(single, renamed) == [cache / "images_background.zip"]


def test_what_cannot_be_downloaded_says_how_to_lay_it_out(cache):
    with pytest.raises(MissingDataError, match=r"cannot be fetched; put there a folder mini-imagenet with"):
        obtain_images(MINI_IMAGENET)
    with pytest.raises(ValueError, match="mini-imagenet is not added: make a folder mini-imagenet with"):
        add_images(MINI_IMAGENET, cache)


def test_a_cache_that_cannot_be_written_to_is_one_clear_error(official, mine, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the cache should be")
    with pytest.raises(RuntimeError, match="could not store"):
        add_images(official, mine)
