"""`check-grad`: every method against exact reverse mode, and that it can fail."""

import json

import pytest
import torch

from adjoint_meta.experiments.config import METHODS
from adjoint_meta.meta_gradients.adjoint import Flow
from adjoint_meta.solvers import TABLEAUS

FEW = ("tasks_per_step=2", "model.width=4", "task.train_tasks=3", "task.test_tasks=2")


@pytest.fixture
def call(invoke):
    def run(*arguments, few=FEW):
        settings = [part for assignment in few for part in ("--set", assignment)]
        return invoke("check-grad", *arguments, *settings)

    return run


def test_all_methods_are_compared(call):
    code, out, err = call("sine", "--json")
    assert (code, err) == (0, "") and len(out.splitlines()) == 1
    found = json.loads(out)
    assert set(found) == set(METHODS)
    for name, result in found.items():
        assert result["exact"] is (name in ("adjoint", "maml", "anil"))
        assert set(result["errors"]) == {f"{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")}
        assert {"n_grad", "n_hvp"} <= set(result["stats"]) and result["note"]
        if result["exact"]:
            assert result["error"] < 1e-9 and max(result["errors"].values()) < 1e-9
            assert result["cosine"] == pytest.approx(1)
        else:
            assert result["error"] > 1e-6


@pytest.mark.parametrize("adapt", [None, 'adapt=["4.*"]', 'adapt=["0.*", "4.bias"]'])
@pytest.mark.parametrize("solver", TABLEAUS)
def test_the_adjoint_is_exact_for_every_solver(call, solver, adapt):
    settings = (*FEW, f"method.solver={solver}", "method.steps=3", "method.horizon=0.3", *([adapt] if adapt else []))
    code, out, _ = call("cosmixture", "--method", "adjoint", "--json", few=settings)
    assert code == 0 and json.loads(out)["adjoint"]["error"] < 1e-9


def test_a_table_for_people(call):
    code, out, err = call("alpine", "--method", "maml", few=(*FEW, "method.steps=3"))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "alpine" in lines[0] and "float64" in lines[0]
    (row,) = [line for line in lines if line.strip().startswith("maml")]
    assert float(row.split()[1]) < 1e-9 and "exact: the transpose of the steps taken" in row
    shown = {line.split()[0]: float(line.split()[1]) for line in lines if line[:1].isdigit()}
    assert set(shown) == {f"{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")}
    assert max(shown.values()) < 1e-9


def test_without_a_method_shared_parameters_are_checked_where_they_can_be(call):
    """Reptile has no gradient for them; the others are compared all the same."""
    code, out, err = call("sine", "--json", few=(*FEW, 'adapt=["4.*"]'))
    assert code == 0, err
    found = json.loads(out)
    assert {"adjoint", "maml", "imaml", "fomaml"} <= set(found)
    assert found["adjoint"]["error"] < 1e-9 and found["maml"]["error"] < 1e-9


def test_the_embedded_ratings_are_checked_too(call):
    code, out, _ = call("ratings-toy", "--method", "adjoint", "--json", few=("tasks_per_step=1", "method.steps=2"))
    assert code == 0 and json.loads(out)["adjoint"]["error"] < 1e-9


@pytest.mark.parametrize("as_json", [False, True])
def test_a_wrong_pullback_is_exit_code_1_and_named(call, monkeypatch, as_json):
    real = Flow.solve

    def wrong(self, problem, theta, hyper):
        solved = real(self, problem, theta, hyper)
        return solved._replace(
            pullback=lambda c: solved.pullback(c)._replace(theta=solved.pullback(c).theta * (1 + 1e-6))
        )

    monkeypatch.setattr(Flow, "solve", wrong)
    code, out, err = call("sine", *(["--json"] if as_json else []))
    assert code == 1
    (line,) = err.splitlines()
    assert "adjoint" in line and "maml" in line and "should be exact" in line
    assert "fomaml" not in line and "imaml" not in line.replace("adjoint, maml", "")
    if as_json:
        assert json.loads(out)["adjoint"]["error"] == pytest.approx(1e-6, rel=1e-3)
    else:
        assert "1.0e-06" in out


def test_a_gradient_of_nothing_but_nan_is_not_passed(call, monkeypatch):
    real = Flow.solve

    def wrong(self, problem, theta, hyper):
        solved = real(self, problem, theta, hyper)
        return solved._replace(
            pullback=lambda c: solved.pullback(c)._replace(psi=torch.full_like(problem.psi, torch.nan))
        )

    monkeypatch.setattr(Flow, "solve", wrong)
    code, _, err = call("sine", "--method", "maml", few=(*FEW, 'adapt=["4.*"]'))
    assert code == 1 and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("sine", "--dtype", "float32"), 2, "float64"),
        (("sien",), 2, "did you mean 'sine'"),
        (("sine", "--method", "mamml"), 2, "did you mean 'maml'"),
        (("sine", "--set", "method.steps=0"), 2, "steps must be at least 1"),
        (("sine", "--set", "method.stesp=1"), 2, "did you mean"),
        (("sine", "--device", "gpu"), 2, "device should be"),
        (("sine", "--method", "adjoint", "--set", "method.horizon=1e6"), 1, "Take more inner steps|take more"),
    ],
)
def test_what_cannot_be_checked_is_one_line(call, arguments, code, message):
    found, out, err = call(*arguments)
    assert (found, out) == (code, "")
    (line,) = err.splitlines()
    assert line.startswith("adjoint-meta: ") and any(part in line for part in message.split("|"))


def test_data_that_are_not_here_are_exit_code_1(call, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ADJOINT_META_DATA", raising=False)
    code, out, err = call("movielens-100k", few=())
    assert (code, out) == (1, "") and "adjoint-meta data fetch movielens-100k" in err and len(err.splitlines()) == 1
