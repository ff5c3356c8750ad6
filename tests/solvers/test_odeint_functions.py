"""Funcs that change, jump, write, reuse their memory, hide what they depend on, or differentiate by themselves."""

from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq
from references import relative
from torch import nn

from adjoint_meta.solvers.ivp import solve_ivp
from adjoint_meta.solvers.odeint import odeint, odeint_adjoint

both_solvers = pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
both_orders = pytest.mark.parametrize("create_graph", [False, True])
METHODS = [
    {"method": "rk4", "options": {"step_size": 0.05}},
    {"method": "midpoint", "options": {"step_size": 0.05, "interp": "cubic"}},
    {"method": "dopri5"},
    {"method": "bosh3"},
]
every_method = pytest.mark.parametrize("arguments", METHODS, ids=lambda arguments: arguments["method"])


def T():
    return torch.linspace(0.0, 1.0, 5)


class Late(nn.Module):
    """A rate that counts only from t = 0.5 on."""

    def __init__(self):
        super().__init__()
        self.rate = 2.0
        self.data = torch.ones(3)

    def forward(self, t, y):
        return -y if t < 0.5 else -self.rate * self.data * y


# Changes between the solve and the way back


def set_rate(func):
    func.rate = 3.0


def write_data(func):
    func.data[1] = 1.01


@both_solvers
@both_orders
@every_method
@pytest.mark.parametrize("change", [set_rate, write_data])
def test_a_func_that_changed_only_at_later_times_is_an_error(solve, create_graph, arguments, change, generator):
    func, y0 = Late(), torch.randn(2, 3, generator=generator).requires_grad_()
    first = solve(func, y0, T(), **arguments)
    change(func)
    second = solve(func, y0, T(), **arguments)
    with pytest.raises(ValueError, match="func is another one than during the solve: its values have changed"):
        torch.autograd.grad((first + second)[-1].sum(), y0, create_graph=create_graph, retain_graph=True)
    assert torch.autograd.grad(second[-1].sum(), y0, create_graph=create_graph)[0].shape == (2, 3)


@both_solvers
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_a_small_change_within_a_short_step_is_seen(solve, precision):
    """A step of 1e-3 moves y by less than the rounding that the comparison of states alone would have to allow."""
    func, y0 = Late(), torch.ones(3, dtype=precision, requires_grad=True)
    func.data = func.data.to(precision)
    t = torch.tensor([0.4995, 0.5025], dtype=precision)
    ys = solve(func, y0, t, method="euler", options={"step_size": 0.001})
    func.rate = 2.01 if solve is odeint else 2.5
    with pytest.raises(ValueError, match="func is another one"):
        ys.sum().backward()


def test_a_row_of_a_batch_that_changed_is_seen(generator):
    rates, y0 = torch.tensor([1.0, 30.0, 4.0]), torch.randn(3, 2, generator=generator).requires_grad_()
    held = {"rates": rates}

    def func(t, y):
        return torch.where(t < 0.5, -y, -held["rates"][:, None] * y)

    ys = odeint(func, y0, T(), batched=True)
    held["rates"] = torch.tensor([1.0, 30.0, 4.1])
    with pytest.raises(ValueError, match="func is another one"):
        ys.sum().backward(retain_graph=True)
    held["rates"] = rates
    ys.sum().backward()


@both_solvers
@both_orders
@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun3"])
def test_jumps_at_the_ends_of_steps_are_no_change(solve, create_graph, interp, method, generator):
    """0.2 + (0.9 − 0.2) is below 0.9: f at the end of the first step is not f at the start of the next."""
    y0, t = torch.randn(2, generator=generator).requires_grad_(), torch.tensor([0.2, 0.9, 1.9])
    assert t[0] + (t[1] - t[0]) < t[1]

    def func(t, y):
        return -y if t < 0.9 else -3 * y

    arguments = {"method": method, "options": {"interp": interp, "grid_constructor": lambda func, y0, times: t}}
    times = torch.tensor([0.2, 1.3, 1.9])
    found = torch.autograd.grad(solve(func, y0, times, **arguments).sum(), y0, create_graph=create_graph)[0]
    expected = torch.autograd.grad(torchdiffeq.odeint(func, y0, times, **arguments).sum(), y0)[0]
    assert relative(found.detach(), expected) < 1e-12


@both_solvers
def test_states_that_cross_zero_are_no_change(solve):
    """y = sin t ends at 1e-16, of which nothing is left after rounding."""
    y0, t = torch.zeros(1, requires_grad=True), torch.tensor([0.0, 1.0, math.pi])
    for create_graph in (False, True):
        ys = solve(lambda t, y: torch.cos(t)[None] + 0 * y, y0, t)
        assert torch.autograd.grad(ys.sum(), y0, create_graph=create_graph)[0].item() == pytest.approx(3.0)


