"""Progress is a bar on a terminal, plain lines elsewhere, and counts skipped steps aloud."""

import json
import os
import re

import pytest
from train_settings import SINE

from adjoint_meta.experiments.run_directory import read_metrics

pytestmark = pytest.mark.usefixtures("float32")


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
