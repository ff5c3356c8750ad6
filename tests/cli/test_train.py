"""`train` as people use it: every method everywhere, killed and resumed, interrupted, and asked for nonsense."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from adjoint_meta import checkpoint
from adjoint_meta.experiments import run as runs
from adjoint_meta.experiments.config import METHODS
from adjoint_meta.experiments.run_directory import RunDirectory, read_metrics

# A short inner solve, few tasks and a small network: a meta-step of some milliseconds.
REGRESSION = ("task.train_tasks=6", "task.test_tasks=3", "task.shots=5", "task.queries=5", "task.test_queries=6")
TINY = ("model.width=4", "tasks_per_step=2", "test.adam_epochs=0")
SINE = (*TINY, *REGRESSION)
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


@pytest.fixture
def call(invoke):
    def run(*arguments, settings=()):
        assigned = [part for setting in settings for part in ("--set", setting)]
        return invoke("train", *arguments, *assigned)

    return run


@pytest.fixture
def start(root):
    """Start `adjoint-meta train` as a process; whatever is left of it at the end is killed."""
    started = []

    def launch(*arguments, settings=(), **options):
        assigned = [part for setting in settings for part in ("--set", setting)]
        process = subprocess.Popen(
            [sys.executable, "-m", "adjoint_meta.cli", "train", *map(str, arguments), *assigned],
            **{
                "cwd": root,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                "env": {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "TERM": "xterm"},
                **options,
            },
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()


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


# Every method on every experiment


@pytest.mark.filterwarnings("ignore:conjugate gradients stopped early")  # three steps do not reach the minimiser
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("experiment", ["sine", "cosmixture", "alpine", "ratings-toy"])
def test_every_method_trains_on_every_embedded_experiment(call, tmp_path, experiment, method):
    tasks = ("task.test_users=5",) if experiment == "ratings-toy" else REGRESSION
    inner = ("method.steps=3",)
    out = tmp_path / "run"
    code, stdout, stderr = call(
        experiment, "--method", method, "--out", out, "--json", settings=("meta_steps=3", *TINY, *tasks, *inner)
    )
    assert code == 0, stderr
    found = json.loads(stdout)
    assert len(stdout.splitlines()) == 1 and found == json.loads((out / "summary.json").read_text())
    contract = (
        "experiment method config seed device dtype meta_steps seconds seconds_per_meta_step peak_memory_bytes "
        "n_grad_per_meta_step n_hvp_per_meta_step test run_dir"
    )
    assert set(contract.split()) <= set(found)
    assert {"metric", "before", "after", "std", "ci95", "tasks"} <= set(found["test"])
    assert (found["experiment"], found["method"], found["meta_steps"]) == (experiment, method, 3)
    assert found["run_dir"] == str(out) and found["config"]["method"]["steps"] == 3
    assert found["test"]["tasks"] == (5 if experiment == "ratings-toy" else 3)
    hvps = found["n_hvp_per_meta_step"]
    assert hvps == 0 if method in ("fomaml", "reptile") else hvps >= 3
    expected = {"config.yaml", "metrics.jsonl", "checkpoint.pt", "summary.json", "outcomes.json", "curves.png"}
    expected |= set() if experiment == "ratings-toy" else {"adaptation.png"}
    assert {path.name for path in out.iterdir()} - {"events"} == expected
    losses = [record["loss"] for record in read_metrics(out / "metrics.jsonl")]
    assert len(losses) == 3 and all(loss > 0 for loss in losses)


@pytest.mark.filterwarnings("ignore:conjugate gradients stopped early")
@pytest.mark.skipif(not os.environ.get("ADJOINT_META_DATA"), reason="ADJOINT_META_DATA is not set: no real data here")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_movielens(call, tmp_path, method):
    out = tmp_path / "run"
    code, stdout, stderr = call(
        "movielens-100k", "--method", method, "--out", out, "--json", settings=("meta_steps=3",)
    )
    assert code == 0, stderr
    found = json.loads(stdout)
    test = found["test"]
    assert test["metric"] == "nRMSE" and test["tasks"] == 100
    # an RMSE in stars is four times one of the range; predicting the mean of all is off by about 1.1 stars
    assert test["stars"]["after"] == pytest.approx(4 * test["after"]) and 0.5 < test["stars"]["after"] < 1.5
    assert 0.5 < test["stars"]["before"] < 1.5 and test["before"] != test["after"]
    assert {"item_mean", "user_item_bias"} == set(test["baselines"])
    assert 0.15 < test["baselines"]["user_item_bias"] < test["baselines"]["item_mean"] < 0.3
    for name in ("item-mean", "user-item-bias"):
        assert f"The {name} baseline" in found["verdict"]
    assert found["facts"]["users"] == 575 and found["facts"]["items"] == 100


def test_people_get_a_table_a_verdict_and_where_to_look(call, tmp_path):
    out = tmp_path / "run"
    code, stdout, stderr = call("sine", "--out", out, settings=("meta_steps=2", "method.steps=2", *SINE))
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    for text in (
        "sine · adjoint · 3 test tasks",
        f"{summary['test']['before']:.4f}",
        f"{summary['test']['after']:.4f}",
        summary["verdict"],
        "2 meta-steps in",
        "gradients",
        "HVPs",
        "peak memory",
        f"See curves.png, adaptation.png, summary.json in {out}",
    ):
        assert text in stdout
    assert "meta-step 2/2" in stderr and "\x1b" not in stdout + stderr


def test_the_default_directory_is_below_runs_and_never_the_same(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ("meta_steps=1", "method.steps=1", *SINE)
    for name in ("sine-maml", "sine-maml-2", "sine-maml-3"):
        code, stdout, _ = call("sine", "--method", "maml", "--json", settings=settings)
        assert code == 0 and json.loads(stdout)["run_dir"] == f"runs/{name}"
        assert (tmp_path / "runs" / name / "summary.json").exists()


# What decides the configuration


@pytest.fixture
def resolved(call, monkeypatch):
    """What a command line resolves to, without a run: the configuration, or the line that refuses it."""
    seen = []

    def fit(config, directory, **options):
        seen.append(config)
        raise RuntimeError("seen")

    monkeypatch.setattr(runs, "fit", fit)

    def find(*arguments, settings=()):
        code, _, err = call(*arguments, settings=settings)
        return seen.pop() if code == 1 and "seen" in err else err

    return find


@pytest.fixture
def file(tmp_path):
    def write(**content):
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_flags_go_before_set_and_set_before_the_file(resolved, file):
    path = file(experiment="alpine", seed=1, dtype="float64", meta_steps=11, tasks_per_step=9)
    found = resolved("--config", path)
    assert (found.experiment, found.seed, found.dtype, found.meta_steps) == ("alpine", 1, "float64", 11)
    found = resolved("--config", path, settings=("seed=2", "meta_steps=12", "dtype=float32"))
    assert (found.seed, found.meta_steps, found.dtype, found.tasks_per_step) == (2, 12, "float32", 9)
    found = resolved(
        "sine", "--config", path, "--seed", 3, "--dtype", "float64", "--device", "cpu", settings=("seed=2",)
    )
    assert (found.experiment, found.seed, found.dtype, found.device) == ("sine", 3, "float64", "cpu")
    assert resolved().experiment == "cosmixture"  # the default


def test_options_of_the_method_in_the_file_do_not_carry_over_to_another(resolved, file):
    path = file(experiment="sine", method={"name": "maml", "steps": 7, "inner_lr": 0.5, "adjoint": "checkpointed"})
    assert resolved("--config", path).method["steps"] == 7
    plain = resolved("sine", "--method", "fomaml").method
    assert resolved("--config", path, "--method", "fomaml").method == plain
    assert resolved("--config", path, settings=("method=fomaml",)).method == plain
    assert resolved("--config", path, settings=("method.name=fomaml",)).method == plain


@pytest.mark.parametrize("stored", ["maml", {"name": "maml", "inner_lr": 0.5}])
def test_an_option_set_belongs_to_the_method_in_the_file(resolved, file, stored):
    found = resolved("--config", file(experiment="sine", method=stored), settings=("method.steps=3",))
    assert found.method["name"] == "maml" and found.method["steps"] == 3
    assert found.method["inner_lr"] == (0.01 if stored == "maml" else 0.5)


def test_an_option_set_belongs_to_the_method_given_by_name(resolved, file):
    path = file(experiment="sine", method={"name": "adjoint", "horizon": 0.5})
    found = resolved("--config", path, "--method", "maml", settings=("method.steps=3",))
    assert found.method["name"] == "maml" and found.method["steps"] == 3


# Progress


def test_without_a_terminal_progress_is_plain_lines_with_the_time_left(call, tmp_path, monkeypatch):
    from adjoint_meta.cli import progress

    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    settings = (
        "meta_steps=4",
        "method.steps=1",
        "method.horizon=0.1",
        "task.validation_tasks=2",
        "validation.every=2",
        *SINE,
    )
    _, stdout, stderr = call("sine", "--out", tmp_path / "run", "--json", settings=settings)
    *lines, last = stderr.splitlines()
    assert last == "Testing …"
    assert len(lines) == 4 and "\r" not in stderr and "\x1b" not in stderr
    for step, (line, record) in enumerate(zip(lines, read_metrics(tmp_path / "run" / "metrics.jsonl"), strict=True), 1):
        assert line.startswith(f"meta-step {step}/4  loss {record['loss']:.4f}  gradient {record['grad_norm']:.3g}")
        assert ("validation" in line) is (step % 2 == 0)
        assert bool(re.search(r"\d+ s left", line)) is (step > 1)
    json.loads(stdout)


def test_a_terminal_gets_a_bar_with_rate_and_time_left(start, tmp_path):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    settings = ("meta_steps=40", "method.steps=2", *SINE)
    process = start("sine", "--method", "fomaml", "--out", tmp_path / "run", "--json", settings=settings, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "meta-step" in text and "━" in text and "40/40" in text and "loss " in text
    assert re.search(r"\d+\.\d/s", text) and re.search(r"left +\d+:\d\d:\d\d", text)
    assert json.loads(stdout)["meta_steps"] == 40 and len(stdout.splitlines()) == 1


def test_skipped_steps_are_counted_aloud(call, tmp_path):
    settings = ("meta_steps=9", "method.horizon=4000", "method.steps=2", "max_skipped=3", *SINE)
    code, stdout, stderr = call("sine", "--out", tmp_path / "run", "--json", settings=settings)
    assert (code, stdout) == (1, "")
    *steps, last = stderr.splitlines()
    assert all("skipped: " in line for line in steps) and len(steps) >= 2
    assert last.startswith("adjoint-meta: 3 meta-steps in a row had no finite meta-gradient; the last reason: ")
    assert "shorter horizon" in last
    assert not (tmp_path / "run" / "summary.json").exists()


# Killed, interrupted, resumed


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


# Nothing half-written


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
