from __future__ import annotations

import math

import pytest
import torch
from problems import symmetric
from references import relative
from row_problems import PAIRS, Elementwise, RowLinear, adaptive, mixed, names, recorded, replay

from adjoint_meta.solvers import TABLEAUS, Guard, PIController, RowSteps, RungeKutta

every_pair = pytest.mark.parametrize("name", PAIRS)
freely_or_guarded = pytest.mark.parametrize("guard", [None, Guard()], ids=["free", "guarded"])


# Failures


def test_too_few_steps_end_in_step_limit_where_they_had_come_to(generator):
    field, y = mixed(generator, rates=(0.3, 100.0))
    solved, steps, _ = recorded(adaptive(max_steps=60), field, y)
    assert names(solved) == ["SUCCESS", "STEP_LIMIT"]
    assert int(solved.statistics.accepted[1] + solved.statistics.rejected[1]) == 60
    assert relative(replay(TABLEAUS["dopri5"], field, steps, y), solved.end) < 1e-13


@every_pair
@freely_or_guarded
def test_a_solution_that_blows_up_is_told_and_spoils_no_other(name, guard):
    # y' = y² from 1 has no solution beyond t = 1; from 0.1 it is 1 / (10 − t).
    controller = PIController(1e-3, 1e-6)
    solved = adaptive(name, 3.0, controller=controller, guard=guard).integrate(
        Elementwise(lambda t, y: y**2), torch.tensor([[1.0], [0.1]])
    )
    assert names(solved)[0] in ("UNDERFLOW", "NON_FINITE") and names(solved)[1] == "SUCCESS"
    assert float(solved.end[1]) == pytest.approx(1 / 7, rel=1e-2)


def test_steps_that_move_the_state_but_not_the_time_underflow():
    # With an absolute tolerance alone, steps near the singularity are accepted however short they are.
    field, y = Elementwise(lambda t, y: y**2), torch.tensor([[1.0], [0.1]])
    solved = adaptive("dopri5", 3.0, controller=PIController(0.0, 1.0)).integrate(field, y)
    assert names(solved) == ["UNDERFLOW", "SUCCESS"]
    assert int(solved.statistics.accepted[0]) < 5000


