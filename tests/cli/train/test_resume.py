"""A run that is killed or interrupted goes on bit for bit, and becomes no other run."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from train_settings import SINE, TINY

from adjoint_meta import checkpoint
from adjoint_meta.experiments.run_directory import RunDirectory, read_metrics

STATEFUL = (
    *SINE,
    "task.validation_tasks=3",
    "validation.every=7",
    "clip_norm=0.1",
    "scheduler.name=CosineAnnealingLR",
    "scheduler.options.T_max=400",
    "optimizer.name=AdamW",
    "optimizer.options.weight_decay=0.01",
)

pytestmark = pytest.mark.usefixtures("float32")


def wait_for_step(process, directory, step):
    """Wait until the checkpoint has reached a meta-step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        if (
            directory.checkpoint.exists()
            and checkpoint.load(directory.checkpoint)["trainer"]["progress"]["step"] >= step
        ):
            return
        time.sleep(0.01)
    raise AssertionError("no checkpoint came")


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "seconds")
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def comparable(directory):
    """Checkpoint, metrics and summary, without what a clock, a memory meter or a place decides."""
    summary = json.loads(directory.summary.read_text())
    for key in ("seconds", "seconds_per_meta_step", "peak_memory_bytes", "run_dir"):
        del summary[key]
    metrics = [{k: v for k, v in record.items() if k != "seconds"} for record in read_metrics(directory.metrics)]
    return checkpoint.load(directory.checkpoint)["trainer"], metrics, summary


def assert_same_run(one, other, but=()):
    (state, metrics, summary), (state_2, metrics_2, summary_2) = comparable(one), comparable(other)
    for key in (state.keys() | state_2.keys()) - set(but):
        assert same(state[key], state_2[key]), key
    assert metrics == metrics_2 and summary == summary_2


def test_a_run_killed_continues_bit_for_bit(start, call, tmp_path):
    settings = ("meta_steps=150", "checkpoint_every=5", "method.steps=2", *STATEFUL)
    killed, whole = RunDirectory(tmp_path / "killed"), RunDirectory(tmp_path / "whole")

    process = start("sine", "--method", "maml", "--out", killed.path, settings=settings)
    wait_for_step(process, killed, 10)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    reached = checkpoint.load(killed.checkpoint)["trainer"]["progress"]["step"]
    assert 10 <= reached < 150 and reached % 5 == 0 and not killed.summary.exists()

    process = start("--resume", "--out", killed.path, "--json")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert json.loads(stdout) == json.loads(killed.summary.read_text())
    assert f"meta-step {reached + 1}/150" in stderr

    assert call("sine", "--method", "maml", "--out", whole.path, settings=settings)[0] == 0
    assert_same_run(killed, whole)
    assert [record["step"] for record in read_metrics(killed.metrics)] == list(range(1, 151))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_run_is_saved_and_says_how_to_go_on(start, call, tmp_path, number):
    directory = RunDirectory(tmp_path / "a run")
    settings = ("meta_steps=100000", "checkpoint_every=5", "method.steps=2", *STATEFUL)
    process = start("sine", "--method", "fomaml", "--out", directory.path, "--json", settings=settings)
    wait_for_step(process, directory, 5)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr and "Stopping after this meta-step" in stderr

    (step,) = re.findall(r"Saved after meta-step (\d+)\.", stderr)
    step = int(step)
    assert checkpoint.load(directory.checkpoint)["trainer"]["progress"]["step"] == step
    assert [record["step"] for record in read_metrics(directory.metrics)] == list(range(1, step + 1))
    assert not directory.summary.exists()

    # the very command it names, with an end in sight
    (line,) = re.findall(r"Go on with: adjoint-meta train (.*)", stderr)
    code, stdout, err = call(*shlex.split(line), "--json", settings=(f"meta_steps={step + 4}",))
    assert code == 0, err
    assert json.loads(stdout)["meta_steps"] == step + 4
    whole = RunDirectory(tmp_path / "whole")
    changed = (f"meta_steps={step + 4}", *settings[1:])
    assert call("sine", "--method", "fomaml", "--out", whole.path, settings=changed)[0] == 0
    assert_same_run(directory, whole)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, root):
    """A finished run, and the arguments that made it."""
    path = tmp_path_factory.mktemp("runs") / "sine"
    settings = ("meta_steps=3", "method.steps=2", *SINE)
    arguments = ["sine", "--seed", "3", "--out", str(path)]
    arguments += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "adjoint_meta.cli", "train", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return path, arguments


def test_the_same_command_with_resume_goes_on(call, finished):
    """As the help says: "the same command with --resume continues"."""
    path, arguments = finished
    before = (path / "checkpoint.pt").stat().st_size
    code, stdout, stderr = call(*arguments, "--resume", "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["meta_steps"] == 3 and (path / "checkpoint.pt").stat().st_size == before


def test_its_own_configuration_with_resume_goes_on(call, finished):
    path, _ = finished
    code, _, stderr = call("--config", path / "config.yaml", "--out", path, "--resume")
    assert code == 0, stderr


def test_a_run_resumed_with_more_meta_steps_takes_them(call, finished, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(finished[0], path)
    code, stdout, stderr = call("--resume", "--out", path, "--json", settings=("meta_steps=5",))
    assert code == 0 and "meta-step 4/5" in stderr
    assert json.loads(stdout)["meta_steps"] == 5
    assert [record["step"] for record in read_metrics(path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert yaml.safe_load((path / "config.yaml").read_text())["meta_steps"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resume", "--set", "method.horizon=9"), "a resumed run cannot change 'method"),
        (("--resume", "--seed", "4"), "a resumed run cannot change 'seed'"),
        (("--resume", "--dtype", "float64"), "a resumed run cannot change 'dtype'"),
        (("--resume", "--set", "task.shots=6"), "a resumed run cannot change 'task"),
        (("alpine", "--resume"), "holds a run of experiment 'sine', not 'alpine'"),
        (("--resume", "--method", "maml"), "holds a run of method 'adjoint', not 'maml'"),
        (("--resume", "--set", "meta_steps=0"), "meta_steps should be greater"),
        (("--resume", "--set", "meta_stesp=9"), "meta_steps"),
        (("sine",), "already holds a run; continue it with --resume or choose another --out"),
    ],
)
def test_a_run_does_not_become_another(call, finished, arguments, message):
    path, _ = finished
    before = {each.name: each.read_bytes() for each in path.iterdir() if each.is_file()}
    code, stdout, stderr = call(*arguments, "--out", path)
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("adjoint-meta: ") and message in line
    assert {each.name: each.read_bytes() for each in path.iterdir() if each.is_file()} == before


def test_resume_needs_a_directory(call):
    code, stdout, stderr = call("sine", "--resume")
    assert (code, stdout) == (2, "") and "--resume needs the run directory: --out DIR" in stderr


def test_resuming_where_no_run_lies_is_not_done_in_silence(call, tmp_path):
    """A typing error in --out must not start the default experiment; a note, for scripts that always say --resume."""
    code, _, stderr = call(
        "--resume", "--out", tmp_path / "tpyo", settings=("meta_steps=1", "method.steps=1", "method.horizon=0.1", *TINY)
    )
    if code == 0:
        assert "no run" in stderr or "starting" in stderr.lower()
    else:
        assert code == 2 and "tpyo" in stderr and not (tmp_path / "tpyo").exists()
