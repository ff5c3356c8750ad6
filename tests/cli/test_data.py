"""The `data` commands, on a set of three ratings; nothing is downloaded."""

import dataclasses
import hashlib
import json

import pytest
from click.testing import CliRunner
from image_builders import plain, write

from adjoint_meta.cli.data import command
from adjoint_meta.experiments.data import catalogue, fetch, image_archives
from adjoint_meta.experiments.data.errors import DataError, MissingDataError
from adjoint_meta.experiments.data.image_catalogue import IMAGE_SETS, OMNIGLOT, Archive

CONTENT = b"7\t30\t5\t1\n2\t30\t1\t2\n7\t4\t3\t3\n"
NAME = "movielens-100k"


@pytest.fixture(autouse=True)
def three(monkeypatch, tmp_path):
    """The first set holds three ratings; the cache is empty and no directory is named by the environment."""
    member = catalogue.Member("u.data", 1000, hashlib.sha256(CONTENT).hexdigest())
    official = dataclasses.replace(catalogue.MOVIELENS_100K, members=(member,), users=2, items=2, ratings=3)
    monkeypatch.setitem(catalogue.DATA_SETS, NAME, official)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ADJOINT_META_DATA", raising=False)
    return official


@pytest.fixture
def mine(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "u.data").write_bytes(CONTENT)
    return folder


def run(*arguments):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None:
        assert result.stdout == ""
        raise result.exception
    return result


def run_json(*arguments):
    """The one object that stdout carries."""
    return json.loads(run(*arguments, "--json").stdout)


def test_list_shows_every_set_with_its_terms(mine, tmp_path):
    lines = run("list", "--data-dir", mine).stdout.splitlines()
    names = {*catalogue.DATA_SETS, *IMAGE_SETS}
    rows = {line.split()[0]: line for line in lines if line and line.split()[0] in names}
    assert set(rows) == names
    assert str(mine / "u.data") in rows[NAME] and rows["jester"].endswith("not here")
    assert rows["omniglot"].endswith("not here") and rows["glyphs"].endswith("embedded")
    text = "\n".join(lines)
    assert "no redistribution" in text and "Eigentaste" in text and "adjoint-meta data fetch" in text


def test_list_in_json(mine):
    answer = run_json("list", "--data-dir", mine)
    assert answer["searched"][0] == str(mine)
    states = {each["name"]: each for each in answer["sets"]}
    assert states[NAME]["present"] is True and states[NAME]["bytes"] == len(CONTENT)
    assert states["jester"]["present"] is False and states["jester"]["path"] is None
    assert states["jester"]["url"].startswith("https://eigentaste.berkeley.edu/")


def test_add_copies_into_the_cache_and_verify_finds_it_there(mine, tmp_path):
    stored = tmp_path / "cache" / "adjoint-meta" / "ml-100k" / "u.data"
    assert str(stored) in run("add", NAME, mine / "u.data").stdout
    assert stored.read_bytes() == CONTENT
    answer = run_json("verify")
    assert answer["missing"] == ["movielens-1m", "jester", *(name for name in IMAGE_SETS if name != "glyphs")]
    (facts,) = answer["sets"]
    assert facts.pop("mean") == pytest.approx(3.0)
    assert facts == {
        "name": NAME,
        "path": str(stored),
        "file": "u.data",
        "sha256_of": "file",
        "users": 2,
        "items": 2,
        "ratings": 3,
    }


def test_add_says_when_another_copy_goes_first(mine, tmp_path):
    result = run("add", NAME, mine / "u.data", "--data-dir", mine, "--json")
    assert f"note: {mine / 'u.data'} lies before it" in result.stderr
    assert json.loads(result.stdout)["path"].startswith(str(tmp_path / "cache"))


def test_verify_prints_the_counts(mine):
    lines = run("verify", NAME, "--data-dir", mine).stdout.splitlines()
    assert lines[1].split() == [NAME, "2", "2", "3", "3.00000", "file", str(mine / "u.data")]


def test_verify_of_what_is_not_there(mine):
    with pytest.raises(MissingDataError, match="adjoint-meta data fetch jester"):
        run("verify", "jester", "--json")
    with pytest.raises(MissingDataError, match=r"none of movielens-100k, movielens-1m, jester, omniglot, .* is here"):
        run("verify")


def test_verify_of_a_broken_file_prints_nothing_on_stdout(mine):
    (mine / "u.data").write_bytes(CONTENT + b"rubbish\n")
    for arguments in (("verify", NAME), ("verify", "--json")):
        with pytest.raises(DataError, match=r"u\.data, line 4: got 1 field"):
            run(*arguments, "--data-dir", mine)


