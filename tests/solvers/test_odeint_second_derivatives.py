"""Second derivatives through odeint, held against finite differences and torchdiffeq's."""

from __future__ import annotations

import pytest
import torch
import torchdiffeq
from odeint_problems import Problem, assert_same, both_solvers
from torch import Tensor

from adjoint_meta.solvers.odeint import odeint


@both_solvers
@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5"])
@pytest.mark.parametrize("options", ["t", "step size"])
def test_second_derivatives_by_finite_differences(solve, method, options, generator):
    weight = torch.randn(2, 2, generator=generator).requires_grad_()
    y0 = torch.randn(2, generator=generator).requires_grad_()
    t = torch.tensor([0.0, 0.3, 0.7], requires_grad=True)
    if method == "dopri5":
        chosen = {"first_step": 0.25, "ifactor": 1.0}
    else:
        chosen = {"step_size": 0.17} if options == "step size" else {}

    def func(y0: Tensor, weight: Tensor, t: Tensor) -> Tensor:
        return solve(
            lambda t, y: torch.tanh(weight @ y) * torch.cos(t), y0, t, method=method, options=chosen, rtol=1e6, atol=1e6
        )

    if method == "dopri5":
        t = t.detach()  # the ends of adaptive steps are held fixed, which finite differences do not
        assert torch.autograd.gradgradcheck(lambda y0, weight: func(y0, weight, t), (y0, weight))
    else:
        assert torch.autograd.gradcheck(func, (y0, weight, t))
        assert torch.autograd.gradgradcheck(func, (y0, weight, t))


def test_the_replay_gives_the_gradients_of_the_transpose(generator):
    problem = Problem(generator)
    for arguments in (
        {},
        {"method": "tsit5"},
        {"method": "midpoint", "options": {"step_size": 0.2, "interp": "cubic"}},
    ):
        plain = torch.autograd.grad(problem.loss(odeint, **arguments), problem.inputs)
        replayed = torch.autograd.grad(problem.loss(odeint, **arguments), problem.inputs, create_graph=True)
        assert all(gradient.requires_grad for gradient in replayed)
        assert_same([gradient.detach() for gradient in replayed], plain, 1e-12)


def test_second_derivatives_are_torchdiffeqs(generator):
    problem = Problem(generator)

    def penalty(solve):
        gradient = torch.autograd.grad(problem.loss(solve, method="rk4"), problem.inputs, create_graph=True)
        return torch.autograd.grad(sum((part**2).sum() for part in gradient), problem.inputs)

    assert_same(penalty(odeint), penalty(torchdiffeq.odeint), 1e-11)


def test_second_derivatives_of_rows(generator):
    rates = torch.tensor([0.5, 10.0], requires_grad=True)
    y0 = torch.randn(2, 1, generator=generator).requires_grad_()

    def penalty(solve, rows: bool):
        def func(t, y):
            return -rates[:, None] * y - y**3

        t = torch.tensor([0.0, 0.4, 1.0])
        ys = solve(func, y0, t, rtol=1e-8, atol=1e-8, **({"batched": True} if rows else {}))
        gradient = torch.autograd.grad(ys.sum(), (y0, rates), create_graph=True)
        return torch.autograd.grad(sum((part**2).sum() for part in gradient), (y0, rates))

    assert_same(penalty(odeint, True), penalty(torchdiffeq.odeint, False), 1e-5)


def test_second_derivatives_of_a_func_that_differentiates():
    stiffness = torch.tensor(1.5, requires_grad=True)

    def func(t, y):
        energy = (y[1] ** 2 + stiffness * y[0] ** 2).sum() / 2
        (gradient,) = torch.autograd.grad(energy, y, create_graph=True)
        return torch.stack([gradient[1], -gradient[0]])

    x = odeint(func, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), rtol=1e-9, atol=1e-9)[-1, 0]
    (first,) = torch.autograd.grad(x, stiffness, create_graph=True)
    (second,) = torch.autograd.grad(first, stiffness)
    exact = torch.tensor(1.5, requires_grad=True)
    (expected,) = torch.autograd.grad(torch.cos(exact.sqrt()), exact, create_graph=True)
    assert first.item() == pytest.approx(expected.item(), rel=1e-6)
    assert second.item() == pytest.approx(torch.autograd.grad(expected, exact)[0].item(), rel=1e-5)
