"""Finding, loading, verifying and adding, on a set of three ratings."""

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import pytest

from adjoint_meta.experiments import data as package
from adjoint_meta.experiments.data import catalogue, loading, locate
from adjoint_meta.experiments.data.errors import DataError, MissingDataError

CONTENT = b"7\t30\t5\t1\n2\t30\t1\t2\n7\t4\t3\t3\n"
LAYOUTS = ["archive", "folder", "file"]


def put(folder: Path, layout: str, content: bytes = CONTENT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / {"archive": "ml-100k.zip", "folder": "ml-100k/u.data", "file": "u.data"}[layout]
    path.parent.mkdir(exist_ok=True)
    if layout == "archive":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("ml-100k/README", "read me")
            file.writestr("ml-100k/u.data", content)
    else:
        path.write_bytes(content)
    return path


def snapshot(folder: Path) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def three(monkeypatch):
    """The catalogue's first set, as if these three ratings were what its owners published."""
    member = catalogue.Member("u.data", 1000, hashlib.sha256(CONTENT).hexdigest())
    official = dataclasses.replace(catalogue.MOVIELENS_100K, members=(member,), users=2, items=2, ratings=3)
    monkeypatch.setitem(catalogue.DATA_SETS, official.name, official)
    return official


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", ["argument", "environment", "cache"])
def test_every_layout_is_found_and_left_as_it_was(layout, how, three, cache, tmp_path, monkeypatch):
    folder = cache if how == "cache" else tmp_path / "mine"
    path = put(folder, layout)
    before = snapshot(tmp_path)
    if how == "environment":
        monkeypatch.setenv("ADJOINT_META_DATA", str(folder))
    data_dir = folder if how == "argument" else None
    assert locate.find(three, data_dir).path == path
    ratings = loading.load_ratings("movielens-100k", data_dir)
    assert sorted(ratings.value) == [1, 3, 5]
    assert snapshot(tmp_path) == before


def test_the_argument_goes_before_the_environment_and_both_before_the_cache(three, cache, tmp_path, monkeypatch):
    paths = {name: put(folder, "file") for name, folder in (("arg", tmp_path / "a"), ("env", tmp_path / "e"))}
    paths["cache"] = put(cache, "file")
    monkeypatch.setenv("ADJOINT_META_DATA", str(tmp_path / "e"))
    assert locate.find(three, tmp_path / "a").path == paths["arg"]
    assert locate.find(three).path == paths["env"]
    paths["env"].unlink()
    assert locate.find(three).path == paths["cache"]


def test_jester_is_found_under_both_archive_names_and_file_formats(tmp_path):
    names = ["jester_dataset_1_1.zip", "jester-data-1.zip", "jester_dataset_1_1/jester-data-1.xls", "jester-data-1.csv"]
    for number, name in enumerate(names):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True)
        path.touch()
        assert locate.find(catalogue.JESTER, tmp_path / str(number)).path == path


def test_missing_data_says_what_to_put_where_and_what_to_run(tmp_path):
    with pytest.raises(MissingDataError) as caught:
        loading.load_ratings("movielens-1m", tmp_path)
    message = str(caught.value)
    assert isinstance(caught.value, RuntimeError) and "\n" not in message
    for part in ("ml-1m.zip", str(tmp_path), "adjoint-meta data fetch movielens-1m", catalogue.MOVIELENS_1M.url):
        assert part in message


def test_a_directory_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"--data-dir names .*nowhere, which is not a directory"):
        locate.search_path(tmp_path / "nowhere")
    monkeypatch.setenv("ADJOINT_META_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="ADJOINT_META_DATA names"):
        locate.search_path()


def test_an_unknown_name_is_refused_with_its_neighbour():
    with pytest.raises(ValueError, match="did you mean 'movielens-1m'"):
        loading.load_ratings("movielens1m")


def test_another_number_of_ratings_than_published_is_warned_of_and_fails_verification(three, tmp_path):
    put(tmp_path, "file", CONTENT[:18])
    with pytest.warns(UserWarning, match="holds 2 users, 1 items and 2 ratings, expected 2 users, 2 items and 3"):
        assert len(loading.load_ratings("movielens-100k", tmp_path)) == 2
    with pytest.raises(DataError, match="expected 2 users, 2 items and 3 ratings"):
        loading.verify(locate.find(three, tmp_path))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_malformed_file_is_named_with_its_path(layout, tmp_path):
    path = put(tmp_path, layout, b"1\t2\t3\n")
    with pytest.raises(DataError, match=r"u\.data, line 1: got 3 fields") as caught:
        loading.load_ratings("movielens-100k", tmp_path)
    assert str(path) in str(caught.value)


def test_a_file_beyond_its_bound_is_refused(three, tmp_path):
    put(tmp_path, "file", CONTENT * 40)
    with pytest.raises(DataError, match="more than 1000 bytes"):
        loading.load_ratings("movielens-100k", tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_verification_says_what_the_hash_confirmed(layout, three, tmp_path, monkeypatch):
    path = put(tmp_path, layout)
    verified = loading.verify(locate.find(three, tmp_path))
    assert verified.hash_of == "file"
    assert verified.facts()["users"] == 2 and verified.facts()["mean"] == pytest.approx(3.0)
    if layout == "archive":
        whole = dataclasses.replace(three, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        assert loading.verify(locate.find(whole, tmp_path)).hash_of == "archive"


def test_a_changed_rating_fails_verification(three, tmp_path):
    put(tmp_path, "archive", CONTENT.replace(b"\t5\t", b"\t4\t"))
    with pytest.raises(DataError, match=r"u\.data has SHA-256 .*, expected"):
        loading.verify(locate.find(three, tmp_path))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adding_stores_the_file_alone(layout, three, cache, tmp_path):
    path = put(tmp_path / "mine", layout)
    added = loading.add(three, path, cache)
    assert added.found.path == cache / "ml-100k" / "u.data" == locate.find(three).path
    assert snapshot(cache) == {added.found.path: CONTENT}


def test_an_archive_of_any_name_and_a_folder_can_be_added(three, cache, tmp_path):
    archive = put(tmp_path / "mine", "archive")
    loading.add(three, archive.rename(archive.with_name("download (1).ZIP")), cache)
    put(tmp_path / "other", "folder")
    loading.add(three, tmp_path / "other", cache)
    loading.add(three, tmp_path / "other" / "ml-100k", cache)


def test_what_is_not_the_set_is_not_added(three, cache, tmp_path):
    (tmp_path / "u.item").write_bytes(CONTENT)
    for path, message in ((tmp_path / "u.item", "is no file of movielens-100k"), (tmp_path, "is no file of")):
        with pytest.raises(DataError, match=message):
            loading.add(three, path, cache)
    with pytest.raises(MissingDataError, match="does not exist"):
        loading.add(three, tmp_path / "none", cache)
    with pytest.raises(DataError, match="holds 2 users"):
        loading.add(three, put(tmp_path, "file", CONTENT[:18]), cache)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_to_is_one_clear_error(three, tmp_path):
    (tmp_path / "blocked").write_text("a file where the cache should be")
    with pytest.raises(RuntimeError, match="could not store"):
        loading.add(three, put(tmp_path, "file"), tmp_path / "blocked")


def test_the_package_exports_what_it_says():
    for name in ("DATA_SETS", "DataError", "DataSet", "MissingDataError", "Ratings", "load_ratings"):
        assert hasattr(package, name)