def test_fetch_of_what_is_here_downloads_nothing(mine):
    answer = run_json("fetch", NAME, "--data-dir", mine)
    assert answer == {"name": NAME, "path": str(mine / "u.data"), "fetched": False}
    assert "is here already" in run("fetch", NAME, "--data-dir", mine).stdout


def test_fetch_goes_to_the_cache_and_shows_the_terms(monkeypatch, tmp_path, mine):
    def download(data_set, folder, progress):
        progress(1, None)
        progress(2, 2)
        return folder / data_set.archives[0]

    monkeypatch.setattr(fetch, "fetch", download)
    result = run("fetch", "jester", "--data-dir", mine, "--json")
    path = str(tmp_path / "cache" / "adjoint-meta" / "jester_dataset_1_1.zip")
    assert json.loads(result.stdout) == {"name": "jester", "path": path, "fetched": True}
    assert "research use with citation" in result.stderr


@pytest.mark.parametrize("arguments", [("fetch", "jestr"), ("add", "jestr", "x"), ("verify", "jestr")])
def test_an_unknown_name_is_refused_with_its_neighbour(arguments):
    with pytest.raises(ValueError, match="unknown data set 'jestr'; did you mean 'jester'"):
        run(*arguments)


def test_help_names_every_command():
    text = run("--help").stdout
    for name in ("list", "fetch", "add", "verify"):
        assert name in text


@pytest.fixture
def little(monkeypatch, tmp_path):
    """Omniglot as if three characters of two drawings were what its owners published, in a folder of the user's."""
    contents = {
        "background": ("Armenian/character01", "Greek/character01"),
        "evaluation": ("ULOG/character01",),
    }
    archives = []
    for part, characters in contents.items():
        names = [f"images_{part}/{each}/{drawing}.png" for each in characters for drawing in (1, 2)]
        path = write(tmp_path / "pictures" / f"images_{part}.zip", {name: plain(0, (105, 105), "1") for name in names})
        archives.append(Archive(path.name, "-", f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}", 10**6))
    official = dataclasses.replace(OMNIGLOT, splits={"vinyals": (1, 1, 1)}, images=2, archives=tuple(archives))
    monkeypatch.setitem(IMAGE_SETS, "omniglot", official)
    return tmp_path / "pictures"


def test_images_are_listed_added_and_verified(little, tmp_path):
    state = {each["name"]: each for each in run_json("list", "--data-dir", little)["sets"]}["omniglot"]
    assert state["present"] is True and state["bytes"] > 0 and str(little / "images_evaluation.zip") in state["path"]
    cache = tmp_path / "cache" / "adjoint-meta"
    stored = [cache / f"images_{part}.zip" for part in ("background", "evaluation")]
    assert str(stored[0]) in run("add", "omniglot", little).stdout
    assert [path.read_bytes() for path in stored] == [(little / path.name).read_bytes() for path in stored]
    (facts,) = run_json("verify", "omniglot")["sets"]
    where = " and ".join(str(path) for path in stored)
    assert facts == {"name": "omniglot", "path": where, "hash_of": "archive", "classes": 3, "images": 6}
    rows = [line.split() for line in run("verify", "omniglot", "--data-dir", little).stdout.splitlines()]
    assert rows[1][:4] == ["omniglot", "3", "6", "archive"]


def test_fetch_of_images(little, monkeypatch, tmp_path):
    answer = run_json("fetch", "omniglot", "--data-dir", little)
    assert answer["fetched"] is False and str(little) in answer["path"]
    fetched = []
    monkeypatch.setattr(
        image_archives, "download", lambda url, hash, name, folder, *_: fetched.append(name) or folder / name
    )
    result = run("fetch", "omniglot")
    assert fetched == ["images_background.zip", "images_evaluation.zip"]
    assert "fetched into" in result.stdout and "MIT licence" in result.stderr


def test_what_cannot_be_fetched_or_added_says_why(little):
    with pytest.raises(MissingDataError, match=r"cannot be fetched; put there a folder mini-imagenet with train\|val"):
        run("fetch", "mini-imagenet")
    with pytest.raises(ValueError, match="mini-imagenet is not added: make a folder mini-imagenet with"):
        run("add", "mini-imagenet", little)
    for arguments in (("fetch", "glyphs"), ("add", "glyphs", little), ("verify", "glyphs")):
        with pytest.raises(ValueError, match="part of this package"):
            run(*arguments)