# What only acts later, where nothing else wants a gradient


def hidden_late():
    """Ways to reach a parameter, late and where the search does not look, each as (parameter, func)."""

    class Holder:
        pass

    class Slots:
        __slots__ = ("inner",)

        def __call__(self, t, y):
            return -self.inner * y

    deep = Holder()
    deep.first, deep.first.second = Holder(), Holder()
    deep.first.second.inner = torch.ones(3, requires_grad=True)
    slots = Slots()
    slots.inner = torch.ones(3, requires_grad=True)
    many = [torch.ones(3, requires_grad=True) for _ in range(1002)]
    return {
        "deep": lambda t, y: -deep.first.second.inner * y if t >= 0.5 else -y,
        "slots": lambda t, y: slots(t, y) if t >= 0.5 else -y,
        "many": lambda t, y: -many[0] * y if t >= 0.5 else -y,
    }


@both_solvers
@every_method
@pytest.mark.parametrize("home", ["deep", "slots", "many"])
def test_a_parameter_out_of_reach_that_only_acts_later_is_not_lost(home, solve, arguments):
    func = hidden_late()[home]
    assert torchdiffeq.odeint(func, torch.ones(3), T()).requires_grad
    with pytest.raises(ValueError, match=r"depends on a tensor of shape \[3\] that it did not use"):
        solve(func, torch.ones(3), T(), **arguments)
    with torch.no_grad():
        assert not solve(func, torch.ones(3), T(), **arguments).requires_grad
    assert not odeint_adjoint(func, torch.ones(3), T(), adjoint_params=(), **arguments).requires_grad


@both_solvers
def test_tensors_that_func_makes_for_itself_are_none(solve):
    def func(t, y):
        own = y.detach().requires_grad_()
        return -torch.autograd.grad((own**2).sum() / 2, own, create_graph=True)[0] if t > 0.5 else -y

    found = solve(func, torch.ones(2), torch.tensor([0.0, 1.0]))
    assert not found.requires_grad
    torch.testing.assert_close(found[-1], torch.full((2,), math.exp(-1)), rtol=1e-6, atol=0)


# Memory


class Buffered:
    """Returns the same memory each time."""

    def __init__(self, y):
        self.buffer = torch.empty_like(y)

    def __call__(self, t, y):
        return torch.neg(y, out=self.buffer)


@both_solvers
@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "rk4"])
def test_a_func_that_uses_its_memory_again(method, grad_mode, solve, generator):
    y0 = torch.randn(2, 3, generator=generator)
    with torch.set_grad_enabled(grad_mode):
        found = solve(Buffered(y0), y0, T(), method=method)
        assert torch.equal(found, solve(lambda t, y: -y, y0, T(), method=method))


def test_a_func_that_returns_its_y():
    y0 = torch.tensor([1.0, -2.0], requires_grad=True)
    ys = odeint(lambda t, y: y, y0, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(torch.autograd.grad(ys[-1].sum(), y0)[0], torch.full((2,), math.e), rtol=1e-6, atol=0)


def writing(t, y):
    y[..., 0] = 0.0
    return -y


def writing_late(t, y):
    if t > 0.5:
        y.mul_(0.5)
    return -y


@both_solvers
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("func", [writing, writing_late])
def test_a_func_that_writes_to_its_y_is_left_to_torchdiffeq(func, method, context, solve, generator):
    y0 = torch.randn(2, 3, generator=generator)
    extra = {"adjoint_params": ()} if solve is odeint_adjoint else {}
    with context():
        expected = torchdiffeq.odeint(func, y0.clone(), T(), method=method)
        assert torch.equal(solve(func, y0.clone(), T(), method=method, **extra), expected)


def test_a_func_that_writes_to_its_y_where_torchdiffeq_cannot_help():
    y0 = torch.ones(2, 3)
    with pytest.raises(ValueError, match="a func that writes to its y is left to torchdiffeq, which knows no"):
        odeint(writing, y0, T(), batched=True)
    with pytest.raises(ValueError, match="func must leave the y that it gets as it is"):
        solve_ivp(writing, (0.0, 1.0), y0)


# Inference mode


def conservative(t, y):
    with torch.enable_grad():
        y = y if y.requires_grad else y.detach().requires_grad_()
        return -torch.autograd.grad((y**2).sum() / 2, y, create_graph=True)[0]


@both_solvers
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_func_that_differentiates_by_itself_in_inference_mode(method, solve, generator):
    y0 = torch.randn(3, generator=generator)
    expected = odeint(lambda t, y: -y, y0, T(), method=method)
    with torch.inference_mode():
        for start in (y0, y0.clone()):
            torch.testing.assert_close(solve(conservative, start, T(), method=method), expected)
        assert solve_ivp(conservative, (0.0, 1.0), y0.clone()).success
