"""From iMAML to the flow: the flow against the matrix exponential, the limits, and the study's frame."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from adjoint_meta.experiments.models import HalfMSELoss
from adjoint_meta.experiments.studies import imaml_accuracy, implicit_to_flow
from adjoint_meta.experiments.studies.imaml_accuracy import exact_gradient, linear_tasks
from adjoint_meta.experiments.studies.implicit_to_flow import BUDGETS, LINEAR
from adjoint_meta.experiments.studies.study import Setting
from adjoint_meta.experiments.studies.subject import Subject
from adjoint_meta.meta_gradients import AdjointMAML

TOY = replace(
    BUDGETS["quick"],
    tasks=2,
    horizons=(0.5,),
    implicit_euler=(1, 2),
    sdirk2=(1,),
    rtol=1e-6,
    meta_steps=2,
    trained=(1,),
    train_horizon=0.5,
    task=(("shots", 6), ("queries", 6), ("train_tasks", 6), ("test_tasks", 6), ("test_queries", 6)),
)


@pytest.fixture
def linear():
    sizes = imaml_accuracy.Budget(tasks=3, steps=())
    model = nn.Linear(sizes.dimension, 1, bias=False, dtype=torch.float64)
    return Subject(model, HalfMSELoss(), linear_tasks(sizes))


def linear_flow(subject, horizon):
    """φ(T) and the meta-gradients of linear regressions by the matrix exponential."""
    (a, b), (c, d) = (
        ((batch.x.mT @ batch.x) / batch.x.shape[1], (batch.x * batch.y).mean(dim=1))
        for batch in (subject.tasks.support, subject.tasks.query)
    )
    rest = torch.linalg.solve(a, b)
    propagator = torch.linalg.matrix_exp(-a * horizon)
    phi = rest + (propagator @ (subject.theta - rest)[:, :, None])[:, :, 0]
    return phi, (propagator @ ((c @ phi[:, :, None])[:, :, 0] - d)[:, :, None])[:, :, 0]


def test_the_reference_is_the_matrix_exponentials(linear):
    found = implicit_to_flow._flow(linear, 2.0, 1e-9)
    phi, gradient = linear_flow(linear, 2.0)
    assert torch.allclose(torch.tensor(found["phi"]), phi, rtol=1e-7)
    assert torch.allclose(torch.tensor(found["gradient"]), gradient, rtol=1e-6, atol=1e-9)


def test_one_step_is_imamls_exact_gradient_and_many_are_the_flows(linear):
    flow = implicit_to_flow._flow(linear, 2.0, 1e-9)
    start = {LINEAR: linear}
    one, four, eight = (implicit_to_flow._distance(start, LINEAR, 2.0, "implicit_euler", n, flow) for n in (1, 4, 8))
    assert max(one["imaml"]) < 1e-7
    exact = exact_gradient(linear.tasks, linear.theta, 0.5)
    _, gradient = linear_flow(linear, 2.0)
    expected = (exact - gradient).norm(dim=1) / gradient.norm(dim=1)
    assert one["gradient"] == pytest.approx(expected.tolist(), rel=1e-5)
    assert sum(four["gradient"]) / sum(eight["gradient"]) == pytest.approx(2, abs=0.25)


def test_query_losses_are_the_models(linear):
    x, y = linear.tasks.query.x, linear.tasks.query.y
    phi = torch.ones_like(linear.theta)
    assert torch.allclose(linear.query_losses(phi), 0.5 * (x.sum(dim=2) - y[:, :, 0]).square().mean(dim=1))


def test_the_study_reports_and_computes_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setitem(BUDGETS, "quick", TOY)
    setting = Setting("quick", tmp_path, device="cpu")
    first = implicit_to_flow.run(setting)
    distances = [record for record in first.records if "solver" in record]
    assert len(distances) == 3 * (2 + 1 + 1)
    assert {record["method"] for record in first.records if "method" in record} == {"n = 1", "the flow"}
    assert "one method" in first.findings[0]
    assert [type(part).__name__ for part in first.parts].count("Picture") == 3
    monkeypatch.setattr(AdjointMAML, "solve", None)
    assert implicit_to_flow.run(setting).records == first.records


def test_a_first_step_that_failed_is_not_another_one(monkeypatch, tmp_path):
    """Where n = 1 fails, no sentence calls n = 2 so, nor iMAML."""
    whole = implicit_to_flow._distance

    def fail(start, name, horizon, solver, n, target):
        return (
            {"failed": "no minimiser"} if n == 1 and name != LINEAR else whole(start, name, horizon, solver, n, target)
        )

    monkeypatch.setitem(BUDGETS, "quick", TOY)
    monkeypatch.setattr(implicit_to_flow, "_distance", fail)
    made = implicit_to_flow.run(Setting("quick", tmp_path, device="cpu"))
    assert sum("with n = 1 the meta-gradient" in line for line in made.findings) == 1
    assert sum("the test error is" in line for line in made.findings) == 1
    assert any("Failed: CosMixture, random θ" in part for part in made.parts if isinstance(part, str))
