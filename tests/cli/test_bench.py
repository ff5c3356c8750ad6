"""`bench`: a tiny study through the real door, and what it leaves behind."""

import json
from dataclasses import replace
from functools import partial

import pytest

from adjoint_meta.experiments.studies import appendix, sweeps, work_precision

TINY = sweeps.Budget(
    horizons=(0.5,), meta_steps=1, tolerances=(1e-2,), implicit_steps=(1,), point=60, sweep=10, floor=1e-1, adjoint=60,
    reference=1e-4, mixed_tasks=2, mixed_horizon=0.1, mixed_solvers=("rkc",),
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def call(invoke):
    return partial(invoke, "bench")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(sweeps.BUDGETS, "quick", TINY)
    monkeypatch.setattr(work_precision, "TASKS", 2)
    monkeypatch.setattr(work_precision, "POINTS", 5)


def test_solvers_leave_numbers_tables_and_pictures(call, tiny, tmp_path):
    out = tmp_path / "study"
    code, stdout, stderr = call("solvers", "--out", out, "--json")
    assert code == 0, stderr
    assert len(stdout.splitlines()) == 1
    result = json.loads(stdout)
    assert result == json.loads((out / "solvers.json").read_text())
    assert (result["study"], result["budget"], result["tasks"], result["meta_steps"]) == ("solvers", "quick", 2, 1)
    assert {"points", "references", "summary", "trust", "shared_step", "skipped", "missing"} <= set(result)
    _check_points(result["points"])
    for reference in result["references"]:
        assert reference["radius"] > 0 and reference["self_consistency"]["gradient"] < 1e-2
    for case in result["summary"]:
        assert set(case["auto"]) == set(case["best"]) == {"0.01", "0.001"}
    text = (out / "solvers.md").read_text()
    assert "### random θ" in text and "### trained θ" in text and "| auto, asked for it |" in text
    for picture in ("work_precision.png", "work_precision_phi.png"):
        assert (out / picture).read_bytes()[:4] == b"\x89PNG"
    assert "meta-step 1/1" in stderr and "own and shared step sizes" in stderr

    code, stdout, stderr = call("solvers", "--out", out)
    assert code == 0 and "meta-step" not in stderr, "the trained θ was not kept"
    assert "random θ: gradients + HVPs a task" in stdout and f"in {out}" in stdout
    again = json.loads((out / "solvers.json").read_text())
    for name in ("gradient_error", "phi_error", "n_grad", "n_hvp"):
        assert [p[name] for p in again["points"]] == [p[name] for p in result["points"]]


def _check_points(points):
    names = {"start", "horizon", "curve", "adjoint", "steps", "rtol", "seconds", "stability", "trusted", "failed"}
    names |= {"phi_error", "phi_error_moved", "gradient_error", "n_grad", "n_hvp", "evaluations", "evaluations_a_task"}
    assert {point["start"] for point in points} == {"random", "trained"}
    for point in points:
        assert names <= set(point)
        assert (point["steps"] is None) != (point["rtol"] is None)
        if point["failed"] is None:
            assert point["evaluations"] == point["n_grad"] + point["n_hvp"] >= point["evaluations_a_task"] > 0
            assert point["gradient_error"] > 0 and point["phi_error_moved"] > point["phi_error"] > 0
    for solver, stages in (("euler", 1), ("rk4", 4), ("dopri5", 6)):
        found = [p for p in points if p["curve"] == solver and p["adjoint"] == "discrete"]
        assert found
        for point in found:
            assert point["n_grad"] == point["n_hvp"] == stages * point["steps"]


def test_another_run_in_the_directory_is_refused(call, tiny, monkeypatch, tmp_path):
    work_precision.train("quick", tmp_path)
    monkeypatch.setattr(work_precision, "POINTS", 6)
    code, stdout, stderr = call("solvers", "--out", tmp_path, "--json")
    assert (code, stdout) == (2, "")
    assert "another configuration" in stderr and "--out" in stderr


def test_tables_stand_beside_the_papers(call, monkeypatch, tmp_path):
    few = {"count": 2, "points": 4, "states4": (10,), "states5": (10,), "horizons5": (0.5,), "own_states": 20}
    monkeypatch.setattr(appendix, "EXTENT", replace(appendix.EXTENT, **few, reference=1e-6))
    code, stdout, stderr = call("tables", "--out", tmp_path, "--json")
    assert code == 0, stderr
    result = json.loads(stdout)
    assert result == json.loads((tmp_path / "tables.json").read_text())
    assert len(result["table4"]) == 4 and len(result["table5"]) == 1
    assert result["targets"]["table5_least_gain"]["own"] > 100
    assert "Table 5" in (tmp_path / "tables.md").read_text()
    code, stdout, _ = call("tables", "--out", tmp_path)
    assert code == 0 and "T = 0.5, 10" in stdout and "paper, autodiff" in stdout


@pytest.mark.parametrize("study", ["solvers", "tables"])
def test_a_directory_that_cannot_be_used_is_refused_at_once(call, tiny, tmp_path, study):
    (tmp_path / "file").write_text("")
    code, stdout, stderr = call(study, "--out", tmp_path / "file" / "below")
    assert (code, stdout) == (2, "") and "--out" in stderr and len(stderr.splitlines()) == 1


def test_an_unknown_budget_is_refused_with_its_neighbour(call, tmp_path):
    code, stdout, stderr = call("solvers", "--budget", "ful", "--out", tmp_path)
    assert (code, stdout) == (2, "") and "did you mean 'full'" in stderr
    assert not list(tmp_path.iterdir())
