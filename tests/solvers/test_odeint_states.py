"""odeint takes states of any form and precision, and returns them in it."""

from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq
from odeint_problems import START, Counted, both_ways, pair, pendulum, times
from torch import Tensor

from adjoint_meta.solvers.odeint import odeint

# The form of the state


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_states_of_any_shape(shape, generator):
    y0 = torch.randn(shape, generator=generator)
    t = torch.tensor([0.0, 0.5, 2.0])

    def decay(t: Tensor, y: Tensor) -> Tensor:
        assert y.shape == shape
        assert t.shape == ()
        return -y

    for method in ("dopri5", "rk4"):
        options = {"step_size": 0.01} if method == "rk4" else {}
        found = odeint(decay, y0, t, method=method, options=options)
        assert found.shape == (3, *shape)
        torch.testing.assert_close(found, y0 * torch.exp(-t).reshape(-1, *[1] * len(shape)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@both_ways
def test_complex_states(method, direction):
    omega = torch.tensor([1.0 + 2.0j, -0.3 - 1.5j])
    y0 = torch.tensor([1.0 - 0.5j, 0.2 + 0.0j])
    t = times(direction)
    options = {"step_size": 0.01} if method == "rk4" else {}
    seen = Counted(lambda t, y: omega * y)
    found = odeint(seen, y0, t, method=method, options=options)
    assert found.dtype == torch.complex128
    assert seen.seen[0][0].dtype == torch.float64
    if method == "dopri5":
        torch.testing.assert_close(found, y0 * torch.exp(omega * (t - t[0])[:, None]), rtol=1e-6, atol=1e-6)
    theirs = torchdiffeq.odeint(lambda t, y: omega * y, y0, t, method=method, options=options)
    torch.testing.assert_close(
        found, theirs, rtol=1e-6 if method == "dopri5" else 1e-13, atol=1e-6 if method == "dopri5" else 1e-14
    )


def test_complex_numbers_are_measured_by_their_modulus():
    """A rotation passes through the axes, where one part vanishes: no smaller steps are taken there."""
    ours, theirs = Counted(lambda t, y: 1j * y), Counted(lambda t, y: 1j * y)
    t, y0 = torch.tensor([0.0, 15.0]), torch.ones(1, dtype=torch.complex128)
    odeint(ours, y0, t, rtol=1e-8, atol=1e-12)
    torchdiffeq.odeint(theirs, y0, t, rtol=1e-8, atol=1e-12)
    assert ours.count <= 1.1 * theirs.count


@pytest.mark.parametrize("method", ["dopri5", "midpoint"])
@both_ways
def test_tuples(method, direction):
    y0 = (torch.tensor([1.0, 2.0]), torch.tensor([0.5, -0.5]))
    t = times(direction)
    found = odeint(pair, y0, t, method=method)
    expected = torchdiffeq.odeint(pair, y0, t, method=method)
    assert isinstance(found, tuple)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_dicts_and_nests_are_what_tuples_are():
    x, v = torch.tensor([[1.0, 2.0]]), torch.tensor([0.5, -0.5])
    t = times("forward")

    def nested(t, state):
        dx, dv = pair(t, (state["x"][0], state["inner"][1]["v"]))
        return {"inner": [torch.zeros(()), {"v": dv}], "x": dx[None]}

    found = odeint(nested, {"x": x, "inner": (torch.tensor(3.0), {"v": v})}, t)
    expected = odeint(pair, (x[0], v), t)
    assert list(found) == ["x", "inner"]
    torch.testing.assert_close(found["x"], expected[0][:, None], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found["inner"][1]["v"], expected[1], rtol=1e-6, atol=1e-7)
    assert torch.equal(found["inner"][0], torch.full((5,), 3.0))


def test_real_and_complex_tensors_in_one_state():
    y0 = {"count": torch.tensor([2.0]), "wave": torch.tensor([1.0j, 2.0]), "rate": torch.tensor(0.5)}

    def func(t, y):
        assert not y["count"].is_complex()
        return {"count": -y["count"], "wave": 1j * y["wave"] * y["rate"], "rate": torch.zeros(())}

    t = torch.tensor([0.0, 3.0])
    found = odeint(func, y0, t)
    torch.testing.assert_close(found["count"][-1], y0["count"] * math.exp(-3), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found["wave"][-1], y0["wave"] * torch.exp(torch.tensor(1.5j)), rtol=1e-6, atol=1e-8)


def test_one_time_returns_y0():
    y0 = START.clone().requires_grad_()
    found = odeint(lambda t, y: pytest.fail("not called"), y0, torch.tensor([2.0]))
    assert torch.equal(found, START[None])
    assert found.requires_grad


# Precision


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "rk4"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("time_precision", [torch.float32, torch.float64])
def test_precision_is_that_of_y0_for_time_too(method, precision, time_precision):
    func = Counted(lambda t, y: -y * t)
    t = torch.linspace(0, 2, 5, dtype=time_precision).requires_grad_()
    y0 = torch.ones(2, dtype=precision)
    options = {"step_size": 0.01} if method == "rk4" else {}
    found = odeint(func, y0, t, method=method, options=options, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), t)
    assert found.dtype == precision
    assert {t.dtype for t, _ in func.seen} == {y.dtype for _, y in func.seen} == {precision}
    assert gradient.dtype == time_precision
    torch.testing.assert_close(
        found, torch.exp(-(t.detach().to(precision) ** 2) / 2)[:, None].expand(5, 2), rtol=0, atol=1e-4
    )


def test_float32_with_default_tolerances_reaches_single_precision():
    """Tolerances below the precision of float32 are what torchdiffeq's users have."""
    t = torch.linspace(0, 8, 11)
    exact = odeint(pendulum, START, t, rtol=1e-12, atol=1e-12)
    found = odeint(pendulum, START.float(), t.float())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=5e-5)


def test_a_tuple_of_precisions_is_raised_to_the_highest():
    y0 = (torch.ones(2, dtype=torch.float32), torch.ones(2, dtype=torch.float64))
    found = odeint(lambda t, y: (-y[0], -y[1]), y0, torch.tensor([0.0, 1.0]))
    assert [part.dtype for part in found] == [torch.float64] * 2


@pytest.mark.parametrize("method", ["dopri5", "rk4", "dopri8"])
def test_func_may_return_each_of_a_tuple_in_its_own_precision(method):
    y0 = (torch.ones(2, dtype=torch.float32, requires_grad=True), torch.ones(3, dtype=torch.float64))
    t = torch.linspace(0, 1, 5)

    def func(t, y):
        return -y[0].float(), -y[1] * y[0].mean()

    found, expected = (solve(func, y0, t, method=method) for solve in (odeint, torchdiffeq.odeint))
    assert [part.dtype for part in found] == [part.dtype for part in expected]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(ys[1].sum(), y0[0])[0] for ys in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match=r"func\[1\] must be torch.float64, got torch.float32"):
        odeint(lambda t, y: (-y[0], -y[1].float()), y0, t, method=method)
