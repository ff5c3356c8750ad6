"""A comparison of runs made by hand: what diverged comes last, and its report can be written and drawn."""

import json
from pathlib import Path

import pytest

from adjoint_meta.experiments.comparison import Comparison
from adjoint_meta.experiments.comparison_report import report
from adjoint_meta.experiments.crew import Finished, Job
from adjoint_meta.experiments.registry import resolve
from adjoint_meta.experiments.report import write

SUMMARY = {
    "experiment": "sine",
    "seed": 0,
    "seconds": 2.0,
    "compile_seconds": 0.5,
    "meta_steps": 3,
    "n_grad_per_meta_step": 2.0,
    "n_hvp_per_meta_step": 1.0,
    "peak_memory_bytes": 2**20,
}


def finished(name, after, adam):
    outcomes = {"metric": "nRMSE", "larger_is_better": False, "units": {}, "before": [1.0, 1.1, 1.2], "after": after}
    return Finished(
        Job(name, resolve({}, "sine", "maml"), Path(name)), SUMMARY, {**outcomes, "baselines": {}, "adam": adam}
    )


@pytest.fixture(params=["own", "adam"])
def comparison(request):
    curves = {"0": [0.9, 0.8, 0.9], "10": [0.5, None, 0.6]} if request.param == "adam" else {}
    good = {epoch: [0.5, 0.6, 0.7] for epoch in curves}
    return Comparison.of([finished("wild", [0.1, None, 0.2], curves), finished("good", [0.3, 0.4, 0.5], good)])


def test_what_diverged_on_a_task_is_never_best(comparison):
    _, rows = comparison.table()
    assert [row[0] for row in rows] == ["good", "wild"] and rows[1][2] == "diverged"
    assert comparison.best == "good" and comparison.seconds("good") == 0.5
    assert [r["nRMSE"] for r in comparison.records() if r["when"] == "after"] == [float("inf"), pytest.approx(0.4)]


def test_its_report_is_written(comparison, tmp_path):
    write(report("sine", comparison, [0], {}), tmp_path, "adjoint-meta compare")
    records = json.loads((tmp_path / "results.json").read_text())["records"]
    assert [r["nRMSE"] for r in records if r["method"] == "wild"] == [pytest.approx(1.1), None]
    assert (tmp_path / "adaptation.png").stat().st_size > 1000
