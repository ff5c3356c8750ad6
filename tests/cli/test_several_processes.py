"""`torchrun -m adjoint_meta.cli train`: the run of one process, resumed by any number, and ended together."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import click
import pytest
import torch

from adjoint_meta import checkpoint, distributed
from adjoint_meta.cli import main as door
from adjoint_meta.cli.processes import several_processes
from adjoint_meta.distributed import World
from adjoint_meta.experiments import run
from adjoint_meta.experiments.prepare import choose_device, prepare
from adjoint_meta.experiments.registry import resolve
from adjoint_meta.experiments.run_directory import RunDirectory, read_metrics

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

SETTINGS = {
    "task.train_tasks": 12,
    "task.test_tasks": 5,
    "task.validation_tasks": 1,  # fewer than processes
    "task.shots": 5,
    "task.queries": 5,
    "task.test_queries": 6,
    "method.solver": "dopri5",
    "method.horizon": 0.1,
    "method.learn": "[horizon]",
    "model.width": 6,
    "tasks_per_step": 5,  # shares of 2 and 3
    "validation.every": 4,
    "test.adam_epochs": 4,
    "checkpoint_every": 2,
    "scheduler.name": "CosineAnnealingLR",
    "scheduler.options.T_max": 400,
    "clip_norm": 0.1,
    "dtype": "float64",
    "device": "cpu",
}

# Ends the second process, without a word, in its fourth meta-step.
KILLED = """
import os, signal, sys
from adjoint_meta.cli.main import main
from adjoint_meta.learner import MetaLearner

forward, calls = MetaLearner.forward, []

def killed(learner, tasks):
    calls.append(tasks)
    if os.environ["RANK"] == "1" and len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(learner, tasks)

MetaLearner.forward = killed
main()
"""


def arguments(out, **changes):
    settings = {**SETTINGS, **changes}
    return [
        "train",
        "sine",
        "--out",
        str(out),
        *(part for key in settings for part in ("--set", f"{key}={settings[key]}")),
    ]


@pytest.fixture(autouse=True)
def float32(float64):
    """As in a process of one's own."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def alone(monkeypatch, capsys):
    """Run a command in this process; returns what it printed on stdout."""

    def call(*line):
        monkeypatch.setattr(sys, "argv", ["adjoint-meta", *map(str, line)])
        door.main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def start(root):
    """Start a command under torchrun; whatever is left of it at the end is killed."""
    started = []

    def launch(*line, script=("-m", "adjoint_meta.cli")):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        process = subprocess.Popen(
            [*command, *script, *map(str, line)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def close(one, other):
    """Whether all numbers agree to 1e-9, and all else exactly."""
    if isinstance(one, torch.Tensor):
        return torch.allclose(one.double(), other.double(), rtol=1e-9, atol=1e-9)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return other == pytest.approx(one, rel=1e-9, abs=1e-9) if isinstance(one, float) else one == other


def assert_same_run(found, expected):
    """Checkpoint, metrics and summary of two run directories, but for costs and the generator that nobody uses."""
    states = [checkpoint.load(each.checkpoint)["trainer"] for each in (found, expected)]
    for state in states:
        for key in ("seconds", "n_grad", "n_hvp"):
            del state["progress"][key]
    for key in ("model", "best_model", "optimizer", "scheduler", "progress"):
        assert close(states[0][key], states[1][key]), key
    logs = [[{**record, "seconds": 0} for record in read_metrics(each.metrics)] for each in (found, expected)]
    assert close(*logs)
    summaries = [json.loads(each.summary.read_text()) for each in (found, expected)]
    for key in ("experiment", "method", "config", "meta_steps", "skipped_meta_steps", "hyperparameters", "validation",
                "test", "test_adam", "verdict"):  # fmt: skip
        assert close(*(summary[key] for summary in summaries)), key


def test_processes_train_as_one_does_and_any_number_goes_on(alone, start, tmp_path):
    one, two, again = (RunDirectory(tmp_path / name) for name in ("one", "two", "again"))
    process = start(*arguments(two.path, meta_steps=100_000))
    deadline = time.monotonic() + 180
    while not two.checkpoint.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode != 0
    step = checkpoint.load(two.checkpoint)["trainer"]["progress"]["step"]
    assert len(read_metrics(two.metrics)) == step
    for message in (
        "Stopping after this meta-step",
        f"Saved after meta-step {step}. Go on with: adjoint-meta train --resume --out {two.path}",
        "adjoint-meta: interrupted",
    ):
        assert stderr.count(message) == 1

    # Two, then one; one, then two; one.
    alone(*arguments(one.path, meta_steps=step))
    shutil.copytree(one.path, again.path)
    more = ("--set", f"meta_steps={step + 6}")
    process = start("train", "--resume", "--out", again.path, *more, "--json")
    for directory in (one, two):
        alone("train", "--resume", "--out", directory.path, *more)
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    assert_same_run(two, one)
    assert_same_run(again, one)
    (line,) = stdout.splitlines()
    assert json.loads(line) == json.loads(again.summary.read_text())
    assert json.loads(line)["processes"] == 2
    assert stderr.count("Testing …") == 1 and stderr.count(f"meta-step {step + 6}/{step + 6}") == 1
    assert {path.name for path in again.path.iterdir()} == {path.name for path in one.path.iterdir()}


def test_the_death_of_one_ends_the_run(start, tmp_path):
    directory = RunDirectory(tmp_path / "killed")
    (tmp_path / "killed.py").write_text(KILLED)
    process = start(*arguments(directory.path, meta_steps=100_000), script=(tmp_path / "killed.py",))
    _, stderr = process.communicate(timeout=180)
    assert process.returncode != 0
    assert stderr.count("adjoint-meta: process 0 of 2 lost contact with the others: one failed, was killed or") == 1
    assert checkpoint.load(directory.checkpoint)["trainer"]["progress"]["step"] == 2  # the last before


@pytest.mark.parametrize(("error", "code"), [(ValueError("bad"), 1), (click.Abort(), 130), (KeyboardInterrupt(), 130)])
@pytest.mark.parametrize("reports", [True, False])
def test_one_process_speaks_and_all_exit_with_a_code(monkeypatch, error, code, reports):
    world = World(1, 2)
    monkeypatch.setattr(distributed, "processes", lambda: contextlib.nullcontext(world))
    monkeypatch.setattr(world, "reports", lambda met: met is error and reports)

    @several_processes
    def command(world, word):
        assert world.size == 2 and word == "word"
        raise error

    with pytest.raises(type(error) if reports else SystemExit) as met:
        command(word="word")
    assert met.value is error if reports else met.value.code == code


def test_every_process_needs_a_task():
    config = resolve({"tasks_per_step": 2, "task": {"train_tasks": 3, "test_tasks": 2}}, "sine")
    run._trainer(prepare(config, world=World(1, 2)))
    with pytest.raises(
        ValueError, match="3 processes cannot share 2 tasks a meta-step: each needs one; set tasks_per_ste"
    ):
        run._trainer(prepare(config, world=World(0, 3)))


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("auto", World(5, 8, local_rank=1)) == torch.device("cuda", 1) and chosen == [1]
    assert choose_device("auto") == torch.device("cuda") and chosen == [1]
    assert choose_device("cpu", World(2, 4, local_rank=2)) == torch.device("cpu")
    with pytest.raises(ValueError, match="this machine has 2 CUDA devices, too few for process 2"):
        choose_device("auto", World(2, 4, local_rank=2))
