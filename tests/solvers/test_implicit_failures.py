"""An implicit step that fails says so, row by row, and wrong arguments are refused."""

from __future__ import annotations

import math

import pytest
import torch
from implicit_problems import Gradient, H, T, WithPotential, draw, every_method, some_convex, some_wells
from problems import LinearField
from references import relative

from adjoint_meta.solvers import SDIRK2, Discrete, ImplicitEuler, SolverError, Status, UniformGrid, UniformSteps

# Steps


@every_method
def test_rows_that_fail_say_so_and_leave_the_others_alone(method, generator):
    field, y = some_wells(WithPotential, generator), 0.3 * draw(generator, rows=4)
    y[0] = 0.0
    y[1, 2], y[3, 0] = math.nan, math.inf
    stepper = method(newton_steps=2)
    taken, infos = stepper.solve(field, 0.0, 50.0, y)
    assert infos[0].status == [Status.SUCCESS, Status.NON_FINITE, Status.NEWTON, Status.NON_FINITE]
    assert torch.equal(taken.codes, infos[0].codes)
    assert torch.equal(taken.end[0], y[0]) and torch.isfinite(taken.end[2]).all()
    patient = method().step(field, 0.0, 50.0, y)
    alone = method().step(field, 0.0, 50.0, y[2:3])
    assert patient.codes[2] == Status.SUCCESS.code
    assert relative(patient.end[2], alone.end[0]) < 1e-12


def test_a_failure_of_the_first_stage_is_not_forgotten():
    # Nothing is left to do at the time of the second stage, which therefore succeeds.
    field = WithPotential(lambda t, y: (t < 0.5) * y.square().exp().sum(dim=1))
    taken, infos = SDIRK2(newton_steps=1).solve(field, 0.0, 1.0, torch.tensor([[2.0, 1.0], [0.0, 0.0]]))
    assert [info.status[0] for info in infos] == [Status.NEWTON, Status.SUCCESS]
    assert taken.codes.tolist() == [Status.NEWTON.code, Status.SUCCESS.code]


def test_a_potential_of_another_field_is_found_out(generator):
    field, y = some_wells(WithPotential, generator), draw(generator)
    field.potential = lambda t, y: -10 * field.energy(t, y, *field.parameters)
    taken, (info,) = ImplicitEuler().solve(field, 0.0, 0.1, y)
    assert info.status == [Status.NEWTON] * 3 and torch.equal(taken.end, y)
    # Nothing is tried again where nothing has changed.
    assert field.values <= 3 and field.pullbacks <= 8


def test_a_field_that_is_not_a_gradient_is_found_out(generator):
    # A rotation: its vjp is not its jvp, so Newton's directions are wrong, but never the verdict.
    turn = torch.tensor([[0.0, 4.0], [-4.0, 0.0]])
    y = draw(generator, 3, 2)
    field = LinearField(turn.expand(3, 2, 2), torch.zeros(3, 2))
    taken = ImplicitEuler().step(field, 0.0, 1.0, y)
    exact = torch.linalg.solve(torch.eye(2) + turn, y[:, :, None])[:, :, 0]
    done = taken.codes == Status.SUCCESS.code
    assert torch.allclose(taken.end[done], exact[done], atol=1e-8)
    assert not done.all()


def test_the_advice_names_what_can_be_changed():
    assert all(word in Status.NEWTON.value for word in ("shorter", "newton_tol", "potential", "symmetric"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"newton_tol": 0.0}, ValueError, "newton_tol must be positive"),
        ({"newton_tol": "tight"}, TypeError, "newton_tol must be a number, got 'tight'"),
        ({"newton_steps": 0}, ValueError, "newton_steps must be at least 1"),
        ({"newton_steps": 2.5}, TypeError, "newton_steps must be a whole number"),
        ({"cg_tol": -1e-3}, ValueError, "cg_tol must be positive"),
        ({"cg_tol": math.nan}, ValueError, "cg_tol must be positive"),
        ({"cg_steps": 0}, ValueError, "cg_steps must be at least 1"),
        ({"cg_steps": True}, TypeError, "cg_steps must be a whole number"),
    ],
)
@every_method
def test_wrong_settings(method, arguments, error, message):
    with pytest.raises(error, match=message):
        method(**arguments)


@every_method
def test_wrong_arguments(method, generator):
    field, y = some_convex(WithPotential, generator), draw(generator)
    stepper = method()
    states = stepper.step(field, T, H, y).states
    for h in (torch.ones(3), torch.ones(1, 3), torch.ones(2, 1)):
        with pytest.raises(ValueError, match=r"h must be a number, or one a row of shape \[3, 1\], got"):
            stepper.step(field, T, h, y)
        with pytest.raises(ValueError, match="h must be a number"):
            stepper.transpose(field, T, h, states, y)
    for h in ("0.1", None, True):
        with pytest.raises(TypeError, match="h must be a number or a tensor, got"):
            stepper.step(field, T, h, y)
    with pytest.raises(ValueError, match=r"the state must have shape \[rows, P\]"):
        stepper.step(field, T, H, y[0])
    with pytest.raises(TypeError, match="the state must be floating point"):
        stepper.step(field, T, H, y.long())
    with pytest.raises(TypeError, match=r"a field with vjp.*function has none"):
        stepper.step(lambda t, y: -y, T, H, y)
    with pytest.raises(ValueError, match=f"has {len(states)} states, got 1"):
        stepper.transpose(field, T, H, states[-1:], y)
    with pytest.raises(ValueError, match=r"the cotangent must have shape \[3, 4\], got \[3, 3\]"):
        stepper.transpose(field, T, H, states, y[:, :3])
    with pytest.raises(TypeError, match=r"the cotangent must be torch\.float64"):
        stepper.transpose(field, T, H, states, y.float())


def test_wrong_fields(generator):
    y = draw(generator)
    with pytest.raises(ValueError, match=r"potential must return one value a row, \[3\], not \[\]"):
        ImplicitEuler().step(WithPotential(lambda _, y: y.square().sum()), T, H, y)
    short = some_convex(Gradient, generator)
    short.__class__ = type("Short", (Gradient,), {"__call__": lambda self, t, y: y[:, :2]})
    with pytest.raises(ValueError, match=r"the field's value must have shape \[3, 4\], got \[3, 2\]"):
        ImplicitEuler().step(short, T, H, y)


# Solves


def test_a_failed_step_fails_the_solve(generator):
    field, y = some_wells(WithPotential, generator), 0.3 * draw(generator)
    y[1] = 0.0
    solve = Discrete().solve(UniformSteps(ImplicitEuler(newton_steps=1), UniformGrid(0.0, 50.0, 2)), field, y)
    with pytest.raises(SolverError, match=r"2 of 3 rows \(row 0, 2\): Newton's method did not solve"):
        solve.raise_if_failed()
