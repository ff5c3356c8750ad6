"""`adjoint-meta compare` through its real entry point: results, files, skipping, continuing, refusals."""

import csv
import json
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats

TINY = ("test.adam_epochs=20", "task.train_tasks=8", "task.test_tasks=9")
KEYS = [part for key in TINY for part in ("--set", key)]


def compare(*arguments, wait=True):
    command = [sys.executable, "-W", "error", "-m", "adjoint_meta.cli", "compare", *map(str, arguments)]
    if not wait:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("compare") / "sine"


METHODS = "fomaml:steps=2,maml:steps=2"


def usual(out):
    return ["sine", "--methods", METHODS, "--seeds", 2, "--set", "meta_steps=3", *KEYS, "--out", out, "--json"]


@pytest.fixture(scope="module")
def results(out):
    done = compare(*usual(out), "--jobs", 2)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_run_is_there_and_the_means_are_theirs(out, results):
    for label in ("fomaml-steps-2", "maml-steps-2"):
        runs = [out / "runs" / label / f"seed-{seed}" for seed in (0, 1)]
        records = [r for r in results["records"] if r["method"] == label.replace("-steps-", ":steps=")]
        for path, record in zip(runs, [r for r in records if r["when"] == "after"], strict=True):
            summary = json.loads((path / "summary.json").read_text())
            values = json.loads((path / "outcomes.json").read_text())["after"]
            assert record["nRMSE"] == pytest.approx(summary["test"]["after"]) == pytest.approx(np.mean(values))
            assert len(values) == 9 and summary["config"]["method"]["steps"] == int(label[-1])


def test_warnings_of_other_processes_are_lines_of_this_one(tmp_path):
    method = "adjoint:solver=euler:steps=1:horizon=2"
    keys = ["--set", "meta_steps=3", *KEYS, "--out", tmp_path / "out", "--jobs", 2]
    command = [sys.executable, "-m", "adjoint_meta.cli", "compare", "sine", "--methods", f"{method},maml:steps=2"]
    done = subprocess.run([*map(str, [*command, "--seeds", 1, *keys])], capture_output=True, text=True, timeout=300)
    warned = [line for line in done.stderr.splitlines() if "stability interval" in line]
    assert done.returncode == 0 and len(warned) == 2, done.stderr
    assert warned[0].startswith("warning: the inner steps") and warned[1].startswith(
        "warning: 2 more times, at last: the"
    )
    assert "crew.py" not in done.stderr


def test_methods_share_tasks_and_initialisation(out, results):
    del results
    for seed in (0, 1):
        logs = [
            json.loads((out / "runs" / name / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()[0])
            for name in ("fomaml-steps-2", "maml-steps-2")
        ]
        # Before the first update the same steps from the same weights on the same tasks have the same query loss ...
        assert logs[0]["loss"] == logs[1]["loss"]
        # ... and no longer the same gradient.
        assert logs[0]["grad_norm"] != logs[1]["grad_norm"]


def test_the_table_tests_pairs(out, results):
    outcomes = [
        [json.loads((out / "runs" / name / f"seed-{seed}" / "outcomes.json").read_text())["after"] for seed in (0, 1)]
        for name in ("fomaml-steps-2", "maml-steps-2")
    ]
    p = stats.wilcoxon(np.ravel(outcomes[0]) - np.ravel(outcomes[1])).pvalue
    assert f"{p:.2g}" in (out / "table.md").read_text()
    assert results["findings"]


def test_the_files_can_be_read(out, results):
    del results
    with (out / "table.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 2 * 2 * 2
    page = (out / "report.html").read_text()
    HTMLParser().feed(page)
    assert 'name="viewport"' in page and "data:image/png;base64," in page
    assert 'src="http' not in page and (out / "adaptation.svg").stat().st_size > 1000


def test_what_is_finished_is_skipped(out, results):
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.json")}
    done = compare(*usual(out))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == results["records"]
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.json")} == before


def test_an_interrupted_comparison_goes_on(tmp_path):
    arguments = ["sine", "--methods", "fomaml:steps=2", "--set", "meta_steps=400", *KEYS, "--out", tmp_path / "c"]
    started = compare(*arguments, wait=False)
    log = tmp_path / "c" / "runs" / "fomaml-steps-2" / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline and started.poll() is None:
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=120)
    assert started.returncode == 130 and "Go on with: adjoint-meta compare sine" in errors
    done = compare(*arguments)
    assert done.returncode == 0, done.stderr
    assert len(log.read_text().splitlines()) == 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sine", "--methods", "mamll"], "maml"),
        (["sinus", "--methods", "maml"], "sine"),
        (["sine", "--methods", "maml:steps"], "maml:steps=50"),
        (["sine", "--methods", "maml,maml"], "twice"),
        (["sine", "--methods", "maml:step=5"], "steps"),
        (["sine", "--methods", "maml", "--seeds", "0"], "seeds"),
        (["sine", "--methods", "maml", "--set", "method.steps=5"], "maml:steps=50"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(tmp_path, arguments, message):
    done = compare(*arguments, "--out", tmp_path / "no")
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "no").exists()


def test_a_directory_of_something_else_is_left_alone(out, results, tmp_path):
    del results
    other = compare("sine", "--methods", "maml", "--out", out)
    assert other.returncode == 2 and "holds other results" in other.stderr
    (tmp_path / "mine.txt").write_text("mine")
    foreign = compare("sine", "--methods", "maml", "--out", tmp_path)
    assert foreign.returncode == 2 and "not empty" in foreign.stderr
