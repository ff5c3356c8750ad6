import json
from functools import partial

import pytest

from adjoint_meta.experiments.registry import resolve
from adjoint_meta.experiments.run import train
from adjoint_meta.experiments.run_directory import RunDirectory


@pytest.fixture
def call(invoke):
    return partial(invoke, "evaluate")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two meta-steps on ratings, and its summary."""
    config = {"meta_steps": 2, "task": {"test_users": 6}, "model": {"width": 5}, "test": {"adam_epochs": 0}}
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "toy")
    return directory.path, train(resolve(config, "ratings-toy", "maml"), directory)


def test_json_repeats_the_test_of_the_summary(call, finished):
    path, summary = finished
    code, out, err = call(path, "--json")
    assert (code, err) == (0, "") and len(out.splitlines()) == 1
    found = json.loads(out)
    assert found["test"] == summary["test"] and found["verdict"] == summary["verdict"]
    assert found["run_dir"] == str(path) and found["meta_steps"] == 2 and found["method"] == "maml"
    assert set(found["test"]["baselines"]) == {"item_mean", "user_item_bias"}
    assert found["peak_memory_bytes"] >= summary["peak_memory_bytes"] > 2**20  # of one process, whose peak only grows


def test_fewer_tasks(call, finished):
    code, out, _ = call(finished[0], "--tasks", 3, "--json")
    assert code == 0 and json.loads(out)["test"]["tasks"] == 3


def test_other_options_of_the_method(call, finished):
    """With no inner steps to speak of nothing changes; with the run's own, the test is that of its summary."""
    path, summary = finished
    code, out, _ = call(path, "--set", "method.inner_lr=1e-30", "--json")
    test = json.loads(out)["test"]
    assert code == 0 and test["after"] == pytest.approx(test["before"]) == pytest.approx(summary["test"]["before"])
    steps = summary["config"]["method"]["steps"]
    _, same, _ = call(path, "--set", f"method.steps={steps}", "--json")
    assert json.loads(same)["test"] == summary["test"]
    for key in ("meta_steps=3", "method.name=anil", "method=anil", "method=5"):
        code, _, errors = call(path, "--set", key)
        assert code == 2 and "options of the run's method alone, such as method.steps=20" in errors
    _, table, _ = call(path, "--set", "method.steps=7")
    assert "ratings-toy · maml, steps 7 · 6 test tasks" in table
    code, _, errors = call(path, "--set", "method.step=3")
    assert code == 2 and "unknown key 'method.step'; did you mean 'steps'" in errors


def test_a_table_with_units_baselines_and_verdict(call, finished):
    path, summary = finished
    code, out, err = call(path)
    assert (code, err) == (0, "")
    for text in (
        "ratings-toy · maml · 6 test tasks",
        f"{summary['test']['before']:.4f}",
        f"{summary['test']['after']:.4f}",
        f"{summary['test']['stars']['after']:.4f}",
        f"{summary['test']['baselines']['item_mean']:.4f}",
        f"{summary['test']['baselines']['user_item_bias']:.4f}",
        summary["verdict"],
    ):
        assert text in out


def test_it_writes_nothing(call, finished):
    path, _ = finished
    before = {each.name: each.read_bytes() for each in path.iterdir() if each.is_file()}
    call(path)
    assert {each.name: each.read_bytes() for each in path.iterdir() if each.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("RUN", "--tasks", 0), "between 1 and 6"),
        (("RUN", "--tasks", 7), "between 1 and 6, the test tasks of this run, got 7"),
        (("RUN", "--tasks", -1), "between 1 and 6"),
        (("RUN/none",), "not a run directory: it has no config.yaml"),
        (("RUN/config.yaml",), "not a run directory"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_and_exit_code_2(call, finished, arguments, message):
    code, out, err = call(*(str(each).replace("RUN", str(finished[0])) for each in arguments))
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert message in line


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing", "configuration", "other"])
def test_a_damaged_run_is_one_line_and_exit_code_2(call, finished, tmp_path, damage):
    content = (finished[0] / "checkpoint.pt").read_bytes()
    config = (finished[0] / "config.yaml").read_text()
    if damage == "configuration":
        config = config.replace("meta_steps:", "meta_stesp:")
    if damage == "other":
        config = config.replace("width: 5", "width: 6")
    (tmp_path / "config.yaml").write_text(config)
    if damage != "missing":
        cut = {"truncated": content[:700], "garbage": b"\x80\x02garbage" * 30}.get(damage, content)
        (tmp_path / "checkpoint.pt").write_bytes(cut)
    code, out, err = call(tmp_path)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    expected = {"missing": "no checkpoint yet", "configuration": "meta_steps", "other": "another model"}
    assert expected.get(damage, "not a readable checkpoint") in line


def test_what_was_learned_is_part_of_the_run(call, tmp_path):
    config = {"meta_steps": 1, "task": {"test_users": 2}, "model": {"width": 5}, "test": {"adam_epochs": 0}}
    directory = RunDirectory(tmp_path / "learned")
    train(resolve({**config, "method": {"learn": ["horizon"]}}, "ratings-toy", "adjoint"), directory)
    code, _, errors = call(directory.path, "--set", "method.horizon=3")
    assert code == 2 and "horizon was learned, and is part of the run" in errors
