"""The failure modes: references against torch.func, closed forms and a hand-made case, and a study that resumes."""

import pytest
import torch

from adjoint_meta.experiments.studies import failure_modes
from adjoint_meta.experiments.studies.failure_cases import (
    AbsoluteValues,
    Network,
    Quadratic,
    dense_hessian,
    finite_differences,
    query_gradients,
    relative,
)
from adjoint_meta.experiments.studies.failure_modes import Budget
from adjoint_meta.experiments.studies.study import Setting
from adjoint_meta.experiments.studies.subject import by_method

TOY = Budget((0.01, 10.0), steps=20, long=40, lengths=(5, 20), size=6, tasks=3)


def loss(flat, subject, task, which):
    """½ MSE of the 1 → 8 → 1 network, written out."""
    batch = getattr(subject.tasks, which)
    w1, b1, w2, b2 = flat.split([8, 8, 8, 1])
    prediction = torch.tanh(batch.x[task] @ w1[None] + b1) @ w2[:, None] + b2
    return 0.5 * (prediction - batch.y[task]).square().mean()


def test_dense_hessians_and_query_gradients_are_those_of_torch_func(generator):
    subject = Network("tanh", 1.0, 5, 2).subject()
    phi = subject.theta + 0.1 * torch.randn(subject.theta.shape, generator=generator)
    hessian, cotangent = dense_hessian(subject.problem(), phi), query_gradients(subject, phi)
    for task in range(2):
        torch.testing.assert_close(hessian[task], torch.func.hessian(loss)(phi[task], subject, task, "support"))
        torch.testing.assert_close(cotangent[task], torch.func.grad(loss)(phi[task], subject, task, "query"))


def test_finite_differences_are_reverse_mode_through_the_steps():
    case = Network("tanh", 0.3, 6, 2)
    subject = case.subject()
    found = finite_differences(subject, case.implicit)
    for task in range(2):
        theta = subject.theta[task].clone().requires_grad_()
        phi = theta
        for _ in range(6):
            (slope,) = torch.autograd.grad(loss(phi, subject, task, "support"), phi, create_graph=True)
            phi = phi - 0.1 * (slope + 0.3 * (phi - theta))
        (exact,) = torch.autograd.grad(loss(phi, subject, task, "query"), theta)
        torch.testing.assert_close(found[task], exact, rtol=1e-6, atol=1e-8)


def test_a_strongly_convex_case_agrees_with_itself_and_an_indefinite_one_is_seen():
    tame, wild = Network("tanh", 10.0, 100, 3).measure(), Network("tanh", 0.01, 20, 3).measure()
    for record in tame:
        assert max(record["implicit"], record["unrolled"], record["implicit_dense"]) < 1e-6
        assert record["negative"] == 0 and record["smallest"] > 0
    for record in wild:
        assert record["unrolled"] < 1e-6 and record["implicit"] > 0.1
        assert record["smallest"] < 0 or not record["negative"]  # CG finds no negative curvature where there is none
    assert any(record["negative"] for record in wild)


@pytest.mark.parametrize("name", failure_modes.METHODS)
def test_quadratic_tasks_have_their_closed_form(name):
    case = Quadratic(5, 2)
    found = case.subject().measure(by_method(case.method(name, 200)), each=True).gradient
    theta, b, q = case.numbers()
    a = torch.diag(case.curvatures)
    damping = torch.linalg.matrix_power(torch.eye(5) - a, 200)
    if name == "iMAML":
        damping = 0.1 * torch.linalg.inv(a + 0.1 * torch.eye(5))
    exact = (b + (theta - b) @ damping - q) @ damping
    torch.testing.assert_close(case.exact(name, 200), exact)
    assert float(relative(found, exact).max()) < 1e-7


def test_at_a_kink_only_proximal_steps_are_right():
    for record in AbsoluteValues(20, 3, 400).measure():
        assert 0 < record["kinked"] < 1
        assert record["unrolled_proximal"] < 1e-6
        assert record["implicit"] > 0.1 and record["unrolled"] > 0.1


def test_a_toy_study_and_its_continuation(monkeypatch, tmp_path):
    monkeypatch.setitem(failure_modes.BUDGETS, "quick", TOY)
    report = failure_modes.run(Setting("quick", tmp_path))
    cases = [record["case"] for record in report.records]
    assert {case: cases.count(case) for case in cases} == {"curvature": 6, "length": 6, "kinks": 9}
    assert [part.title for part in report.parts if hasattr(part, "rows")] == [
        "Small λ and negative curvature",
        "Long inner solves",
        "Losses with kinks",
    ]
    assert any(
        line.startswith("Kinks, absolute values: implicit is within 0.001 in 0 of 3") for line in report.findings
    )

    for case in (Network, Quadratic, AbsoluteValues):
        monkeypatch.setattr(case, "measure", lambda *_: pytest.fail("it was computed already"))
    assert failure_modes.run(Setting("quick", tmp_path)).records == report.records
