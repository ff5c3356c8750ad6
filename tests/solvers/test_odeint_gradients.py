"""The gradients of odeint and odeint_adjoint, held against torchdiffeq's graph, closed forms and finite differences."""

from __future__ import annotations

import pytest
import torch
import torchdiffeq
from odeint_problems import FIXED, Net, Problem, assert_same, both_solvers, both_ways
from references import central_difference, relative
from torch import Tensor

from adjoint_meta.solvers.odeint import odeint, odeint_adjoint

OPTIONS = {
    "t": {},
    "step size": {"step_size": 0.21},
    "cubic": {"step_size": 0.21, "interp": "cubic"},
    "grid": {"grid_constructor": lambda func, y0, t: torch.cat([t[:1], 0.3 * t[:1] + 0.7 * t[-1:], t[-1:]])},
}


@both_solvers
@both_ways
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("method", FIXED)
def test_gradients_of_fixed_steps_are_those_of_torchdiffeqs_graph(solve, method, options, direction, generator):
    """To y0, to t, through the grid that depends on t, and to the parameters: all to rounding."""
    problem = Problem(generator, direction)
    expected = problem.gradients(torchdiffeq.odeint, method=method, options=dict(OPTIONS[options]))
    found = problem.gradients(solve, method=method, options=dict(OPTIONS[options]))
    assert_same(found, expected, 1e-12)


@both_solvers
@both_ways
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "adaptive_heun", "fehlberg2"])
def test_gradients_of_adaptive_steps_are_accurate(solve, method, direction, generator):
    problem = Problem(generator, direction)
    expected = problem.gradients(torchdiffeq.odeint, method="dopri8", rtol=1e-11, atol=1e-11)
    tolerance = {"adaptive_heun": 1e-4, "fehlberg2": 1e-4, "bosh3": 1e-6}.get(method, 1e-8)
    found = problem.gradients(solve, method=method, rtol=tolerance, atol=tolerance)
    assert_same(found, expected, 3000 * tolerance)


@both_solvers
def test_the_adjoint_of_torchdiffeq_agrees(solve, generator):
    problem = Problem(generator)
    expected = problem.gradients(torchdiffeq.odeint_adjoint, rtol=1e-9, atol=1e-9)
    assert_same(problem.gradients(solve, rtol=1e-9, atol=1e-9), expected, 1e-6)


def test_stored_and_checkpointed_gradients_are_the_same(generator):
    problem = Problem(generator)
    for options in ({}, {"snapshots": 1}, {"snapshots": 2}):
        found = problem.gradients(odeint_adjoint, adjoint_options=options)
        assert_same(found, problem.gradients(odeint), 1e-11)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3"])
@both_ways
def test_the_transpose_is_exact_whatever_the_tolerance(method, direction, generator):
    """Large steps with many outputs in each: the gradient is that of the steps taken, as finite differences see it.

    A first step that is never left, all errors being accepted, keeps the steps fixed.
    """
    problem = Problem(generator, direction)
    t = torch.linspace(0.0, 1.4, 12)
    t = t if direction == "forward" else t.flip(0)
    weights = torch.randn(12, 3, 2, generator=generator)
    loose = {"rtol": 1e6, "atol": 1e6, "method": method, "options": {"first_step": 0.45, "ifactor": 1.0}}

    def loss(y0: Tensor) -> float:
        with torch.no_grad():
            return float((weights * odeint(problem.net, y0, t, **loose)).sum())

    found = torch.autograd.grad((weights * odeint(problem.net, problem.y0, t, **loose)).sum(), problem.y0)[0]
    assert relative(found, central_difference(loss, problem.y0.detach(), 1e-6)) < 1e-8


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_gradients_to_inner_times_are_the_slopes_of_the_dense_output(method, generator):
    problem = Problem(generator)
    t = torch.linspace(0.0, 1.4, 8).requires_grad_()
    weights = torch.randn(8, 3, 2, generator=generator)
    loose = {"rtol": 1e6, "atol": 1e6, "method": method, "options": {"first_step": 0.45, "ifactor": 1.0}}

    def loss(t: Tensor) -> float:
        with torch.no_grad():
            return float((weights * odeint(problem.net, problem.y0, t, **loose)).sum())

    found = torch.autograd.grad((weights * odeint(problem.net, problem.y0, t, **loose)).sum(), t)[0]
    expected = central_difference(loss, t.detach(), 1e-6)
    assert relative(found[1:-1], expected[1:-1]) < 1e-7


def test_times_at_which_nothing_is_asked_still_move_the_solution():
    """d/dt0 and d/dT of y(T) = y0 exp(a (T − t0)), at the ends of adaptive solves."""
    t = torch.tensor([0.3, 1.1, 2.0], requires_grad=True)
    y = odeint(lambda t, y: -0.7 * y, torch.ones(1), t, rtol=1e-9, atol=1e-9)[-1, 0]
    (found,) = torch.autograd.grad(y, t)
    expected = 0.7 * y.item() * torch.tensor([1.0, 0.0, -1.0])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@both_solvers
