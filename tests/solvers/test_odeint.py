"""The solutions of odeint, held against torchdiffeq, scipy and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq
from scipy.integrate import solve_ivp as scipys_solve_ivp
from torch import Tensor

from adjoint_meta.solvers.odeint import odeint, odeint_adjoint

ADAPTIVE = ["dopri5", "bosh3", "adaptive_heun", "fehlberg2"]
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]
OPTIONS = {
    "t": {},
    "step size": {"step_size": 0.13},
    "whole step size": {"step_size": 0.1},
    "cubic": {"step_size": 0.13, "interp": "cubic"},
    "grid": {"grid_constructor": lambda func, y0, t: torch.cat([t[:1], (t[:1] + t[-1:]) / 2.1, t[-1:]])},
}


class Counted:
    """A function that counts its calls and notes what it was called with."""

    def __init__(self, func) -> None:
        self.func, self.count, self.seen = func, 0, []

    def __call__(self, t, y):
        self.count += 1
        self.seen.append((t, y))
        return self.func(t, y)


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], -torch.sin(y[0]) - 0.1 * y[1] + 0.3 * torch.cos(t)])


def times(direction: str, count: int = 5) -> Tensor:
    t = torch.linspace(0.2, 1.7, count) ** 1.3
    return t if direction == "forward" else t.flip(0)


START = torch.tensor([1.0, -0.4], dtype=torch.float64)
both_ways = pytest.mark.parametrize("direction", ["forward", "backward"])


@both_ways
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_are_torchdiffeqs(method, options, direction):
    t = times(direction)
    expected = torchdiffeq.odeint(pendulum, START, t, method=method, options=dict(OPTIONS[options]))
    for solve in (odeint, odeint_adjoint):
        found = solve(pendulum, START, t, method=method, options=dict(OPTIONS[options]))
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


def test_a_step_size_that_divides_the_interval_takes_that_many_steps():
    for count in (1, 3, 7, 10, 49, 100):
        func = Counted(pendulum)
        odeint(func, START, torch.tensor([0.0, 0.7]), method="euler", options={"step_size": 0.7 / count})
        assert func.count == count


@both_ways
@pytest.mark.parametrize("method", [*ADAPTIVE, "tsit5"])
def test_adaptive_solutions_are_accurate(method, direction):
    t = times(direction, 11)
    reference = torchdiffeq.odeint(pendulum, START, t, method="dopri8", rtol=1e-13, atol=1e-13)
    tolerance = 1e-4 if method in ("adaptive_heun", "fehlberg2") else 1e-7
    found = odeint(pendulum, START, t, method=method, rtol=tolerance, atol=tolerance)
    assert torch.equal(found[0], START)
    error = (found - reference).abs().max()
    if method == "tsit5":
        assert error < 10 * tolerance
    else:
        theirs = torchdiffeq.odeint(pendulum, START, t, method=method, rtol=tolerance, atol=tolerance)
        assert error < max(10 * tolerance, 1.5 * (theirs - reference).abs().max())


@pytest.mark.parametrize("count", [2, 1000])
@pytest.mark.parametrize("tolerance", [1e-5, 1e-7, 1e-9])
def test_as_many_evaluations_as_torchdiffeq(count, tolerance):
    t = torch.linspace(0, 8, count)
    ours, theirs = Counted(pendulum), Counted(pendulum)
    odeint(ours, START, t, rtol=tolerance, atol=tolerance)
    torchdiffeq.odeint(theirs, START, t, rtol=tolerance, atol=tolerance)
    assert ours.count <= 1.2 * theirs.count


def test_more_outputs_cost_no_evaluations():
    counts = []
    for count in (2, 7, 1000):
        func = Counted(pendulum)
        odeint(func, START, torch.linspace(0, 5, count))
        counts.append(func.count)
    assert counts[0] == counts[1] == counts[2]


def test_defaults_are_torchdiffeqs():
    t = torch.linspace(0, 3, 4)
    torch.testing.assert_close(
        odeint(pendulum, START, t), odeint(pendulum, START, t, method="dopri5", rtol=1e-7, atol=1e-9), rtol=0, atol=0
    )
    reference = torchdiffeq.odeint(pendulum, START, t, method="dopri8", rtol=1e-13, atol=1e-13)
    assert (odeint(pendulum, START, t) - reference).abs().max() < 1e-6


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3"])
def test_outputs_inside_a_step_are_as_accurate_as_the_dense_output_promises(method):
    """One step over the interval: the error at the outputs shrinks with the order of the interpolant plus one."""
    order = {"dopri5": 4, "tsit5": 4, "bosh3": 3}[method]
    errors = []
    for h in (0.4, 0.2):
        t = torch.linspace(0, h, 9)
        options = {"first_step": h, "max_num_steps": 1}
        found = odeint(pendulum, START, t, method=method, rtol=1e3, atol=1e3, options=options)
        reference = torchdiffeq.odeint(pendulum, START, t, method="dopri8", rtol=1e-13, atol=1e-13)
        errors.append((found - reference)[1:-1].abs().max().item())
    assert errors[1] < 1e-3
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.5)


def test_scipy_agrees():
    t = torch.linspace(0, 10, 21)
    found = odeint(pendulum, START, t, rtol=1e-10, atol=1e-10)

    def numpys(t: float, y):
        return pendulum(torch.tensor(t), torch.as_tensor(y)).numpy()

    reference = scipys_solve_ivp(numpys, (0, 10), START.numpy(), "DOP853", t.numpy(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, torch.as_tensor(reference.y).T, rtol=0, atol=1e-8)


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


def pair(t, state):
    x, v = state
    return v, -x.sum() * torch.ones_like(v) - 0.2 * v


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


# Options


def test_norm_sees_the_state_and_is_what_is_controlled():
    t, y0 = torch.tensor([0.0, 3.0]), torch.tensor([[1.0, 0.0]])

    def func(t, y):
        return torch.stack([y[:, 1], -y[:, 0] - 10 * (y[:, 1] - torch.cos(5 * t))], dim=1)

    counts = {}
    for name, norm in {
        "default": None,
        "rms": lambda x: x.pow(2).mean().sqrt(),
        "max": lambda x: x.abs().max(),
        "first": lambda x: (x.shape == (1, 2)) * x[0, 0].abs().item(),
    }.items():
        counted = Counted(func)
        options = {} if norm is None else {"norm": norm}
        odeint(counted, y0, t, rtol=1e-5, atol=1e-5, options=options)
        counts[name] = counted.count
    assert counts["default"] == counts["rms"]
    assert counts["max"] > counts["default"] > counts["first"]


def test_the_norm_of_a_tuple_is_the_largest_of_its_tensors():
    """Padding one tensor with idle entries changes nothing, as it would in a mean over all entries."""
    counts = []
    for idle in (1, 1000):
        y0 = (torch.tensor([1.0, 2.0]), torch.tensor([0.5, -0.5]), torch.zeros(idle))
        counted = Counted(lambda t, y: (*pair(t, y[:2]), torch.zeros_like(y[2])))
        odeint(counted, y0, torch.tensor([0.0, 10.0]))
        counts.append(counted.count)
    assert counts[0] == counts[1]
    seen = []

    def norm(state):
        seen.append(state)
        return max(part.abs().max() for part in state)

    odeint(pair, (torch.ones(2), torch.ones(2)), torch.tensor([0.0, 1.0]), options={"norm": norm})
    assert all(isinstance(state, tuple) and [part.shape for part in state] == [(2,), (2,)] for state in seen)
    assert seen


@pytest.mark.parametrize("form", ["element", "part"])
def test_tolerances_an_element_or_a_part(form):
    """A component without tolerance to speak of costs nothing; torchdiffeq takes the same."""
    y0 = (torch.ones(1), torch.ones(2))

    def func(t, y):
        return -y[0], torch.stack([torch.cos(30 * t), torch.sin(30 * t)])

    t = torch.tensor([0.0, 4.0])
    if form == "part":
        loose, args = {"rtol": (1e-6, 1e3), "atol": (1e-6, 1e3)}, (func, y0)
    else:
        loose = {"rtol": torch.tensor([1e-6, 1e3, 1e3]), "atol": torch.tensor([1e-6, 1e3, 1e3])}
        args = (lambda t, y: torch.cat(func(t, (y[:1], y[1:]))), torch.cat(y0))
    ours, theirs, tight = Counted(args[0]), Counted(args[0]), Counted(args[0])
    found = odeint(ours, args[1], t, **loose)
    torchdiffeq.odeint(theirs, args[1], t, **loose)
    odeint(tight, args[1], t, rtol=1e-6, atol=1e-6)
    assert ours.count < tight.count / 3
    assert ours.count <= 1.2 * theirs.count
    first = found[0][-1] if form == "part" else found[-1][:1]
    torch.testing.assert_close(first, torch.exp(-t[1:]), rtol=0, atol=1e-5)


def test_first_step_is_taken():
    func = Counted(lambda t, y: -y)
    odeint(func, torch.ones(1), torch.tensor([1.0, 0.0]), options={"first_step": 0.25})
    assert (func.seen[0][0], func.seen[1][0]) == (1.0, 1.0 - 0.25 / 5)


def test_safety_and_factors_set_the_steps():
    counts = []
    for options in ({}, {"safety": 0.5}, {"ifactor": 1.01, "first_step": 0.01}):
        func = Counted(pendulum)
        odeint(func, START, torch.tensor([0.0, 10.0]), options=options)
        counts.append(func.count)
    assert counts[1] > 1.3 * counts[0]
    assert counts[2] > 2 * counts[0]


# Rows at their own pace


def rates(t: Tensor, y: Tensor) -> Tensor:
    """Rows [4, 2] of different stiffness, with data a row in the closure."""
    assert y.shape == (4, 2)
    assert t.shape == (4, 1)
    return -RATES[:, None] * (y - torch.cos(t)) - y**3


RATES = torch.tensor([0.5, 40.0, 3.0, 200.0], dtype=torch.float64)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3"])
@both_ways
def test_batched_rows_are_solved_as_if_alone(method, direction, generator):
    y0 = torch.randn(4, 2, generator=generator)
    t = torch.linspace(0, 1, 6) if direction == "forward" else torch.linspace(0.01, 0, 4)
    found = odeint(rates, y0, t, method=method, rtol=1e-6, atol=1e-8, batched=True)
    for row in range(4):

        def alone(t: Tensor, y: Tensor, row: int = row) -> Tensor:
            return -RATES[row] * (y - torch.cos(t)) - y**3

        expected = odeint(alone, y0[row], t, method=method, rtol=1e-6, atol=1e-8)
        # The same steps; sums over columns may round differently.
        torch.testing.assert_close(found[:, row], expected, rtol=1e-10, atol=1e-12)


def test_batched_takes_tuples_and_norms_a_row():
    y0 = (torch.ones(3, 2), torch.ones(3))

    def func(t, y):
        assert t.shape == (3, 1)
        return -y[0] * t, -y[1] * t[:, 0]

    def norm(state):
        return torch.stack([state[0].abs().amax(dim=1), state[1].abs()]).amax(dim=0)

    found = odeint(func, y0, torch.tensor([0.0, 2.0]), batched=True, options={"norm": norm})
    assert [part.shape for part in found] == [(2, 3, 2), (2, 3)]
    torch.testing.assert_close(found[1][-1], torch.full((3,), math.exp(-2)), rtol=1e-6, atol=1e-8)


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
