"""`adjoint-meta reproduce` and Ctrl-C, in a process group of its own as on a terminal: it stops soon, and goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

# The door, with a quick budget that is shorter still.
DOOR = """
import sys
from adjoint_meta.cli.main import main
from adjoint_meta.experiments.studies import ratings_tables
if __name__ == "__main__":  # and not in the processes that it starts
    ratings_tables.BUDGETS["quick"] = ratings_tables.Budget(8, (("ratings-toy", 10),), 5)
    sys.argv = ["adjoint-meta", "reproduce", *sys.argv[1:]]
    main()
"""


@pytest.fixture
def reproduce(tmp_path, root):
    """Return what starts the command in a process group of its own."""
    (tmp_path / "door.py").write_text(DOOR)

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-W", "error", tmp_path / "door.py", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )

    return start


# Processes that work side by side are importing when the study begins, and train when there are metrics.
@pytest.mark.parametrize("sign", ["study.json", "metrics.jsonl"])
def test_a_study_goes_on_after_ctrl_c(reproduce, tmp_path, sign):
    out = tmp_path / "table"
    started = reproduce("cf-table1", "--device", "cpu", "--jobs", 2, "--out", out)
    deadline = time.monotonic() + 120
    while not list(out.rglob(sign)) and time.monotonic() < deadline and started.poll() is None:
        time.sleep(0.02)
    time.sleep(1 if sign == "study.json" else 0)
    os.killpg(started.pid, signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 130 and "Traceback" not in errors, errors
    again = f"adjoint-meta reproduce cf-table1 --budget quick --device cpu --out {out} --jobs 2"
    assert f"Go on with: {again}\n" in errors
    if sign == "study.json":
        return
    assert len(list(out.rglob("summary.json"))) < 6 and not (out / "results.json").exists()

    finished = reproduce("cf-table1", "--device", "cpu", "--jobs", 1, "--out", out)
    _, errors = finished.communicate(timeout=200)
    assert finished.returncode == 0, errors
    assert [len(log.read_text().splitlines()) for log in out.rglob("metrics.jsonl")] == [8] * 6
    results = json.loads((out / "results.json").read_text())
    assert len({r["method"] for r in results["records"]}) == 6