def test_the_first_step_may_be_shorter_than_the_time_resolves():
    # Around t = 10⁷ float32 resolves whole numbers only.
    y = torch.zeros(1, 1, dtype=torch.float32)
    solved = adaptive(t0=1e7, t1=1e7 + 100, tol=1e-3).integrate(Elementwise(lambda t, y: 0.1 - 0.01 * y), y)
    assert names(solved) == ["SUCCESS"]
    assert float(solved.end) == pytest.approx(10 * (1 - math.exp(-1)), rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t1", [1.0, math.inf])
@freely_or_guarded
def test_a_field_that_is_not_a_number(dtype, t1, guard):
    def f(t, y):
        return torch.where(y > 2, torch.nan, torch.where(y > 0.5, y, -y))

    # At the start, in the middle, and nowhere.
    y = torch.tensor([[3.0, 3.0], [1.5, 1.6], [0.3, 0.2]], dtype=dtype)
    solved = adaptive("bosh3", t1, 1e-3, guard=guard, steady=1e-3).integrate(Elementwise(f), y)
    assert names(solved) == ["NON_FINITE", "NON_FINITE", "SUCCESS"]
    assert torch.equal(solved.end[0], y[0])
    # It got as far as it could: to where the larger entry meets 2.
    assert float(solved.end[1, 1]) == pytest.approx(2.0, rel=1e-2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@freely_or_guarded
def test_an_initial_state_that_is_not_finite(value, guard, generator):
    field, y = mixed(generator)
    expected = adaptive(guard=guard).integrate(field, y)
    y[1, 2] = value
    solved = adaptive(guard=guard).integrate(field, y)
    assert names(solved) == ["SUCCESS", "NON_FINITE", "SUCCESS", "SUCCESS"]
    assert torch.allclose(solved.end[[0, 2, 3]], expected.end[[0, 2, 3]], rtol=1e-12)


def test_a_step_that_would_have_to_vanish_underflows():
    # A jump of the slope by far more than the tolerance, wherever the step ends.
    def f(t, y):
        return torch.where(torch.as_tensor(t) < 0.5, 0.0, 1e12) + 0 * y

    solved = adaptive(controller=PIController(0.0, 1e-8), t1=1.0).integrate(Elementwise(f), torch.zeros(1, 1))
    assert names(solved) == ["UNDERFLOW"]


def test_an_entry_at_zero_without_absolute_tolerance():
    y = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    solved = adaptive(controller=PIController(1e-6, 0.0), t1=1.0).integrate(Elementwise(lambda t, y: 2 - y), y)
    assert names(solved) == ["SUCCESS"] * 2
    assert relative(solved.end, 2 + (y - 2) * math.exp(-1)) < 1e-5
    assert int(solved.statistics.accepted.max()) < 100


def test_an_interval_without_length_is_over_at_once():
    y = torch.ones(2, 1)
    solved = adaptive(t0=1.0, t1=1.0).integrate(Elementwise(lambda t, y: -y), y)
    assert names(solved) == ["SUCCESS"] * 2 and torch.equal(solved.end, y)
    assert not solved.statistics.accepted.any()


# The steady state


@every_pair
@pytest.mark.parametrize("t1", [math.inf, 1e6, -math.inf])
def test_rows_stop_where_the_field_has_fallen_under_the_tolerance(name, t1, generator):
    sign = math.copysign(1.0, t1)
    a = sign * symmetric(generator, torch.tensor([[0.5, 1.0, 2.0], [5.0, 1.0, 20.0], [1.0, 1.0, 1.0]]))
    b = torch.randn(3, 3, generator=generator)
    y = b + torch.tensor([[1.0], [1.0], [1e-5]])
    field = RowLinear(a, b)
    solved, steps, starts = recorded(adaptive(name, t1, 1e-3, steady=1e-3, guard=Guard()), field, y)
    assert names(solved) == ["SUCCESS"] * 3
    assert torch.all(field(0.0, solved.end).norm(dim=1) <= 1e-3)
    # Not before, and the last row at once.
    assert len(steps[2]) == 0 and torch.equal(solved.end[2], y[2])
    for row in (0, 1):
        last = starts[row][-1]
        assert float((a[row] @ (last - b[row])).norm()) > 1e-3


def test_at_the_edge_of_stability_nothing_comes_to_rest(generator):
    # Error control alone lets the steep entry swing within the tolerance, and f with it, for ever.
    a, b = symmetric(generator, torch.tensor([[5.0, 1.0, 20.0]])), torch.zeros(1, 3)
    solved = adaptive(t1=math.inf, tol=1e-3, steady=1e-3, max_steps=500).integrate(RowLinear(a, b), torch.ones(1, 3))
    assert names(solved) == ["STEP_LIMIT"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tolerance_below_rounding_is_told_and_not_chased(generator, dtype):
    (a,) = symmetric(generator, torch.tensor([[1.0, 10.0, 50.0]])).to(dtype)
    force = (100 * torch.randn(3, generator=generator)).to(dtype)
    plan = adaptive("bosh3", math.inf, 1e-3, steady=1e-30, guard=Guard(), max_steps=2000)
    solved = plan.integrate(Elementwise(lambda t, y: force - y @ a), torch.zeros(2, 3, dtype=dtype))
    assert names(solved) == ["STAGNATION", "STAGNATION"]
    assert relative(solved.end[0], torch.linalg.solve(a, force)) < 1000 * torch.finfo(dtype).eps
    assert int(solved.statistics.accepted.max()) < 1500


def test_an_end_before_the_steady_state_is_the_end(generator):
    a, b = symmetric(generator, torch.tensor([[0.5, 1.0]])), torch.zeros(1, 2)
    y = torch.ones(1, 2)
    found = adaptive(t1=0.3, steady=1e-3).integrate(RowLinear(a, b), y)
    assert torch.equal(found.end, adaptive(t1=0.3).integrate(RowLinear(a, b), y).end)


# Wrong arguments


def test_a_method_that_cannot_estimate_its_error_is_refused(generator):
    field, y = mixed(generator)
    with pytest.raises(ValueError, match=r"rk4 has no estimate of its error"):
        RowSteps(RungeKutta(TABLEAUS["rk4"]), 0.0, 1.0, PIController()).integrate(field, y)
    with pytest.raises(ValueError, match=r"heun has no slope at the end of its step"):
        RowSteps(RungeKutta(TABLEAUS["heun"]), 0.0, 1.0, PIController()).integrate(field, y)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1"),
        ({"max_steps": 1.5}, TypeError, "max_steps must be a whole number"),
        ({"steady": -1.0}, ValueError, "steady must be finite and at least 0"),
        ({"t1": math.inf}, ValueError, "t1 infinite with steady above 0, got t1=inf"),
        ({"t1": math.nan, "steady": 1e-3}, ValueError, "t1 must be finite.*got t1=nan"),
        ({"t0": -math.inf, "steady": 1e-3}, ValueError, "t0 must be finite.*got t0=-inf"),
    ],
)
def test_wrong_settings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        adaptive(**arguments)
