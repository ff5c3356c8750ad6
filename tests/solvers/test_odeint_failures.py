"""What odeint says of funcs whose results do not fit, and of solves that fail."""

from __future__ import annotations

import math

import pytest
import torch
from odeint_problems import Y0, T, both_solvers, decay

from adjoint_meta.solvers.odeint import odeint
from adjoint_meta.solvers.solution import SolverError

# What func returns


@both_solvers
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize(
    ("func", "error", "message"),
    [
        (lambda t, y: y[:1], ValueError, r"the result of func must have shape \[2\], got \[1\]"),
        (lambda t, y: y[None], ValueError, r"must have shape \[2\], got \[1, 2\]"),
        (lambda t, y: y.sum(), ValueError, r"must have shape \[2\], got \[\]"),
        (lambda t, y: y.float(), TypeError, "must be torch.float64, got torch.float32"),
        (lambda t, y: y + 0j, TypeError, "must be torch.float64, got torch.complex128"),
        (lambda t, y: y.to("meta"), ValueError, "must be on cpu, got meta"),
        (lambda t, y: (y,), TypeError, r"the result of func must be a tensor of shape \[2\], got tuple"),
        (lambda t, y: 0.0, TypeError, r"must be a tensor of shape \[2\], got float"),
        (lambda t, y: None, TypeError, "got NoneType"),
    ],
)
def test_results_of_func(solve, method, func, error, message):
    with pytest.raises(error, match=message):
        solve(func, Y0, T, method=method)


@pytest.mark.parametrize("grad_mode", [True, False])
def test_a_func_that_changes_later(grad_mode):
    def func(t, y):
        return -y if t < 0.5 else -y.float()

    with (
        torch.set_grad_enabled(grad_mode),
        pytest.raises(TypeError, match=r"must be torch\.float64, got torch\.float32"),
    ):
        odeint(func, Y0.clone().requires_grad_(), T)


@pytest.mark.parametrize(
    ("func", "error", "message"),
    [
        (lambda t, y: y["x"], TypeError, r"the result of func must be a dict with the keys \['x', 'v'\]"),
        (lambda t, y: {"x": y["x"]}, ValueError, r"must have the keys \['x', 'v'\], as y0 has, got \['x'\]"),
        (lambda t, y: {**y, "w": y["x"]}, ValueError, "must have the keys"),
        (lambda t, y: {"x": y["x"], "v": y["x"]}, ValueError, r"func\['v'\] must have shape \[1\], got \[2\]"),
    ],
)
def test_results_of_func_for_dicts(func, error, message):
    with pytest.raises(error, match=message):
        odeint(func, {"x": torch.ones(2), "v": torch.ones(1)}, T)


def test_results_of_func_for_tuples():
    with pytest.raises(TypeError, match="the result of func must be a tuple of 2, as y0 is, got Tensor"):
        odeint(lambda t, y: y[0], (torch.ones(2), torch.ones(2)), T)
    with pytest.raises(ValueError, match="must be a tuple of 2, as y0 is, got one of 1"):
        odeint(lambda t, y: y[:1], (torch.ones(2), torch.ones(2)), T)
    found = odeint(lambda t, y: [y[0], -y[1]], (torch.ones(2), torch.ones(2)), T)
    assert isinstance(found, tuple)


def test_times_of_rows_that_broadcast_wrongly():
    with pytest.raises(ValueError, match=r"must have shape \[3\], got \[3, 3\]"):
        odeint(lambda t, y: (-y[0], -y[1] * t), (torch.ones(3, 2), torch.ones(3)), T, batched=True)


def test_errors_of_func_come_through():
    def func(t, y):
        raise RuntimeError("my own trouble")

    with pytest.raises(RuntimeError, match="my own trouble"):
        odeint(func, Y0, T)


# Solves that fail


@both_solvers
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "rk4"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_func_that_is_not_finite_from_the_start(solve, method, value):
    with pytest.raises(SolverError, match=r"func\(t\[0\], y0\) is NaN or infinite"):
        solve(lambda t, y: y * value, Y0, T, method=method)


@both_solvers
@pytest.mark.parametrize("method", ["dopri5", "euler"])
def test_a_func_that_stops_being_finite(solve, method):
    options = {"step_size": 0.1} if method == "euler" else {}
    with pytest.raises(SolverError, match="odeint failed in 1 of 1 rows"):
        solve(lambda t, y: torch.where(t > 0.5, torch.nan, -y), Y0, T, method=method, options=options)


@both_solvers
def test_a_solution_that_blows_up(solve):
    with pytest.raises(SolverError, match=r"step size fell below|stopped being finite"):
        solve(lambda t, y: y**2, Y0, torch.tensor([0.0, 2.0]))


@both_solvers
def test_fixed_steps_that_overflow(solve):
    with pytest.raises(SolverError, match="stopped being finite"):
        solve(lambda t, y: 1e3 * y**3, Y0, torch.linspace(0, 1, 30), method="euler")


def test_more_steps_than_allowed():
    with pytest.raises(SolverError, match="not reached within the steps allowed: allow more steps"):
        odeint(decay, Y0, T, options={"max_num_steps": 2})
    # The number counts for every output.
    assert torch.isfinite(odeint(decay, Y0, torch.linspace(0, 1, 50), options={"max_num_steps": 2})).all()


def test_the_rows_that_fail_are_named():
    y0 = torch.tensor([[0.1], [1.0], [0.2]])
    with pytest.raises(SolverError, match=r"failed in 1 of 3 rows \(row 1\)"):
        odeint(lambda t, y: y**2, y0, torch.tensor([0.0, 2.0]), batched=True)


def test_a_grid_that_is_another_one_the_second_time():
    grids = iter([torch.tensor([0.0, 0.4, 1.0]), torch.tensor([0.0, 0.6, 1.0])])
    t = T.clone().requires_grad_()
    ys = odeint(decay, Y0, t, method="rk4", options={"grid_constructor": lambda f, y, t: next(grids)})
    with pytest.raises(ValueError, match="must return the same grid"):
        ys.sum().backward()
