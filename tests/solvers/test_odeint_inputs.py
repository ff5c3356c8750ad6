"""What odeint refuses of its arguments, and what it says."""

from __future__ import annotations

import math

import pytest
import torch
from odeint_problems import Y0, T, both_solvers, decay

from adjoint_meta.solvers.odeint import odeint, odeint_adjoint


@both_solvers
@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        ([0.0, 2.0, 1.0], ValueError, r"strictly increasing or decreasing .* t\[1\] = 2 and t\[2\] = 1"),
        ([0.0, -1.0, 1.0], ValueError, r"got t\[1\] = -1 and t\[2\] = 1"),
        ([0.0, 1.0, 1.0], ValueError, r"t\[1\] = 1 and t\[2\] = 1"),
        ([1.0, 1.0], ValueError, r"t\[0\] = 1 and t\[1\] = 1"),
        ([], ValueError, r"at least one time, got \[0\]"),
        (0.5, ValueError, r"shape \[count\] with at least one time, got \[\]"),
        ([[0.0, 1.0]], ValueError, r"shape \[count\] .* got \[1, 2\]"),
        ([0.0, math.nan], ValueError, "t must be finite"),
        ([0.0, math.inf], ValueError, "t must be finite"),
    ],
)
def test_times(solve, t, error, message):
    with pytest.raises(error, match=message):
        solve(decay, Y0, torch.tensor(t), adjoint_params=()) if solve is odeint_adjoint else solve(
            decay, Y0, torch.tensor(t)
        )


@both_solvers
def test_times_that_are_no_tensor_of_numbers(solve):
    with pytest.raises(TypeError, match="t must be a tensor of times, got list"):
        solve(decay, Y0, [0.0, 1.0])
    with pytest.raises(TypeError, match=r"t must be floating point, got torch\.int64"):
        solve(decay, Y0, torch.tensor([0, 1]))


def test_times_that_the_precision_of_y0_cannot_tell_apart():
    with pytest.raises(ValueError, match=r"in torch\.float32, the precision of y0"):
        odeint(decay, Y0.float(), torch.tensor([1.0, 1.0 + 1e-9]))


@both_solvers
@pytest.mark.parametrize(
    ("y0", "error", "message"),
    [
        (torch.ones(2, dtype=torch.long), TypeError, "y0 must be floating point or complex, got torch.int64"),
        (torch.tensor([True]), TypeError, "got torch.bool"),
        ((torch.ones(1), torch.ones(2, dtype=torch.int)), TypeError, r"y0\[1\] must be floating point"),
        (torch.tensor([1.0, math.nan]), ValueError, "y0 must be finite"),
        ({"x": torch.tensor([math.inf])}, ValueError, r"y0\['x'\] must be finite"),
        ((), ValueError, "at least one tensor"),
        (1.0, TypeError, "y0 must be a tensor, or a tuple or dict of tensors, got float"),
        ({"x": 1.0}, TypeError, r"y0\['x'\] must be a tensor.*got float"),
        (None, TypeError, "got NoneType"),
        (torch.eye(2).to_sparse(), TypeError, r"y0 must be dense, got torch.sparse_coo; .*\.to_dense\(\)"),
    ],
)
def test_states(solve, y0, error, message):
    with pytest.raises(error, match=message):
        solve(decay, y0, T)


@pytest.mark.parametrize("y0", [torch.tensor(1.0), (torch.ones(2), torch.ones(3)), torch.ones(0, 3)])
def test_rows_that_do_not_fit(y0):
    with pytest.raises(ValueError, match="first axis of every tensor in y0 counts rows"):
        odeint(decay, y0, T, batched=True)


