"""A Runge-Kutta step is that of its tableau: the textbook's, torchdiffeq's, row by row, with no evaluation in vain."""

from __future__ import annotations

import pytest
import torch
from problems import Recorder, TanhField
from references import relative, runge_kutta
from tableau_references import ALL, DENSE, ROUNDING, H, T, every_dense, every_tableau, on_paper, two_rows
from torchdiffeq import odeint

from adjoint_meta.solvers import TABLEAUS, RungeKutta
from adjoint_meta.solvers.runge_kutta import combine
from adjoint_meta.solvers.stepper import add

every_pair = pytest.mark.parametrize("tableau", [t for t in [*ALL.values(), DENSE["heun"]] if t.embedded])

# What it says of itself


@every_tableau
def test_a_method_is_its_tableau(tableau):
    stepper = RungeKutta(tableau)
    assert (stepper.name, stepper.order) == (tableau.name, tableau.order)
    assert stepper.estimate_order == (0 if tableau.embedded is None else tableau.order - 1)
    assert stepper.stages(torch.ones(2)) is None
    assert stepper.limit() == tableau.stability_limit
    assert stepper == RungeKutta(tableau)


# Steps


@every_tableau
def test_the_field_is_evaluated_at_the_nodes(tableau, generator):
    field = Recorder(TanhField(generator, time=1.0))
    y = torch.randn(2, 3, generator=generator)
    taken = RungeKutta(tableau).step(field, T, H, y)
    nodes = [T + float(node) * H for node in tableau.c[: tableau.solution_stages]]
    assert [t for t, _ in field.calls] == pytest.approx(nodes, abs=1e-15)
    assert torch.equal(field.calls[0][1], y)
    assert all(torch.equal(state, seen) for state, (_, seen) in zip(taken.states, field.calls, strict=True))


@every_tableau
def test_a_step_is_the_textbook_formula(tableau, generator):
    field = TanhField(generator, time=1.0)
    y = torch.randn(2, 3, generator=generator)
    expected = runge_kutta(tableau, field, T, T + H, 1, y)
    assert relative(RungeKutta(tableau).step(field, T, H, y).end, expected) < 1e-15


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2"), ("heun3", "heun3"), ("rk4_38", "rk4")],
)
def test_a_step_is_torchdiffeqs(name, theirs, generator):
    field = TanhField(generator, time=1.0)
    y = torch.randn(2, 3, generator=generator)
    expected = odeint(field, y, torch.tensor([T, T + H]), method=theirs)[-1]
    assert relative(RungeKutta(ALL[name]).step(field, T, H, y).end, expected) < 1e-15


def test_rk4_is_kuttas_classical_method(generator):
    # Written out, since torchdiffeq's "rk4" is the 3/8 rule.
    f = TanhField(generator, time=1.0)
    y = torch.randn(2, 3, generator=generator)
    k1 = f(T, y)
    k2 = f(T + H / 2, y + H / 2 * k1)
    k3 = f(T + H / 2, y + H / 2 * k2)
    k4 = f(T + H, y + H * k3)
    expected = y + H / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    assert relative(RungeKutta(TABLEAUS["rk4"]).step(f, T, H, y).end, expected) < 1e-15


@every_tableau
def test_without_an_estimate_only_the_solution_is_computed(tableau, generator):
    field = TanhField(generator)
    taken = RungeKutta(tableau).step(field, T, H, torch.randn(2, 3, generator=generator))
    assert len(taken.states) == tableau.solution_stages
    assert (taken.error, taken.slope, taken.slopes, taken.codes) == (None, None, (), None)


@every_pair
def test_the_estimate_is_the_difference_to_the_embedded_method(tableau, generator):
    field = Recorder(TanhField(generator, time=1.0))
    y = torch.randn(2, 3, generator=generator)
    taken = RungeKutta(tableau).step(field, T, H, y, estimate=True)
    assert len(field.calls) == tableau.stages and len(taken.states) == tableau.solution_stages
    end, slopes = on_paper(tableau, field.field, T, H, y)
    assert relative(taken.end, end) < 1e-15
    assert len(taken.slopes) == tableau.stages
    assert all(relative(found, slope) < 1e-14 for found, slope in zip(taken.slopes, slopes, strict=True))
    embedded = y + H * sum(float(weight) * slope for weight, slope in zip(tableau.embedded, slopes, strict=True))
    # Relative to the solution: the two agree in most of their digits.
    assert (taken.error - (end - embedded)).norm() < 1e-15 * end.norm()
    assert taken.error.norm() > 1e-9 * end.norm()


@every_dense
def test_the_last_slope_is_f_at_the_end(tableau, generator):
    field = TanhField(generator, time=1.0)
    taken = RungeKutta(tableau).step(field, T, H, torch.randn(2, 3, generator=generator), estimate=True)
    assert relative(taken.slope, field(T + H, taken.end)) < 1e-15
    assert taken.slope is taken.slopes[-1]
    assert len(taken.slopes) == tableau.stages and len(taken.states) == tableau.solution_stages


@pytest.mark.parametrize("name", ["heun", "fehlberg2"])
def test_a_method_whose_last_stage_is_not_the_end_returns_no_slope(name, generator):
    taken = RungeKutta(ALL[name]).step(TanhField(generator), T, H, torch.ones(2, 3), estimate=True)
    assert taken.slope is None and taken.error is not None


