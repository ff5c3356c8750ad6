"""The precision study: its float64 side against reverse mode, its error against one computed by hand, and resuming."""

import pytest
import torch

from adjoint_meta import MAML, MetaLearner
from adjoint_meta.experiments.gradient_check import reverse_mode
from adjoint_meta.experiments.models import HalfMSELoss, mlp
from adjoint_meta.experiments.studies import precision
from adjoint_meta.experiments.studies.precision import Budget
from adjoint_meta.experiments.studies.precision_report import BACKSOLVE
from adjoint_meta.experiments.studies.study import Setting
from adjoint_meta.experiments.studies.subject import by_method

TOY = Budget((1, 8), (0.01, 0.3), tasks=2, points=4, solver_step=0.2, most=5, backsolve=8)


def test_both_sides_start_from_the_same_numbers_and_the_double_one_is_exact():
    double, single = precision.subjects(TOY)
    assert (double.theta.dtype, single.theta.dtype) == (torch.float64, torch.float32)
    assert torch.equal(double.theta, single.theta.double())
    assert torch.equal(double.tasks.query.y, single.tasks.query.y.double())

    model = mlp(2, 32, 2, 1, seed=0).to(torch.float32).to(torch.float64)
    learner = MetaLearner(model, HalfMSELoss(), MAML(steps=8, inner_lr=0.3), backend="eager")
    exact = torch.cat([g.flatten() for g in reverse_mode(learner, double.tasks).values()])
    found = double.measure(by_method(learner.method)).gradient
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-13)

    rounded = single.measure(by_method(learner.method), each=True)
    whole = double.measure(by_method(learner.method), each=True)
    gradient, _ = precision.errors(whole, rounded)
    assert gradient[1] == pytest.approx(
        float(torch.dist(rounded.gradient[1].double(), whole.gradient[1]) / torch.linalg.norm(whole.gradient[1]))
    )
    assert 1e-8 < gradient[1] < 1e-5


def test_a_toy_study_and_its_continuation(monkeypatch, tmp_path):
    monkeypatch.setitem(precision.BUDGETS, "quick", TOY)
    report = precision.run(Setting("quick", tmp_path))
    found = {(r["method"], r["inner_lr"], r["steps"]) for r in report.records}
    assert {(name, rate, n) for name in ("MAML", "iMAML") for rate in (0.01, 0.3) for n in (1, 8)} <= found
    assert ("A-MAML", 0.01, 8) in found and ("A-MAML", 0.3, 8) not in found  # 12 steps of rk4 are more than 5
    assert any(r["method"] == BACKSOLVE and r["failed"] is None for r in report.records)
    assert all(r["error"] < 1e-3 for r in report.records if r["method"] == "MAML" and r["stability"] < 1)
    assert any(line.startswith("At α = 0.01") for line in report.findings)

    monkeypatch.setattr(precision, "compare", lambda *_: pytest.fail("it was computed already"))
    assert precision.run(Setting("quick", tmp_path)).records == report.records
