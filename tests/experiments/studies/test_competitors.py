"""Other people's solvers, run on our flow, find the gradient that ours find; the released code's scheme is itself."""

import pytest
import torch
import torchdiffeq
from references import relative
from torch.func import functional_call

import adjoint_meta as am
from adjoint_meta.experiments.studies import competitors, sweeps
from adjoint_meta.experiments.studies.competitors import released_scheme, torchdiffeq_solve, torchode_solve
from adjoint_meta.experiments.studies.subject import by_method

HORIZON = 1.5


@pytest.fixture
def reference(subject):
    return subject.measure(by_method(am.AdjointMAML(horizon=HORIZON, solver="tsit5", rtol=1e-9)))


@pytest.mark.parametrize("adjoint", [False, True])
def test_torchdiffeq_agrees_with_ours(subject, reference, adjoint):
    found = subject.measure(torchdiffeq_solve(HORIZON, 1e-8, adjoint=adjoint))
    assert relative(found.phi, reference.phi) < 1e-7
    assert relative(found.gradient, reference.gradient) < 1e-6
    assert found.stability is None
    assert found.evaluations.n_grad > 0 and found.evaluations.n_hvp > 0


@pytest.mark.parametrize("method", ["Tsit5", "Dopri5"])
def test_torchode_agrees_with_ours(subject, reference, method):
    pytest.importorskip("torchode")
    found = subject.measure(torchode_solve(HORIZON, 1e-8, method))
    assert relative(found.phi, reference.phi) < 1e-7
    assert relative(found.gradient, reference.gradient) < 1e-6


def test_a_loose_tolerance_is_told_apart_from_a_tight_one(subject, reference):
    loose, tight = (subject.measure(torchdiffeq_solve(HORIZON, rtol)) for rtol in (1e-1, 1e-7))
    assert relative(loose.gradient, reference.gradient) > 100 * relative(tight.gradient, reference.gradient)
    assert loose.evaluations.n_grad < tight.evaluations.n_grad


def released(model, tasks, horizon, steps):
    """The published loop with dense Hessians: odeint's rk4 over n + 1 times, Euler's steps back over all of them."""
    parameters = dict(model.named_parameters())
    theta = torch.cat([p.detach().flatten() for p in parameters.values()])
    sizes = [p.numel() for p in parameters.values()]

    def loss(phi, batch, row):
        parts = phi.split(sizes)
        weights = {name: part.view_as(p) for part, (name, p) in zip(parts, parameters.items(), strict=True)}
        return 0.5 * (functional_call(model, weights, (batch.x[row],)) - batch.y[row]).square().mean()

    total = torch.zeros_like(theta)
    h = horizon / steps
    for row in range(len(tasks)):

        def support(phi, row=row):
            return loss(phi, tasks.support, row)

        def flow(t, phi, support=support):
            return -torch.func.grad(support)(phi)

        states = torchdiffeq.odeint(flow, theta, torch.linspace(0, horizon, steps + 1), method="rk4")
        a = torch.func.grad(lambda phi, row=row: loss(phi, tasks.query, row))(states[-1])
        for j in reversed(range(steps + 1)):
            a = a - h * torch.func.hessian(support)(states[j]) @ a
        total += a / len(tasks)
    return total


@pytest.mark.parametrize("steps", [3, 6])
def test_the_released_scheme_is_the_released_loop(subject, model, tasks, steps):
    found = subject.measure(released_scheme(HORIZON, steps))
    assert relative(found.gradient, released(model, tasks, HORIZON, steps)) < 1e-12
    assert (found.evaluations.n_grad, found.evaluations.n_hvp) == (4 * steps, steps + 1)


def test_a_backward_solve_that_blows_up_is_an_error(subject):
    """Steps that vanish are torchdiffeq's AssertionError, and too many are the study's limit."""
    with pytest.raises((am.SolverError, RuntimeError)):
        subject.measure(torchdiffeq_solve(400.0, 1e-3, adjoint=True), limit=3000)


def test_without_torchode_a_line_says_so(monkeypatch):
    monkeypatch.setattr(sweeps, "has_torchode", lambda: False)
    assert sweeps.missing() == ["torchode is not installed: pip install 'adjoint-meta[bench]'"]
    monkeypatch.setattr(sweeps, "has_torchode", lambda: True)
    assert sweeps.missing() == []
    assert isinstance(competitors.has_torchode(), bool)
