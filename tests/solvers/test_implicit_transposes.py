"""The transpose of an implicit step is implicit differentiation, to the tolerance asked for, or refused."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from implicit_problems import (
    SIZES,
    TIGHT,
    Gradient,
    H,
    Linearising,
    T,
    convex,
    dense,
    draw,
    every_method,
    some_convex,
    wells,
)
from problems import LinearField
from references import central_difference, relative
from torch import Tensor

from adjoint_meta.solvers import SolverError, Status


@every_method
@pytest.mark.parametrize(("kind", "h"), SIZES)
def test_transpose_is_implicit_differentiation_with_dense_matrices(method, kind, h, generator):
    field, y, w = some_convex(kind, generator), draw(generator, 2), draw(generator, 2)
    stepper = method(**TIGHT)
    pulled = stepper.transpose(field, T, h, stepper.step(field, T, h, y).states, w)

    inputs = [y, torch.full((2,), h), torch.tensor(T), *field.parameters]
    y, size, time, *parameters = inputs = [x.detach().requires_grad_() for x in inputs]
    start, size, time, *parameters = torch.autograd.grad(dense(method, convex, time, size, y, parameters), inputs, w)
    assert relative(pulled.start, start) < 1e-12
    assert relative(pulled.size, size) < 1e-11
    assert relative(pulled.time.sum(), time) < 1e-11
    assert len(pulled.parameters) == len(parameters) == 2
    for found, expected in zip(pulled.parameters, parameters, strict=True):
        assert relative(found, expected) < 1e-11


@every_method
@pytest.mark.parametrize("h", [0.05, H, 20.0])
def test_transpose_is_the_transposed_jacobian(method, h, generator):
    field, y = some_convex(Linearising, generator), draw(generator, 2)
    v, w = draw(generator, 2), draw(generator, 2)
    stepper = method(**TIGHT)
    pulled = stepper.transpose(field, T, h, stepper.step(field, T, h, y).states, w)

    def step(y: Tensor) -> Tensor:
        return dense(method, convex, torch.tensor(T), torch.full((2,), h), y, field.parameters)

    jacobian = torch.autograd.functional.jacobian(step, y)
    pushed = torch.einsum("ripq,pq->ri", jacobian, v)
    inner, scale = (w * pushed).sum(dim=1), w.norm(dim=1) * pushed.norm(dim=1)
    assert torch.all((inner - (pulled.start * v).sum(dim=1)).abs() < 1e-12 * scale)


@every_method
def test_cotangents_are_difference_quotients_of_the_step(method, generator):
    field, y, w = some_convex(Linearising, generator, size=3), draw(generator, 2, 3), draw(generator, 2, 3)
    stepper = method(**TIGHT)
    pulled = stepper.transpose(field, T, H, stepper.step(field, T, H, y).states, w)

    def after(t: float = T, h: Tensor | float = H, y: Tensor = y, parameters: Sequence[Tensor] = field.parameters):
        other = Linearising(convex, parameters, timed=True)
        return float((stepper.step(other, t, h, y).end * w).sum())

    weight, bias = field.parameters
    sizes = torch.full((2, 1), H)
    assert relative(pulled.start, central_difference(lambda x: after(y=x), y)) < 1e-8
    assert relative(pulled.size[:, None], central_difference(lambda x: after(h=x), sizes)) < 1e-8
    assert relative(pulled.time.sum(), central_difference(lambda x: after(t=float(x)), torch.tensor(T))) < 1e-8
    assert relative(pulled.parameters[0], central_difference(lambda x: after(parameters=(x, bias)), weight)) < 1e-8
    assert relative(pulled.parameters[1], central_difference(lambda x: after(parameters=(weight, x)), bias)) < 1e-8


@every_method
def test_stretch_is_below_the_norm_of_the_jacobian_and_reaches_it(method, generator):
    stiffness = torch.tensor([[1.0, 3.0], [2.0, 7.0]])
    field, y = LinearField(torch.diag_embed(stiffness), torch.zeros(2, 2)), draw(generator, 2, 2)
    stepper, h = method(**TIGHT), 0.5
    states = stepper.step(field, 0.0, h, y).states
    assert torch.all(stepper.transpose(field, 0.0, h, states, draw(generator, 2, 2)).stretch <= h * stiffness[:, 1])
    along = stepper.transpose(field, 0.0, h, states, torch.tensor([[0.0, 1.0], [0.0, 0.0]])).stretch
    assert along.tolist() == pytest.approx([1.5, 0.0], rel=1e-12)


@every_method
def test_transpose_at_a_maximum_is_refused(method):
    # The origin is stationary, so that the step stays there; 1 + h E'' = 1 − h is negative for h > 1.
    field = Gradient(wells, (torch.zeros(2, 2),))
    y = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    stepper = method()
    taken = stepper.step(field, 0.0, 5.0, y)
    assert torch.equal(taken.end, y) and torch.all(taken.codes == Status.SUCCESS.code)
    with pytest.raises(SolverError, match=r"1 of 2 rows \(row 1\): A direction of negative curvature .* proximal"):
        stepper.transpose(field, 0.0, 5.0, taken.states, torch.ones(2, 2))


@every_method
def test_a_transposed_solve_that_does_not_converge_is_refused(method, generator):
    field, y = some_convex(Gradient, generator), draw(generator)
    states = method().step(field, T, H, y).states
    with pytest.raises(SolverError, match=r"transposed solve .* residual was still above the tolerance"):
        method(cg_steps=1).transpose(field, T, H, states, y)
    with pytest.raises(SolverError, match="transposed solve"):
        method().transpose(field, T, H, [state * math.nan for state in states], y)


@every_method
def test_the_tolerance_of_the_transpose_is_the_one_asked_for(method, generator):
    field = some_convex(Gradient, generator, size=30)
    y, w = draw(generator, 3, 30), draw(generator, 3, 30)
    states = method(**TIGHT).step(field, T, H, y).states
    exact = method(**TIGHT).transpose(field, T, H, states, w).start
    loose, default = (method(cg_tol=tol).transpose(field, T, H, states, w).start for tol in (1e-2, 1e-10))
    assert 1e-6 < relative(loose, exact) < 3e-2
    assert relative(default, exact) < 3e-10
