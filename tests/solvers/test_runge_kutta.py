from __future__ import annotations

import pytest
import torch
from problems import Recorder, TanhField
from references import relative, runge_kutta
from torchdiffeq import odeint

from adjoint_meta.solvers import TABLEAUS, step, transpose
from adjoint_meta.solvers.runge_kutta import _combine, add

every_tableau = pytest.mark.parametrize("tableau", TABLEAUS.values(), ids=TABLEAUS)

T, H = 0.3, 0.25
# A few dozen operations on either side, some of which cancel.
ROUNDING = 1e-13


@every_tableau
def test_the_field_is_evaluated_at_the_nodes(tableau, generator):
    field = Recorder(TanhField(generator, time=1.0))
    y = torch.randn(2, 3, generator=generator)
    taken = step(tableau, field, T, H, y)
    nodes = [T + float(node) * H for node in tableau.c[: tableau.solution_stages]]
    assert [t for t, _ in field.calls] == pytest.approx(nodes, abs=1e-15)
    assert torch.equal(field.calls[0][1], y)
    assert all(torch.equal(state, seen) for state, (_, seen) in zip(taken.states, field.calls, strict=True))


@every_tableau
def test_a_step_is_the_textbook_formula(tableau, generator):
    field = TanhField(generator, time=1.0)
    y = torch.randn(2, 3, generator=generator)
    expected = runge_kutta(tableau, field, T, T + H, 1, y)
    assert relative(step(tableau, field, T, H, y).end, expected) < 1e-15


@pytest.mark.parametrize(("name", "theirs"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2")])
def test_a_step_is_torchdiffeqs(name, theirs, generator):
    field = TanhField(generator, time=1.0)
    y = torch.randn(2, 3, generator=generator)
    expected = odeint(field, y, torch.tensor([T, T + H]), method=theirs)[-1]
    assert relative(step(TABLEAUS[name], field, T, H, y).end, expected) < 1e-15


def test_rk4_is_kuttas_classical_method(generator):
    # Written out, since torchdiffeq's "rk4" is the 3/8 rule.
    f = TanhField(generator, time=1.0)
    y = torch.randn(2, 3, generator=generator)
    k1 = f(T, y)
    k2 = f(T + H / 2, y + H / 2 * k1)
    k3 = f(T + H / 2, y + H / 2 * k2)
    k4 = f(T + H, y + H * k3)
    assert relative(step(TABLEAUS["rk4"], f, T, H, y).end, y + H / 6 * (k1 + 2 * k2 + 2 * k3 + k4)) < 1e-15


@every_tableau
@pytest.mark.parametrize("h", [H, -H])
def test_transpose_is_autograd_through_the_step(tableau, h, generator):
    field = TanhField(generator)
    y = torch.randn(2, 3, generator=generator)
    w = torch.randn(2, 3, generator=generator)
    pulled = transpose(tableau, field, T, h, step(tableau, field, T, h, y).states, w)

    y.requires_grad_()
    size = torch.full((2, 1), h).requires_grad_()
    for parameter in field.parameters:
        parameter.requires_grad_()
    end = runge_kutta(tableau, field, T, T + size, 1, y)
    start, duration, *parameters = torch.autograd.grad(end, (y, size, *field.parameters), w)
    assert relative(pulled.start, start) < ROUNDING
    assert relative(pulled.size, duration[:, 0]) < ROUNDING
    assert len(pulled.parameters) == len(parameters) == 2
    for found, expected in zip(pulled.parameters, parameters, strict=True):
        assert relative(found, expected) < ROUNDING


@every_tableau
def test_transpose_of_a_field_with_explicit_time(tableau, generator):
    field = TanhField(generator, time=2.0)
    y = torch.randn(2, 3, generator=generator)
    w = torch.randn(2, 3, generator=generator)
    pulled = transpose(tableau, field, T, H, step(tableau, field, T, H, y).states, w)
    y.requires_grad_()
    field.weight.requires_grad_()
    start, weight = torch.autograd.grad(runge_kutta(tableau, field, T, T + H, 1, y), (y, field.weight), w)
    assert relative(pulled.start, start) < ROUNDING
    assert relative(pulled.parameters[0], weight) < ROUNDING


@every_tableau
def test_transpose_is_the_transposed_jacobian(tableau, generator):
    field = TanhField(generator)
    y = torch.randn(1, 3, generator=generator)
    jacobian = torch.autograd.functional.jacobian(lambda y: step(tableau, field, T, H, y[None]).end[0], y[0])
    states = step(tableau, field, T, H, y).states
    rows = [transpose(tableau, field, T, H, states, unit[None]).start[0] for unit in torch.eye(3)]
    assert relative(torch.stack(rows), jacobian) < ROUNDING


@every_tableau
def test_transpose_spends_one_product_a_stage_and_no_evaluation(tableau, generator):
    field = Recorder(TanhField(generator))
    y = torch.randn(2, 3, generator=generator)
    states = step(tableau, field, T, H, y).states
    evaluations = len(field.calls)
    transpose(tableau, field, T, H, states, y)
    assert evaluations == field.products == tableau.solution_stages
    assert len(field.calls) == evaluations


@every_tableau
def test_every_row_may_have_its_own_step_size(tableau, generator):
    field = TanhField(generator)
    y, w = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    sizes = torch.tensor([[0.1], [0.4]])
    together = step(tableau, field, 0.0, sizes, y)
    pulled = transpose(tableau, field, 0.0, sizes, together.states, w)
    for row, size in enumerate([0.1, 0.4]):
        alone = step(tableau, field, 0.0, size, y[row : row + 1])
        expected = transpose(tableau, field, 0.0, size, alone.states, w[row : row + 1])
        assert relative(together.end[row], alone.end[0]) < 1e-15
        assert relative(pulled.start[row], expected.start[0]) < ROUNDING
        assert relative(pulled.size[row : row + 1], expected.size) < ROUNDING


@every_tableau
def test_float32_stays_float32_with_a_float64_time(tableau, generator):
    field = TanhField(generator)
    field.weight, field.bias, field.drift = (x.float() for x in (field.weight, field.bias, field.drift))
    y = torch.randn(2, 3, generator=generator).float()
    h = torch.tensor(0.25, dtype=torch.float64)
    taken = step(tableau, field, 0.0, h, y)
    pulled = transpose(tableau, field, 0.0, h, taken.states, y)
    kinds = {x.dtype for x in (taken.end, *taken.states, pulled.start, pulled.size, *pulled.parameters)}
    assert kinds == {torch.float32}


def test_inputs_are_left_as_they_were(generator):
    field = TanhField(generator)
    y, w = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    before = (y.clone(), w.clone())
    transpose(TABLEAUS["dopri5"], field, 0.0, H, step(TABLEAUS["dopri5"], field, 0.0, H, y).states, w)
    assert torch.equal(y, before[0]) and torch.equal(w, before[1])


def test_adding_cotangents():
    one, two = (torch.ones(2),), (torch.full((2,), 2.0),)
    assert add((), ()) == ()
    assert add(one, ()) is one and add((), one) is one
    assert torch.equal(add(one, two)[0], torch.full((2,), 3.0))
    with pytest.raises(ValueError):
        add(one, (*two, *two))


def test_a_combination_without_weights_is_zero():
    assert torch.equal(_combine([0.0, 0.0], [torch.ones(1, 2), torch.ones(1, 2)]), torch.zeros(1, 2))
