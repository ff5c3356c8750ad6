"""A step of RKC is the paper's recursion, of second order, with the published estimate of its error."""

from __future__ import annotations

import pytest
import torch
from chebyshev_references import DAMPING, MIXED, Diagonal, Forced, H, T, constants, drawn, rkc, textbook
from problems import Recorder
from references import STEPS, order_of_convergence, relative, runge_kutta

from adjoint_meta.solvers import TABLEAUS
from adjoint_meta.solvers.chebyshev import Chebyshev, interval

# The step


@pytest.mark.parametrize("damping", [DAMPING, 5.0])
@pytest.mark.parametrize("stages", [2, 3, 6, 40])
@pytest.mark.parametrize("h", [H, -H])
def test_a_step_is_the_papers_recursion(stages, damping, h, generator):
    field = Forced(generator)
    y = drawn(generator)
    expected = textbook(field, T, h, y, stages, damping)
    assert relative(rkc(stages, damping).step(field, T, h, y).end, expected) < 1e-13


@pytest.mark.parametrize("stages", [None, torch.tensor(MIXED)], ids=["alike", "mixed"])
def test_the_field_is_evaluated_at_the_nodes(stages):
    # On y' = 1 from y = 0 at t = 0 a stage's state is the time at which it must be evaluated.
    seen = []

    def clock(t, y):
        seen.append((t, y))
        return torch.ones_like(y)

    taken = rkc(9).step(clock, 0.0, 2.0, torch.zeros(len(MIXED), 2), stages=stages, estimate=True)
    assert len(seen) == 10 and torch.allclose(taken.end, torch.tensor(2.0), rtol=0, atol=1e-14)
    for t, y in seen:
        assert torch.allclose(torch.as_tensor(t).expand(len(MIXED), 1), y, rtol=0, atol=1e-14)
    nodes = 2 * torch.from_numpy(constants(9, DAMPING)[-1])
    assert torch.allclose(torch.stack([y[2, 0] for _, y in seen]), nodes, rtol=0, atol=1e-14)


@pytest.mark.parametrize("stages", [2, 3, 5, 12])
def test_solution_and_gradient_are_of_second_order(stages, generator):
    method, field = rkc(stages), Forced(generator)
    y0, w = drawn(generator, rows=2).requires_grad_(), drawn(generator, rows=2)
    y1 = runge_kutta(TABLEAUS["dopri5"], field, 0.0, 1.0, 64, y0)
    (gradient,) = torch.autograd.grad(y1, y0, w)

    def errors(steps: int) -> tuple[float, float]:
        h, y, tape = 1 / steps, y0.detach(), []
        for n in range(steps):
            taken = method.step(field, n * h, h, y)
            tape.append(taken.states)
            y = taken.end
        costate = w
        for n in reversed(range(steps)):
            costate = method.transpose(field, n * h, h, tape[n], costate).start
        return relative(y, y1.detach()), relative(costate, gradient)

    for found in zip(*map(errors, STEPS[2]), strict=True):
        assert order_of_convergence(STEPS[2], found) == pytest.approx(2, abs=0.15)


def test_the_number_of_stages_barely_matters_for_smooth_problems(generator):
    # The error constant tends to a limit as s grows: more stages buy stability, and cost no accuracy.
    field, y = Forced(generator), drawn(generator)
    exact = runge_kutta(TABLEAUS["dopri5"], field, T, T + H, 16, y)
    few, many = (relative(rkc(stages).step(field, T, H, y).end, exact) for stages in (6, 150))
    assert many < 2 * few < 1e-2


# The estimate, and the slope that the next step starts with


@pytest.mark.parametrize("stages", [2, 3, 10])
def test_the_error_estimate_is_the_published_one_and_of_third_order(stages, generator):
    field, method, y = Forced(generator), rkc(stages), drawn(generator)
    sizes = [0.1, 0.05, 0.025]
    found = []
    for h in sizes:
        taken = method.step(field, T, h, y, estimate=True)
        slope = field(T + h, taken.end)
        published = 0.8 * (y - taken.end) + 0.4 * h * (field(T, y) + slope)
        assert relative(taken.slope, slope) < 1e-14
        assert relative(taken.error, published) < 1e-9
        found.append(float(taken.error.norm()))
    assert order_of_convergence([1 / h for h in sizes], found) == pytest.approx(method.estimate_order + 1, abs=0.15)


