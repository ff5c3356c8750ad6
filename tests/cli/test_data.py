"""The `data` commands, on a set of three ratings; nothing is downloaded."""

import dataclasses
import hashlib
import json

import pytest
from click.testing import CliRunner

from adjoint_meta.cli.data import command
from adjoint_meta.experiments.data import catalogue, fetch
from adjoint_meta.experiments.data.errors import DataError, MissingDataError

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
    rows = {line.split()[0]: line for line in lines if line and line.split()[0] in catalogue.DATA_SETS}
    assert set(rows) == set(catalogue.DATA_SETS)
    assert str(mine / "u.data") in rows[NAME] and rows["jester"].endswith("not here")
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
    assert answer["missing"] == ["movielens-1m", "jester"]
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
    with pytest.raises(MissingDataError, match="none of movielens-100k, movielens-1m, jester is here"):
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
