"""The solutions of odeint, held against torchdiffeq, scipy and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq
from odeint_problems import FIXED, START, Counted, both_ways, pendulum, times
from scipy.integrate import solve_ivp as scipys_solve_ivp

from adjoint_meta.solvers.odeint import odeint, odeint_adjoint

ADAPTIVE = ["dopri5", "bosh3", "adaptive_heun", "fehlberg2"]
OPTIONS = {
    "t": {},
    "step size": {"step_size": 0.13},
    "whole step size": {"step_size": 0.1},
    "cubic": {"step_size": 0.13, "interp": "cubic"},
    "grid": {"grid_constructor": lambda func, y0, t: torch.cat([t[:1], (t[:1] + t[-1:]) / 2.1, t[-1:]])},
}


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