def test_the_error_estimate_is_as_large_as_the_error(generator):
    field, y, h = Forced(generator), drawn(generator), 0.05
    taken = rkc(10).step(field, T, h, y, estimate=True)
    error = (taken.end - runge_kutta(TABLEAUS["dopri5"], field, T, T + h, 8, y)).norm()
    assert 0.5 < float(taken.error.norm() / error) < 2


def test_without_an_estimate_nothing_is_evaluated_at_the_end(generator):
    field = Recorder(Forced(generator))
    taken = rkc(6).step(field, T, H, drawn(generator))
    assert len(field.calls) == 6 and taken.error is None and taken.slope is None and len(taken.slopes) == 0


def test_a_known_slope_saves_an_evaluation_and_changes_nothing(generator):
    field, method = Recorder(Forced(generator)), rkc(6)
    one = method.step(field, T, H, drawn(generator), estimate=True)
    assert len(field.calls) == 7
    known = method.step(field, T + H, H, one.end, slope=one.slope, estimate=True)
    assert len(field.calls) == 7 + 6
    fresh = method.step(field, T + H, H, one.end, estimate=True)
    assert len(field.calls) == 7 + 6 + 7
    assert torch.equal(known.end, fresh.end) and torch.equal(known.error, fresh.error)
    # The slope is used, not only trusted to be right.
    assert not torch.equal(method.step(field, T + H, H, one.end, slope=2 * one.slope).end, known.end)


# Numbers


@pytest.mark.parametrize("stages", [None, torch.tensor(MIXED)], ids=["alike", "mixed"])
def test_float32_stays_float32_with_a_float64_time(stages, generator):
    field = Forced(generator)
    field.weight, field.force = field.weight.float(), field.force.float()
    y, h = drawn(generator).float(), torch.tensor(0.25, dtype=torch.float64)
    method = Chebyshev()
    taken = method.step(field, 0.0, h, y, stages=stages, estimate=True)
    pulled = method.transpose(field, 0.0, h, taken.states, y, stages=stages)
    tensors = (taken.end, taken.error, taken.slope, *taken.states)
    cotangents = (pulled.start, pulled.size, pulled.time, pulled.stretch, *pulled.parameters)
    assert {x.dtype for x in (*tensors, *cotangents)} == {torch.float32}


def test_rounding_grows_slowly_with_the_stages(generator):
    rates = -torch.linspace(0, interval(200, DAMPING), 500)[None].float()
    y = drawn(generator, rows=1, size=500).float()
    single = rkc(200).step(Diagonal(rates), 0.0, 1.0, y).end
    double = rkc(200).step(Diagonal(rates.double()), 0.0, 1.0, y.double()).end
    assert relative(single.double(), double) < 1e-4


def test_a_small_step_loses_no_digits_to_the_stages(generator):
    # The recursion in the states themselves is off by 170 units of float32 rounding here.
    y, rates = drawn(generator, rows=1, size=500).float(), -torch.ones(1, 500)
    end = rkc(50).step(Diagonal(rates.float()), 0.0, 1e-3, y).end
    exact = rkc(50).step(Diagonal(rates), 0.0, 1e-3, y.double()).end
    assert relative(end.double(), exact) < torch.finfo(torch.float32).eps


def test_inputs_are_left_as_they_were(generator):
    field, method, stages = Forced(generator), Chebyshev(), torch.tensor(MIXED)
    y, w = drawn(generator), drawn(generator)
    slope = field(T, y)
    before = [x.clone() for x in (y, w, slope, stages)]
    taken = method.step(field, T, H, y, slope=slope, stages=stages, estimate=True)
    states = [state.clone() for state in taken.states]
    method.transpose(field, T, H, taken.states, w, stages=stages)
    assert all(map(torch.equal, (y, w, slope, stages), before))
    assert all(map(torch.equal, taken.states, states))
