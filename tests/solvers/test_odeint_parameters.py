"""odeint finds the parameters of func wherever they are, and gives each the gradient that torchdiffeq does."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torchdiffeq
from odeint_problems import Net, assert_same, both_solvers
from references import relative
from torch import nn

from adjoint_meta.solvers.odeint import odeint, odeint_adjoint


def decay_with(generator):
    """Ways to hold one parameter tensor w [2], each as (parameter, function of t and y)."""
    w = torch.rand(2, generator=generator).add(0.5).requires_grad_()

    class Holder:
        def __init__(self):
            self.w = w

        def method(self, t, y):
            return -self.w * y

        def __call__(self, t, y):
            return -self.w * y

    class Nested:
        def __init__(self):
            self.parts = {"deep": [{"w": (w,)}]}
            self.holder = Holder()

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(w.detach().clone())

        def forward(self, t, y):
            return -self.w * y

    module, nested = Module(), Nested()
    return {
        "closure": (w, lambda t, y: -w * y),
        "default argument": (w, lambda t, y, w=w: -w * y),
        "partial": (w, functools.partial(lambda w, t, y: -w * y, w)),
        "bound method": (w, Holder().method),
        "callable object": (w, Holder()),
        "nested containers": (w, lambda t, y: -nested.parts["deep"][0]["w"][0] * y),
        "object in an object": (w, lambda t, y: nested.holder.method(t, y)),
        "module": (module.w, module),
        "module in closure": (module.w, lambda t, y: module(t, y)),
        "module in a list": (module.w, lambda t, y, modules=(module,): modules[0](t, y)),
        "bound method of a module": (module.w, module.forward),
        "function in closure": (w, (lambda inner: lambda t, y: inner(t, y))(lambda t, y: -w * y)),
        "global": (_GLOBAL, lambda t, y: -_GLOBAL * y),
        "module with a list of tensors": (w, _Listing(w)),
        "out of reach": (w, _hidden(w)),
    }


_GLOBAL = torch.tensor([0.6, 1.1], dtype=torch.float64, requires_grad=True)


class _Listing(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.all = [w]

    def forward(self, t, y):
        return -self.all[0] * y


def _hidden(w):
    """A function that reaches w by a way that no search would find; the graph of its value shows it."""
    storage = {id(w): w}
    iterator = (storage[id(w)] for _ in iter(int, 1))
    return lambda t, y: -next(iterator) * y


HOMES = list(decay_with(torch.Generator().manual_seed(0)))


@both_solvers
@pytest.mark.parametrize("home", HOMES)
def test_parameters_are_found(home, solve, generator):
    w, func = decay_with(generator)[home]
    found = torch.autograd.grad(solve(func, torch.ones(2), torch.tensor([0.0, 2.0]))[-1].sum(), w)[0]
    torch.testing.assert_close(found, -2 * torch.exp(-2 * w.detach()), rtol=1e-5, atol=1e-7)


@both_solvers
@pytest.mark.parametrize("home", ["closure", "module", "bound method"])
def test_parameters_that_only_act_later_are_found(home, solve, generator):
    w, inner = decay_with(generator)[home]
    if home == "module":

        class Later(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = inner

            def forward(self, t, y):
                return self.inner(t, y) if t > 0.5 else -y

        func = Later()
    else:

        def func(t, y):
            return inner(t, y) if t > 0.5 else -y

    t = torch.tensor([0.0, 0.5, 2.0])
    options = {"method": "rk4", "options": {"step_size": 0.05}}
    found = torch.autograd.grad(solve(func, torch.ones(2), t, **options)[-1].sum(), w)[0]
    expected = torch.autograd.grad(torchdiffeq.odeint(func, torch.ones(2), t, **options)[-1].sum(), w)[0]
    assert relative(found, expected) < 1e-12


@both_solvers
def test_a_parameter_out_of_reach_that_only_acts_later_is_an_error(solve, generator):
    w = torch.rand(2, generator=generator).requires_grad_()
    hidden = _hidden(w)

    def func(t, y):
        return hidden(t, y) if t > 0.5 else -y

    y0 = torch.ones(2, requires_grad=True)
    loss = solve(func, y0, torch.tensor([0.0, 2.0])).sum()
    with pytest.raises(ValueError, match=r"depends on a tensor of shape \[2\] that it did not use"):
        loss.backward()


@both_solvers
def test_tensors_that_func_makes_for_itself_are_no_parameters(solve):
    """As in many a Hamiltonian network: y is cut off and given gradients anew, at some times only."""

    def func(t, y):
        if t > 0.5:
            own = y.detach().requires_grad_()
            with torch.enable_grad():
                return -torch.autograd.grad((own**2).sum() / 2, own, create_graph=True)[0] + 0 * y
        return -y

    y0 = torch.ones(2, requires_grad=True)
    found = torch.autograd.grad(solve(func, y0, torch.tensor([0.0, 0.5])).sum(), y0)[0]
    torch.testing.assert_close(found, torch.full((2,), 1 + math.exp(-0.5)), rtol=1e-6, atol=0)
    solve(func, y0, torch.tensor([0.0, 1.0])).sum().backward()


class Hyper:
    """Parameters made by another network from w, so that they lie in the middle of a graph."""

    def __init__(self, generator: torch.Generator) -> None:
        self.w = torch.randn(2, generator=generator).requires_grad_()
        self.passes = 0
        self.made = torch.exp(self.w)
        self.made.grad_fn.register_hook(self._count)

    def _count(self, *_) -> None:
        self.passes += 1


@both_solvers
@pytest.mark.parametrize("case", ["captured", "captured with its origin", "out of reach"])
def test_captured_tensors_with_a_history(case, solve, generator):
    """What lies behind is traversed once, unless one captured tensor lies behind another or cannot be reached."""
    hyper = Hyper(generator)
    w, made = hyper.w, hyper.made
    hidden = iter(lambda: hyper.made, None)
    funcs = {
        "captured": lambda t, y: -made * y,
        "captured with its origin": lambda t, y: -made * y + w,
        "out of reach": lambda t, y: -next(hidden) * y,
    }
    y0, t = torch.ones(2), torch.tensor([0.0, 0.4, 1.0])
    ys = solve(funcs[case], y0, t, method="rk4")
    found = torch.autograd.grad(ys.sum(), w, retain_graph=True)[0]
    assert hyper.passes == (1 if case == "captured" else 8)
    assert torch.equal(torch.autograd.grad(ys.sum(), w)[0], found)
    made = torch.exp(w)
    hidden = iter(lambda: made, None)
    expected = torchdiffeq.odeint(funcs[case], y0, t, method="rk4")
    assert relative(found, torch.autograd.grad(expected.sum(), w)[0]) < 1e-12


def test_a_captured_tensor_that_is_y0_too():
    y0 = torch.tensor([0.5, 2.0], requires_grad=True)
    t = torch.tensor([0.0, 1.0])

    def gradients(solve):
        base = y0 * 2
        return torch.autograd.grad(solve(lambda t, y: -y * base, base, t, method="rk4").sum(), y0)

    assert_same(gradients(odeint), gradients(torchdiffeq.odeint), 1e-12)
    assert_same(gradients(odeint_adjoint), gradients(torchdiffeq.odeint), 1e-12)


def test_unused_parameters_get_none_or_zero_as_torchdiffeq_gives():
    class Func(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))

        def forward(self, t, y):
            return -self.used * y

    t = torch.tensor([0.0, 1.0])
    for ours, theirs in ((odeint, torchdiffeq.odeint), (odeint_adjoint, torchdiffeq.odeint_adjoint)):
        grads = []
        for solve in (ours, theirs):
            func = Func()
            solve(func, torch.ones(2), t, method="rk4").sum().backward()
            grads.append(func.idle.grad)
        assert (grads[0] is None) == (grads[1] is None)
        assert grads[0] is None or torch.equal(*grads)


def test_adjoint_params_restrict_what_gets_gradients(generator):
    net, t = Net(generator), torch.tensor([0.0, 1.0])
    first, *others = net.parameters()
    others[0].requires_grad_(False)
    expected = torch.autograd.grad(torchdiffeq.odeint(net, torch.ones(2), t, method="rk4").sum(), first)[0]
    odeint_adjoint(net, torch.ones(2), t, method="rk4", adjoint_params=(p for p in [first, others[0]])).sum().backward()
    assert relative(first.grad, expected) < 1e-12
    assert all(parameter.grad is None for parameter in others)
    y0 = torch.ones(2, requires_grad=True)
    odeint_adjoint(lambda t, y: net(t, y), y0, t, adjoint_params=()).sum().backward()
    assert y0.grad is not None
    assert all(parameter.grad is None for parameter in others)


def test_adjoint_params_in_front_of_a_graph(generator):
    """Parameters of a network that made what func captured: its graph is traversed at every stage, and outlives it."""
    w = torch.randn(2, generator=generator).requires_grad_()
    made, t = torch.exp(w), torch.tensor([0.0, 0.5, 1.0])

    def func(t, y):
        return -made * y

    found = torch.autograd.grad(odeint_adjoint(func, torch.ones(2), t, method="rk4", adjoint_params=(w,)).sum(), w)[0]
    expected = torch.autograd.grad(torchdiffeq.odeint(func, torch.ones(2), t, method="rk4").sum(), w)[0]
    assert relative(found, expected) < 1e-12