@every_dense
@pytest.mark.parametrize("estimate", [False, True])
def test_a_known_slope_saves_an_evaluation(tableau, estimate, generator):
    field = Recorder(TanhField(generator, time=1.0))
    y, stepper = torch.randn(2, 3, generator=generator), RungeKutta(tableau)
    expected = stepper.step(field, T, H, y, estimate=estimate)
    evaluations = len(field.calls)
    found = stepper.step(field, T, H, y, slope=field.field(T, y), estimate=estimate)
    assert len(field.calls) == 2 * evaluations - 1
    assert torch.equal(found.end, expected.end)
    assert all(torch.equal(x, z) for x, z in zip(found.states, expected.states, strict=True))
    assert all(torch.equal(x, z) for x, z in zip(found.slopes, expected.slopes, strict=True))


@every_tableau
def test_the_states_alone_cost_one_evaluation_less(tableau, generator):
    field = Recorder(TanhField(generator, time=1.0))
    y, stepper = torch.randn(2, 3, generator=generator), RungeKutta(tableau)
    found = stepper.states(field, T, H, y)
    assert len(field.calls) == tableau.solution_stages - 1
    expected = stepper.step(field, T, H, y).states
    assert all(torch.equal(x, z) for x, z in zip(found, expected, strict=True))


@every_dense
def test_every_row_may_have_its_own_time_and_size(tableau, generator):
    field, stepper = TanhField(generator, time=2.0), RungeKutta(tableau)
    y, w = two_rows(generator)
    times, sizes = torch.tensor([[0.2], [1.3]]), torch.tensor([[0.1], [0.4]])
    together = stepper.step(field, times, sizes, y, estimate=True)
    pulled = stepper.transpose(field, times, sizes, together.states, w)
    parameters = [torch.zeros_like(parameter) for parameter in field.parameters]
    for row in range(2):
        one, t, h = slice(row, row + 1), float(times[row]), float(sizes[row])
        alone = stepper.step(field, t, h, y[one], estimate=True)
        expected = stepper.transpose(field, t, h, alone.states, w[one])
        assert relative(together.end[one], alone.end) < 1e-15
        if tableau.embedded is not None:
            assert (together.error[one] - alone.error).norm() < 1e-15
        assert relative(together.slope[one], alone.slope) < 1e-14
        assert relative(pulled.start[one], expected.start) < ROUNDING
        assert relative(pulled.size[one], expected.size) < ROUNDING
        assert relative(pulled.time[one], expected.time) < ROUNDING
        assert relative(pulled.stretch[one], expected.stretch) < ROUNDING
        parameters = [x + z for x, z in zip(parameters, expected.parameters, strict=True)]
    for found, summed in zip(pulled.parameters, parameters, strict=True):
        assert relative(found, summed) < ROUNDING


@every_dense
def test_float32_stays_float32_with_a_float64_time(tableau, generator):
    field, stepper = TanhField(generator), RungeKutta(tableau)
    field.weight, field.bias, field.drift = (x.float() for x in (field.weight, field.bias, field.drift))
    y = torch.randn(2, 3, generator=generator).float()
    h = torch.tensor(0.25, dtype=torch.float64)
    taken = stepper.step(field, 0.0, h, y, estimate=True)
    outputs = [
        (tableau.dense_weights(0.5), y),
        (tableau.dense_weights(torch.rand((2, 1), generator=generator).float()), y),
    ]
    pulled = stepper.transpose(field, 0.0, h, [*taken.states, taken.end], y, outputs=outputs)
    tensors = [taken.end, *taken.states, taken.slope, *taken.slopes]
    tensors += [taken.error] if tableau.embedded is not None else []
    tensors += [pulled.start, pulled.size, pulled.stretch, *pulled.parameters]
    assert {x.dtype for x in tensors} == {torch.float32}


# The pieces


def test_inputs_are_left_as_they_were(generator):
    field, tableau = TanhField(generator), TABLEAUS["dopri5"]
    stepper, slope = RungeKutta(tableau), torch.randn(2, 3, generator=generator)
    y, w = two_rows(generator)
    inputs = (y, w, slope)
    before = [x.clone() for x in inputs]
    taken = stepper.step(field, 0.0, H, y, slope=slope, estimate=True)
    stepper.transpose(field, 0.0, H, [*taken.states, taken.end], w, outputs=[(tableau.dense_weights(0.5), w)])
    assert all(torch.equal(x, z) for x, z in zip(inputs, before, strict=True))


def test_adding_cotangents():
    one, two = (torch.ones(2),), (torch.full((2,), 2.0),)
    assert add((), ()) == ()
    assert add(one, ()) is one and add((), one) is one
    assert torch.equal(add(one, two)[0], torch.full((2,), 3.0))
    with pytest.raises(ValueError):
        add(one, (*two, *two))


@pytest.mark.parametrize("weights", [[2.0, 0.0, -1.0], [0.0, 1.0, 3.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
def test_a_combination_is_the_weighted_sum(weights, generator):
    tensors = [torch.randn(2, 3, generator=generator) for _ in weights]
    expected = sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True))
    assert torch.allclose(combine(weights, tensors), expected, rtol=1e-15, atol=0)
    a_row = [torch.full((2, 1), weight) for weight in weights]
    assert torch.allclose(combine(a_row, tensors), expected, rtol=1e-15, atol=0)
    mixed = [*weights[:2], a_row[2]]
    assert torch.allclose(combine(mixed, tensors), expected, rtol=1e-15, atol=0)
