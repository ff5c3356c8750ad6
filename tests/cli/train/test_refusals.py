"""Nonsense is one line, with an exit code, and leaves nothing half-written."""

from pathlib import Path

import pytest
from train_settings import SINE

pytestmark = pytest.mark.usefixtures("float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sien",), "unknown experiment 'sien'; did you mean 'sine'"),
        (("sine", "--method", "mamml"), "unknown method 'mamml'; did you mean 'maml'"),
        (("sine", "--set", "meta_stesp=3"), "unknown key 'meta_stesp'; did you mean 'meta_steps'"),
        (("sine", "--set", "method.solver=rk5"), "unknown solver 'rk5'; did you mean 'rkc' or 'rk4'"),
        (("sine", "--set", "meta_steps=0"), "meta_steps should be greater than or equal to 1, got 0"),
        (("sine", "--set", "method.horizon=-1"), "horizon must be positive and finite, got -1"),
        (("sine", "--set", "seed"), "--set expects key=value such as method.horizon=1.0, got 'seed'"),
        (("sine", "--set", "optimizer.name=Adamm"), "'Adamm'; did you mean 'Adam'"),
        (("sine", "--set", "scheduler.name=StepLRR"), "'StepLRR'; did you mean 'StepLR'"),
        (("sine", "--set", "validation.every=2"), "task.validation_tasks"),
        (("sine", "--device", "gpu"), "device should be 'auto', 'cpu' or 'cuda', got 'gpu'"),
        (("sine", "--seed", "-1"), "seed should be greater than or equal to 0"),
        (("ratings-toy", "--set", "task.shots=99"), "99"),
        (("--config", "FOLDER/none.yaml"), "none.yaml"),
        (("--config", "FOLDER/broken.yaml"), "broken.yaml, line 2 is not valid YAML"),
        (("--config", "FOLDER/list.yaml"), "list.yaml must hold a mapping"),
        (("jester", "--data-dir", "FOLDER/none"), "which is not a directory"),
    ],
)
def test_nonsense_is_one_line_and_leaves_nothing(call, tmp_path, arguments, message):
    (tmp_path / "broken.yaml").write_text("meta_steps: 3\n\tseed: 1\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    out = tmp_path / "deep" / "run"
    code, stdout, stderr = call(*(each.replace("FOLDER", str(tmp_path)) for each in arguments), "--out", out)
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("adjoint-meta: ") and message in line
    assert not out.parent.exists()


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/adjoint-meta/run"])
def test_a_place_that_cannot_be_written_is_one_line(call, tmp_path, place):
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    (tmp_path / "file").write_text("mine")
    code, stdout, stderr = call("sine", "--out", tmp_path / place, settings=("meta_steps=1", *SINE))
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert "choose another --out" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("experiment", ["movielens-100k", "movielens-1m", "jester"])
def test_data_that_are_not_here_are_exit_code_1_with_the_way_to_get_them(call, tmp_path, monkeypatch, experiment):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ADJOINT_META_DATA", raising=False)
    code, stdout, stderr = call(experiment, "--out", tmp_path / "run")
    assert (code, stdout) == (1, "")
    (line,) = stderr.splitlines()
    assert f"adjoint-meta data fetch {experiment}" in line and ".zip" in line and "https://" in line
    assert str(tmp_path / "cache") in line and not (tmp_path / "run").exists()