@pytest.mark.parametrize("method", ["dopri5", "midpoint"])
def test_gradients_of_complex_states(solve, method, generator):
    omega = torch.randn(2, generator=generator, dtype=torch.complex128).requires_grad_()
    y0 = torch.randn(2, generator=generator, dtype=torch.complex128).requires_grad_()
    t = torch.tensor([0.0, 0.3, 0.8], requires_grad=True)
    weights = torch.randn(3, 2, generator=generator, dtype=torch.complex128)

    def gradients(solve):
        ys = solve(lambda t, y: omega * y - (1 + 1j) * t * y.conj(), y0, t, method=method, **extra)
        return torch.autograd.grad((weights * ys).sum().abs(), (y0, omega, t))

    extra = {"rtol": 1e-10, "atol": 1e-10} if method == "dopri5" else {}
    found = gradients(solve)
    expected = gradients(torchdiffeq.odeint)
    assert found[0].is_complex()
    assert_same(found, expected, 1e-7 if method == "dopri5" else 1e-12)


@both_solvers
def test_gradients_of_tuples_and_dicts(solve, generator):
    net = Net(generator)
    x, v = (torch.randn(2, generator=generator).requires_grad_() for _ in range(2))
    t = torch.tensor([0.0, 0.5, 1.0])

    def of_tuple(t, y):
        return net(t, y[1]), -y[0] * y[1]

    def of_dict(t, y):
        return dict(zip(("v", "x"), reversed(of_tuple(t, (y["x"], y["v"]))), strict=True))

    def gradients(ys):
        return torch.autograd.grad((ys[0] * ys[1]).sum(), [x, v, *net.parameters()])

    expected = gradients(torchdiffeq.odeint(of_tuple, (x, v), t, method="rk4"))
    assert_same(gradients(solve(of_tuple, (x, v), t, method="rk4")), expected, 1e-12)
    found = solve(of_dict, {"x": x, "v": v}, t, method="rk4")
    assert_same(gradients((found["x"], found["v"])), expected, 1e-12)


@both_solvers
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3"])
def test_gradients_of_rows_are_those_of_each_alone(solve, method, generator):
    rates = torch.tensor([0.5, 15.0, 4.0], requires_grad=True)
    shared = torch.tensor(0.7, requires_grad=True)
    y0 = torch.randn(3, 2, generator=generator).requires_grad_()
    t = torch.linspace(0.0, 1.0, 5).requires_grad_()
    weights = torch.randn(5, 3, 2, generator=generator)
    accuracy = {"method": method, "rtol": 1e-4, "atol": 1e-5}

    def func(t, y):
        return -rates[:, None] * (y - torch.sin(shared * t)) - shared * y**3

    ys = solve(func, y0, t, batched=True, **accuracy)
    found = torch.autograd.grad((weights * ys).sum(), (y0, t, rates, shared))

    def alone(row: int) -> Tensor:
        def func(t, y):
            return -rates[row] * (y - torch.sin(shared * t)) - shared * y**3

        return (weights[:, row] * solve(func, y0[row], t, **accuracy)).sum()

    expected = torch.autograd.grad(sum(alone(row) for row in range(3)), (y0, t, rates, shared))
    assert_same(found, expected, 1e-9)


@both_solvers
def test_float32_gradients_are_float32(solve, generator):
    problem = Problem(generator)
    expected = problem.gradients(solve, method="rk4")
    problem.net.float()
    problem.y0 = problem.y0.detach().float().requires_grad_()
    problem.weights = problem.weights.float()
    found = problem.gradients(solve, method="rk4")
    assert [x.dtype for x in found] == [torch.float32, torch.float64, *[torch.float32] * 4]
    assert_same([x.double() for x in found], expected, 1e-5)


def test_gradients_only_where_wanted(generator):
    problem = Problem(generator)
    expected = problem.gradients(odeint)
    for chosen in ([0], [1], [2], [0, 3], [1, 5]):
        found = torch.autograd.grad(problem.loss(odeint), [problem.inputs[i] for i in chosen])
        assert_same(found, [expected[i] for i in chosen], 1e-13)


@both_solvers
def test_funcs_that_do_not_depend_on_y(solve, generator):
    w = torch.randn(2, generator=generator).requires_grad_()
    y0 = torch.randn(2, generator=generator).requires_grad_()
    t = torch.tensor([0.0, 1.0, 3.0], requires_grad=True)
    ys = solve(lambda t, y: w, y0, t)
    found = torch.autograd.grad(ys[-1].sum(), (y0, w, t))
    torch.testing.assert_close(found[0], torch.ones(2))
    torch.testing.assert_close(found[1], torch.full((2,), 3.0))
    torch.testing.assert_close(found[2], w.sum().detach() * torch.tensor([-1.0, 0.0, 1.0]))
    constant = torch.ones(2)
    ys = solve(lambda t, y: constant, y0, t)
    assert torch.equal(torch.autograd.grad(ys[-1].sum(), y0)[0], torch.ones(2))
