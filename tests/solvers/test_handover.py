"""What is left to torchdiffeq works as it does there."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torchdiffeq
from references import relative
from torch import nn

from adjoint_meta.solvers.odeint import odeint, odeint_adjoint, odeint_dense, odeint_event
from adjoint_meta.solvers.solution import SolverError

both_solvers = pytest.mark.parametrize(
    ("solve", "theirs"), [(odeint, torchdiffeq.odeint), (odeint_adjoint, torchdiffeq.odeint_adjoint)]
)


class Decay(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([0.5, 2.0]))

    def forward(self, t, y):
        return -self.rate * y + torch.cos(3 * t)


def T():
    return torch.tensor([0.0, 0.4, 1.0])


@both_solvers
@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "dopri8"},
        {"method": "explicit_adams", "options": {"step_size": 0.05}},
        {"method": "implicit_adams", "options": {"step_size": 0.05}},
        {"method": "fixed_adams", "options": {"step_size": 0.05}},
        {"options": {"max_step": 0.01}},
        {"options": {"min_step": 0.3}},
        {"options": {"step_t": torch.tensor([0.33], dtype=torch.float64)}},
        {"options": {"jump_t": torch.tensor([0.33], dtype=torch.float64)}},
        {"method": "rk4", "options": {"perturb": True}},
    ],
    ids=str,
)
def test_methods_and_options(solve, theirs, arguments):
    func, y0 = Decay(), torch.ones(2, requires_grad=True)
    inputs = [y0, func.rate]
    found, expected = (each(func, y0, T(), **arguments) for each in (solve, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    gradients = [torch.autograd.grad(ys.sum(), inputs) for ys in (found, expected)]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_idle_values_of_such_options_hand_nothing_over(monkeypatch):
    monkeypatch.setattr(torchdiffeq, "odeint", lambda *a, **k: pytest.fail("handed over"))
    idle = {"min_step": 0, "max_step": float("inf"), "step_t": None, "jump_t": None, "dtype": torch.float64}
    odeint(Decay(), torch.ones(2), T(), options=idle)
    odeint(Decay(), torch.ones(2), T(), method="rk4", options={"perturb": False})


def test_scipy():
    found = odeint(Decay(), torch.ones(2), T(), method="scipy_solver")
    torch.testing.assert_close(found, odeint(Decay(), torch.ones(2), T()).detach(), rtol=1e-5, atol=1e-6)


def test_time_in_another_precision():
    seen = []

    def func(t, y):
        seen.append(t)
        return -y

    y0 = torch.ones(2, dtype=torch.float32)
    found = odeint(func, y0, T(), rtol=1e-4, atol=1e-4, options={"dtype": torch.float64})
    expected = torchdiffeq.odeint(func, y0, T(), rtol=1e-4, atol=1e-4, options={"dtype": torch.float64})
    assert torch.equal(found, expected)


@both_solvers
def test_callbacks(solve, theirs):
    func = Decay()
    starts = []
    func.callback_step = lambda t0, y0, dt: starts.append(float(t0))
    solve(func, torch.ones(2), T(), method="euler", options={"step_size": 0.25})
    assert starts == [0.0, 0.25, 0.5, 0.75]


@both_solvers
def test_random_numbers_in_func_are_the_same_on_the_way_back(solve, theirs, generator):
    """Dropout: the graph keeps the masks that there were, and the random numbers are those of torchdiffeq alone."""
    net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2))

    def run(solve):
        torch.manual_seed(7)
        ys = solve(lambda t, y: net(y), torch.ones(2), T(), method="euler", options={"step_size": 0.1})
        return ys, torch.autograd.grad(ys.sum(), list(net.parameters()))

    if solve is odeint:
        ys, gradients = run(odeint)
        expected, expected_gradients = run(torchdiffeq.odeint)
        assert torch.equal(ys, expected)
        assert all(torch.equal(*pair) for pair in zip(gradients, expected_gradients, strict=True))
    else:
        run(solve)  # as random as torchdiffeq's adjoint
        y0 = torch.ones(2, requires_grad=True)
        solve(lambda t, y: net(y), y0, T(), adjoint_params=net.parameters(), rtol=1e3).sum().backward()


@both_solvers
@pytest.mark.parametrize(
    "arguments", [{"method": "dopri8"}, {"method": "explicit_adams"}, {"options": {"max_step": 0.1}}], ids=str
)
def test_results_of_func_are_checked(solve, theirs, arguments):
    with pytest.raises(ValueError, match=r"the result of func must have shape \[3\], got \[2\]"):
        solve(lambda t, y: y[:2], torch.ones(3), T(), **arguments)
    with pytest.raises(TypeError, match=r"the result of func must be torch.float64, got torch.float32"):
        solve(lambda t, y: -y.float(), torch.ones(3), T(), **arguments)


def test_the_check_draws_no_random_numbers():
    def run(solve):
        torch.manual_seed(7)
        return solve(lambda t, y: -y + torch.rand(2), torch.ones(2), T(), method="explicit_adams")

    assert torch.equal(run(odeint), run(torchdiffeq.odeint))


# Events


def falling(t, state):
    speed = state[1]
    return speed, torch.full_like(speed, -9.81)


@both_solvers
def test_event_fn(solve, theirs):
    state = (torch.tensor([10.0]), torch.tensor([0.0]))
    t = torch.tensor([0.0, 1.0])
    arguments = {"event_fn": lambda t, y: y[0], "rtol": 1e-8, "atol": 1e-8}
    if solve is odeint_adjoint:
        arguments["adjoint_params"] = ()
    event, ys = solve(falling, state, t, **arguments)
    assert event.item() == pytest.approx((20 / 9.81) ** 0.5, rel=1e-6)
    torch.testing.assert_close(ys[0][-1], torch.zeros(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("interface", [None, odeint, odeint_adjoint])
def test_odeint_event_reaches_its_gradients(interface):
    height = torch.tensor([10.0], requires_grad=True)
    arguments = {} if interface is None else {"odeint_interface": interface}
    event, _ = odeint_event(
        falling,
        (height, torch.tensor([0.0])),
        torch.tensor(0.0),
        event_fn=lambda t, y: y[0],
        rtol=1e-8,
        atol=1e-8,
        **arguments,
    )
    (found,) = torch.autograd.grad(event, height)
    assert found.item() == pytest.approx(1 / (2 * 9.81 * 10) ** 0.5, rel=1e-5)


def test_odeint_dense():
    solution = odeint_dense(lambda t, y: -y, torch.ones(2), torch.tensor(0.0), torch.tensor(3.0))
    torch.testing.assert_close(solution(torch.tensor(1.3)), torch.full((2,), -1.3).exp(), rtol=1e-5, atol=1e-6)


# Transforms


def test_transforms_of_torch_func():
    y0, t = torch.tensor([1.0, 2.0]), torch.linspace(0, 1, 11)

    def end(y0):
        return odeint(lambda t, y: -y * y, y0, t, method="rk4")[-1]

    expected = 1 / (1 + y0) ** 2
    found = torch.func.grad(lambda y0: end(y0).sum())(y0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.func.jvp(end, (y0,), (torch.ones(2),))[1], found)
    torch.testing.assert_close(torch.func.jacrev(end)(y0).diagonal(), found)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(y0, torch.ones(2))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(end(dual)).tangent, found)


# What torchdiffeq has not either


@pytest.mark.parametrize(
    ("y0", "arguments"),
    [
        ({"x": torch.ones(2)}, {"method": "dopri8"}),
        (torch.ones(2, 1), {"method": "dopri8", "batched": True}),
        (torch.ones(2), {"method": "tsit5", "options": {"max_step": 0.1}}),
        ((torch.ones(2), (torch.ones(1),)), {"event_fn": lambda t, y: t}),
    ],
)
def test_what_torchdiffeq_cannot_do_either(y0, arguments):
    with pytest.raises(ValueError, match="is left to torchdiffeq, which knows no batched=True, no tsit5"):
        odeint(lambda t, y: y, y0, torch.tensor([0.0, 1.0]), **arguments)


def test_assertions_become_solver_errors():
    with pytest.raises(
        SolverError, match=r"torchdiffeq, to which method='dopri8' is left, failed: underflow|non-finite"
    ):
        odeint(lambda t, y: y**2, torch.ones(1), torch.tensor([0.0, 2.0]), method="dopri8")


def test_parameters_for_its_adjoint_are_found_in_closures():
    func = Decay()
    odeint_adjoint(lambda t, y: func(t, y), torch.ones(2), T(), method="dopri8").sum().backward()
    expected = func.rate.grad
    func.rate.grad = None
    torchdiffeq.odeint_adjoint(func, torch.ones(2), T(), method="dopri8").sum().backward()
    assert relative(expected, func.rate.grad) < 1e-12


def test_torchdiffeq_is_imported_only_when_it_is_needed(root):
    code = (
        "import sys, torch\n"
        "from adjoint_meta.solvers.odeint import odeint\n"
        "odeint(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]))\n"
        "sys.exit('torchdiffeq' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
