"""A run's directory: what may be written where, what a resumed run may change, and its log."""

import json
from pathlib import Path

import pytest

from adjoint_meta.experiments.registry import resolve
from adjoint_meta.experiments.run_directory import (
    MetricsLog,
    RunDirectory,
    free_directory,
    read_metrics,
    write_atomically,
)


@pytest.fixture
def config():
    return resolve({"seed": 3, "task": {"shots": 4}, "method": {"horizon": 0.5}}, "sine")


@pytest.fixture
def directory(tmp_path, config):
    made = RunDirectory(tmp_path / "run")
    made.create(config)
    return made


# Where


def test_naming_a_directory_makes_nothing(tmp_path):
    RunDirectory(tmp_path / "a" / "run").check_free()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_or_none_is_free(tmp_path):
    (tmp_path / "empty").mkdir()
    RunDirectory(tmp_path / "empty").check_free()
    RunDirectory(tmp_path / "none" / "deep").check_free()


def test_a_directory_with_a_run_is_not_free(directory):
    with pytest.raises(ValueError, match=r"run already holds a run; continue it with --resume or choose another --out"):
        directory.check_free()


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file; choose another --out"):
        RunDirectory(tmp_path / "file").check_free()


@pytest.mark.parametrize("place", ["file/run", "file/deep/run"])
def test_a_place_that_cannot_be_written_is_refused_in_words(tmp_path, config, place):
    (tmp_path / "file").write_text("mine")
    made = RunDirectory(tmp_path / place)
    with pytest.raises(ValueError, match=r"cannot write to .*file.*; choose another --out"):
        made.check_free()
        made.create(config)
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_file_system_that_takes_no_files_is_refused_in_words(config):
    made = RunDirectory(Path("/proc/runs/run"))
    with pytest.raises(ValueError, match=r"cannot write to /proc.*; choose another --out"):
        made.check_free()
        made.create(config)


def test_the_first_free_name_is_taken(tmp_path):
    base = tmp_path / "runs" / "sine-maml"
    assert free_directory(base) == base
    base.mkdir(parents=True)
    assert free_directory(base).name == "sine-maml-2"
    (base.parent / "sine-maml-2").write_text("")
    assert free_directory(base).name == "sine-maml-3"


# The configuration


def test_the_configuration_is_read_back(directory, config):
    assert directory.read_config() == config
    assert sorted(path.name for path in directory.path.iterdir()) == ["config.yaml"]


def test_no_run_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"none is not a run directory: it has no config\.yaml"):
        RunDirectory(tmp_path / "none").read_config()


@pytest.mark.parametrize(
    ("content", "message"),
    [("seed: [", r"config\.yaml, line \d is not valid YAML"), ("- 1", r"config\.yaml must hold a mapping")],
)
def test_a_configuration_that_was_damaged_is_refused(directory, content, message):
    directory.config.write_text(content)
    with pytest.raises(ValueError, match=message):
        directory.read_config()


def test_a_resumed_run_may_change_how_long_it_goes_on(directory, config):
    changes = {"meta_steps": 9000, "checkpoint_every": 7, "max_skipped": 2, "test": {"adam_epochs": 0}}
    found = directory.continued(changes).model_dump()
    before = config.model_dump()
    assert {key for key in found if found[key] != before[key]} == set(changes)
    assert all(found[key] == value for key, value in changes.items())
    assert directory.continued({}) == config
    assert directory.read_config() == config  # asking changes nothing


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"method": {"horizon": 1.0}},
        {"task": {"shots": 5}},
        {"dtype": "float64"},
        {"tasks_per_step": 3},
        {"optimizer": {"lr": 1.0}},
        {"experiment": "alpine"},
    ],
)
def test_a_resumed_run_may_not_become_another(directory, change):
    (key,) = change
    with pytest.raises(ValueError, match=f"a resumed run cannot change '{key}"):
        directory.continued(change)


@pytest.mark.parametrize(
    "same",
    [
        {"seed": 3},
        {"method": {"horizon": 0.5}},
        {"task": {"shots": 4}, "meta_steps": 9000},
        {"experiment": "sine"},
        {"method": "adjoint"},
    ],
)
def test_saying_the_same_again_is_no_change(directory, config, same):
    """The same command with --resume continues; so does the run's own config.yaml."""
    expected = config.model_copy(update={"meta_steps": same.get("meta_steps", config.meta_steps)})
    assert directory.continued(same) == expected


def test_a_key_that_does_not_exist_is_unknown_and_not_forbidden(directory):
    with pytest.raises(ValueError, match=r"'meta_step'.*meta_steps"):
        directory.continued({"meta_step": 4})


# The log


def test_the_log_is_one_object_a_line(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    records = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None, "skipped": "ün"}]
    for record in records:
        log.append(record)
    size = log.flush()
    assert size == (tmp_path / "m.jsonl").stat().st_size
    log.close()
    assert read_metrics(tmp_path / "m.jsonl") == records
    assert [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()] == records


def test_a_resumed_log_is_cut_back_to_its_checkpoint(tmp_path):
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path)
    log.append({"step": 1})
    kept = log.flush()
    log.append({"step": 2})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 3, "lo')  # the kill came in the middle of a line
    log = MetricsLog(path, kept)
    log.append({"step": 2, "again": True})
    log.close()
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "again": True}]


def test_a_log_without_checkpoint_starts_anew(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n')
    MetricsLog(path).close()
    assert path.read_bytes() == b""


def test_a_log_shorter_than_its_checkpoint_is_refused_and_left(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="shorter than its checkpoint says"):
        MetricsLog(path, 100)
    assert path.read_text() == '{"step": 1}\n'
    with pytest.raises(ValueError, match="shorter than its checkpoint says"):
        MetricsLog(tmp_path / "none.jsonl", 1)


def test_text_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "t.txt"
    write_atomically(path, "old")
    real = Path.write_text

    def half(self, text, **options):
        real(self, text[: len(text) // 2], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new text")
    monkeypatch.undo()
    assert path.read_text() == "old"
    write_atomically(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