@both_solvers
@pytest.mark.parametrize("method", ["dopri5", "rk4", "dopri8"])
@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [-1e-3, math.nan, math.inf])
def test_tolerances(solve, method, name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite and at least 0"):
        solve(decay, Y0, T, method=method, **{name: value})


@pytest.mark.parametrize(
    ("tolerances", "error", "message"),
    [
        ({"rtol": 0.0, "atol": 0.0}, ValueError, "both 0"),
        ({"rtol": torch.tensor([1e-3, -1e-3])}, ValueError, "rtol must be finite and at least 0 everywhere"),
        ({"rtol": torch.tensor([1e-3] * 3)}, ValueError, r"rtol must broadcast to shape \[2\], got \[3\]"),
        ({"atol": torch.tensor(1e-3, requires_grad=True)}, ValueError, "atol cannot require a gradient"),
        ({"rtol": "tight"}, TypeError, "rtol must be a number, got 'tight'"),
    ],
)
def test_tolerances_of_other_kinds(tolerances, error, message):
    with pytest.raises(error, match=message):
        odeint(decay, Y0, T, **tolerances)


def test_tolerances_for_other_tensors_than_there_are():
    with pytest.raises(ValueError, match="rtol must be a tuple of 2, as y0 is, got one of 3"):
        odeint(lambda t, y: y, (Y0, Y0), T, rtol=(1e-3, 1e-3, 1e-3))


@both_solvers
@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (None, {"step_sise": 0.1}, "unknown option 'step_sise' for dopri5"),
        ("rk4", {"step_sise": 0.1}, "unknown option 'step_sise' for rk4; did you mean 'step_size'"),
        (
            "dopri5",
            {"step_size": 0.1},
            "option 'step_size' belongs to methods with fixed steps; dopri5 takes norm, first",
        ),
        (
            "rk4",
            {"first_step": 0.1},
            "option 'first_step' belongs to methods with a controlled error; rk4 takes norm, step_size",
        ),
        ("dopri5", {"stepsize": 1}, "unknown option 'stepsize' .*; did you mean 'step_size'.* with fixed steps"),
        ("rk4", {"maxstep": 1}, "unknown option 'maxstep' for rk4; did you mean 'max_step'.* with a controlled error"),
        ("dopri8", {"max_steps": 3}, "unknown option 'max_steps' for dopri8; did you mean 'max_step'"),
    ],
)
def test_unknown_options(solve, method, options, message):
    with pytest.raises(ValueError, match=message):
        solve(decay, Y0, T, method=method, options=options)


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        ("rk4", {"step_size": 0.0}, ValueError, "step_size must be positive"),
        ("rk4", {"step_size": -0.1}, ValueError, "step_size must be positive"),
        ("rk4", {"step_size": 0.1, "grid_constructor": lambda f, y, t: t}, ValueError, "two ways to say the same"),
        (
            "rk4",
            {"grid_constructor": lambda f, y, t: t / 2},
            ValueError,
            "end at t\\[-1\\] = 1, got a grid from 0 to 0.5",
        ),
        ("rk4", {"grid_constructor": lambda f, y, t: t[[0, 1, 0, 1]]}, ValueError, "strictly monotone"),
        ("rk4", {"grid_constructor": lambda f, y, t: [0.0, 1.0]}, ValueError, "must return a tensor"),
        ("rk4", {"interp": "quintic"}, ValueError, "unknown interpolation 'quintic'"),
        ("dopri5", {"first_step": 0.0}, ValueError, "first_step must be positive"),
        ("dopri5", {"first_step": -0.1}, ValueError, "first_step must be positive"),
        ("dopri5", {"safety": 1.5}, ValueError, "safety must be at most 1"),
        ("dopri5", {"dfactor": 1.5}, ValueError, "shrink below 1"),
        ("dopri5", {"max_num_steps": 0}, ValueError, "max_num_steps must be at least 1"),
        ("rk4", {"step_size": "a"}, TypeError, "step_size must be a number, got 'a'"),
        ("dopri5", {"first_step": "a"}, TypeError, "first_step must be a number, got 'a'"),
        ("dopri5", {"safety": [1]}, TypeError, r"safety must be a number, got \[1\]"),
        ("dopri5", {"dtype": "float32"}, TypeError, "'dtype' must be a floating-point dtype .*, got 'float32'"),
        ("dopri8", {"dtype": torch.int}, TypeError, "'dtype' must be a floating-point dtype .*, got torch.int32"),
        ("dopri5", [1], TypeError, r"options must be a dict of names and values, got \[1\]"),
        ("dopri5", {"norm": 2}, TypeError, "norm must be a function of a state, got int"),
        ("dopri5", {"norm": lambda y: y}, ValueError, r"norm must return 1 number\(s\), one a row, got shape \[2\]"),
    ],
)
def test_values_of_options(method, options, error, message):
    with pytest.raises(error, match=message):
        odeint(decay, Y0, T, method=method, options=options)


