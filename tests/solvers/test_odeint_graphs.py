"""odeint in a graph of autograd: what it records, leaves alone and frees, and what it refuses on the way back."""

from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq
from odeint_problems import Net, Problem, assert_same, both_solvers
from torch import nn

from adjoint_meta.solvers.odeint import odeint, odeint_adjoint

# A func that differentiates by itself


class Hamiltonian(torch.nn.Module):
    """dy/dt = Ω ∇H(y), by autograd; torchdiffeq#151."""

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, t, y):
        energy = (y[1] ** 2 + self.stiffness * y[0] ** 2).sum() / 2
        (gradient,) = torch.autograd.grad(energy, y, create_graph=True)
        return torch.stack([gradient[1], -gradient[0]])


@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_func_may_call_autograd(solve, grad_mode, method):
    func, t = Hamiltonian(), torch.linspace(0, 3, 4)
    options = {"step_size": 0.05} if method == "rk4" else {}
    with torch.set_grad_enabled(grad_mode):
        found = solve(func, torch.tensor([1.0, 0.0]), t, method=method, options=options)
    assert found.requires_grad == grad_mode
    torch.testing.assert_close(found[:, 0].detach(), torch.cos(1.5**0.5 * t), rtol=0, atol=1e-6)
    if grad_mode:
        (gradient,) = torch.autograd.grad(found[-1, 0], func.stiffness)
        expected = -math.sin(1.5**0.5 * 3) * 3 * 0.5 / 1.5**0.5
        assert gradient.item() == pytest.approx(expected, rel=1e-5)


def test_a_func_may_differentiate_by_time():
    def func(t, y):
        (slope,) = torch.autograd.grad(t**3, t)
        return slope.expand_as(y)

    with torch.no_grad():
        found = odeint(func, torch.zeros(2), torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(found[-1], torch.full((2,), 8.0))


def test_no_graph_of_the_evaluations_stays(generator):
    """Between evaluations nothing but states is alive: the activations of func are gone when the solve returns."""
    import weakref

    kept = []

    def func(t, y):
        hidden = torch.tanh(y * 2)
        kept.append(weakref.ref(hidden))
        return hidden.sin()

    y0 = torch.randn(3, generator=generator, requires_grad=True)
    found = odeint(func, y0, torch.tensor([0.0, 1.0]))
    assert found.requires_grad
    assert [ref for ref in kept if ref() is not None] == []


# Before backward, and after


def test_without_gradients_nothing_is_recorded(generator):
    net, t = Net(generator), torch.tensor([0.0, 1.0])
    with torch.no_grad():
        assert not odeint(net, torch.ones(2), t).requires_grad
    assert not odeint(lambda t, y: -y, torch.ones(2), t).requires_grad
    net.requires_grad_(False)
    assert not odeint(net, torch.ones(2), t).requires_grad


@both_solvers
def test_a_parameter_changed_before_backward_is_an_error(solve, generator):
    """The way back evaluates func again: with other parameters the gradient would silently be another one."""
    net = Net(generator)
    loss = solve(net, torch.ones(2), torch.tensor([0.0, 1.0])).sum()
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@both_solvers
def test_backward_twice(solve, generator):
    problem = Problem(generator)
    loss = problem.loss(solve)
    first = torch.autograd.grad(loss, problem.inputs, retain_graph=True)
    assert_same(torch.autograd.grad(loss, problem.inputs), first, 1e-15)


def test_outputs_are_freed_with_their_graph(generator):
    import gc
    import weakref

    net = Net(generator)
    gc.disable()
    try:
        ys = odeint(net, torch.ones(2), torch.tensor([0.0, 1.0]))
        output, path = weakref.ref(ys), weakref.ref(ys.grad_fn.next_functions[0][0].path)
        ys.sum().backward()
        del ys
        assert output() is None
        assert path() is None
    finally:
        gc.enable()


# Around the solve


def test_autocast_is_the_same_on_the_way_back(generator):
    """bfloat16 inside func; backward outside of the context meets the same numbers."""
    net = Net(generator).float()
    seen = []
    net.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    y0 = torch.randn(3, 2, generator=generator, dtype=torch.float32)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ys = odeint(net, y0, t, method="rk4")
        expected = torchdiffeq.odeint(net, y0, t, method="rk4")
    forward = len(seen)
    assert ys.dtype == torch.float32
    torch.testing.assert_close(ys, expected, rtol=1e-2, atol=1e-2)
    parameters = list(net.parameters())
    found = torch.autograd.grad(ys.sum(), parameters)
    assert len(seen) > forward
    assert set(seen) == {torch.bfloat16}
    assert_same(found, torch.autograd.grad(expected.sum(), parameters), 5e-2)


def test_the_graph_around_is_left_alone(generator):
    """A loss that uses y0, the parameters and the solution together, with an encoder in front."""
    net, encoder = Net(generator), nn.Linear(3, 2)
    x, t = torch.randn(4, 3, generator=generator), torch.tensor([0.0, 1.0])
    inputs = [*net.parameters(), *encoder.parameters()]

    def gradients(solve):
        y0 = encoder(x)
        ys = solve(net, y0, t, method="rk4")
        return torch.autograd.grad((ys[-1] * y0).sum() + sum((p**2).sum() for p in inputs), inputs)

    assert_same(gradients(odeint), gradients(torchdiffeq.odeint), 1e-12)


# What changes between the solve and the way back


@both_solvers
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_func_that_changed_before_backward_is_an_error(solve, create_graph):
    """A condition set anew before the way back, which would give another gradient without a word."""

    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.ones(2))
            self.condition = torch.tensor([1.0, 2.0])

        def forward(self, t, y):
            return -self.rate * y + self.condition

    func, t = Conditioned(), torch.tensor([0.0, 1.0])
    ys = solve(func, torch.ones(2), t)
    func.condition = torch.tensor([1.0, 2.1])
    with pytest.raises(ValueError, match="func is another one than during the solve"):
        torch.autograd.grad(ys.sum(), func.rate, create_graph=create_graph)
    func.condition = torch.tensor([1.0, 2.0])
    assert torch.autograd.grad(ys.sum(), func.rate, create_graph=create_graph)[0].shape == (2,)


@both_solvers
def test_writing_to_y0_or_t_afterwards_changes_nothing(solve, generator):
    net = Net(generator)
    y0, t = torch.randn(2, generator=generator), torch.tensor([0.0, 0.5, 1.0])
    for kept in (True, False):
        own_y0, own_t = y0.clone(), t.clone()
        ys = solve(net, own_y0, own_t)
        if not kept:
            own_y0.zero_()
            own_t.mul_(3)
        gradients = torch.autograd.grad(ys.sum(), list(net.parameters()))
        if kept:
            expected = gradients
    assert all(torch.equal(*both) for both in zip(gradients, expected, strict=True))