def test_unknown_method():
    with pytest.raises(ValueError, match="unknown method 'dopri6'; did you mean 'dopri8' or 'dopri5'"):
        odeint(decay, Y0, T, method="dopri6")


def test_a_func_that_is_none():
    with pytest.raises(TypeError, match="func must be a function of t and y, got Tensor"):
        odeint(Y0, Y0, T)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"adjoint_rtol": -1.0}, ValueError, "adjoint_rtol must be finite and at least 0"),
        ({"adjoint_atol": math.nan}, ValueError, "adjoint_atol must be finite"),
        ({"adjoint_method": "rk5"}, ValueError, "unknown adjoint_method 'rk5'"),
        ({"adjoint_options": {"nrom": "seminorm"}}, ValueError, "unknown adjoint option 'nrom' .* did you mean 'norm'"),
        (
            {"adjoint_method": "rk4", "adjoint_options": {"first_step": 1}},
            ValueError,
            "adjoint option 'first_step' belongs",
        ),
        ({"adjoint_options": {"snapshots": 0}}, ValueError, "snapshots must be at least 1"),
        ({"adjoint_options": 3}, TypeError, "adjoint_options must be a dict of names and values, got 3"),
        ({"adjoint_params": 3}, TypeError, "adjoint_params must be a tuple .* of tensors, got one int"),
        ({"adjoint_params": Y0}, TypeError, "adjoint_params must be a tuple .* of tensors, got one Tensor"),
        ({"adjoint_params": [1.0]}, TypeError, "adjoint_params must be tensors, got float"),
    ],
)
def test_arguments_of_the_adjoint(arguments, error, message):
    with pytest.raises(error, match=message):
        odeint_adjoint(decay, Y0, T, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"adjoint_rtol": 1e-3, "adjoint_atol": 1e-3},
        {"adjoint_method": "dopri8"},
        {"adjoint_method": "explicit_adams", "adjoint_options": {"step_size": 0.1, "max_order": 3}},
        {"adjoint_options": {"norm": "seminorm", "first_step": 0.1}},
        {"adjoint_options": {"norm": lambda state: 0.0}},
        {"adjoint_method": "rk4", "adjoint_options": {"step_size": 0.1}},
    ],
)
def test_arguments_of_the_adjoint_that_torchdiffeq_takes_change_nothing(arguments):
    y0 = Y0.clone().requires_grad_()
    found = torch.autograd.grad(odeint_adjoint(decay, y0, T, **arguments).sum(), y0)[0]
    assert torch.equal(found, torch.autograd.grad(odeint_adjoint(decay, y0, T).sum(), y0)[0])


def test_times_elsewhere_are_moved_with_a_warning():
    with (
        pytest.warns(UserWarning, match="t is on meta and is moved to cpu") as caught,
        pytest.raises(NotImplementedError),
    ):
        odeint(decay, Y0, T.to("meta"))
    assert caught[0].filename == __file__


def test_step_sizes_may_be_tensors():
    for method, name in (("rk4", "step_size"), ("dopri5", "first_step")):
        found = [odeint(decay, Y0, T, method=method, options={name: size}) for size in (0.25, torch.tensor(0.25))]
        assert torch.equal(*found)
