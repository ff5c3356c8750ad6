"""The transpose of a Runge-Kutta step is autograd's through it, and its stretch bounds h‖J‖ from below."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import LinearField, Recorder, TanhField, symmetric
from references import relative
from tableau_references import ROUNDING, H, T, every_dense, every_tableau, on_paper, two_rows
from torch import Tensor
from torch.func import jvp

from adjoint_meta.solvers import TABLEAUS, VJP, RungeKutta


def with_parameters(field: TanhField, weight: Tensor, bias: Tensor) -> TanhField:
    other = copy.copy(field)
    other.weight, other.bias = weight, bias
    return other


# Transposes


@every_dense
@pytest.mark.parametrize("h", [H, -H])
def test_transpose_is_the_transposed_derivative(tableau, h, generator):
    # ⟨w, J v⟩ = ⟨Jᵀ w, v⟩ for J with respect to the state, the time, the size and the parameters at once.
    field, stepper = TanhField(generator, time=2.0), RungeKutta(tableau)
    y, w = two_rows(generator)
    times, sizes = torch.full((2, 1), T), torch.full((2, 1), h)
    pulled = stepper.transpose(field, T, h, stepper.step(field, T, h, y).states, w)

    at = (y, times, sizes, *field.parameters)
    v = tuple(torch.randn(x.shape, generator=generator) for x in at)
    _, along = jvp(lambda y, t, h, *p: on_paper(tableau, with_parameters(field, *p), t, h, y)[0], at, v)
    there = (w * along).sum()
    back = [pulled.start, pulled.time[:, None], pulled.size[:, None], *pulled.parameters]
    products = torch.stack([(x * z).sum() for x, z in zip(back, v, strict=True)])
    assert abs(there - products.sum()) < 1e-12 * products.abs().sum()
    assert (products.abs() > 1e-4 * products.abs().max()).all()  # each of the five is seen


@every_dense
@pytest.mark.parametrize("h", [H, -H])
def test_transpose_is_autograd_through_the_step(tableau, h, generator):
    field, stepper = TanhField(generator, time=2.0), RungeKutta(tableau)
    y, w = two_rows(generator)
    pulled = stepper.transpose(field, T, h, stepper.step(field, T, h, y).states, w)

    time, size = torch.full((2, 1), T), torch.full((2, 1), h)
    inputs = [x.requires_grad_() for x in (y, time, size, *field.parameters)]
    end, _ = on_paper(tableau, field, time, size, y)
    start, begin, duration, *parameters = torch.autograd.grad(end, inputs, w)
    assert relative(pulled.start, start) < ROUNDING
    assert relative(pulled.time, begin[:, 0]) < ROUNDING
    assert relative(pulled.size, duration[:, 0]) < ROUNDING
    assert len(pulled.parameters) == len(parameters) == 2
    for found, expected in zip(pulled.parameters, parameters, strict=True):
        assert relative(found, expected) < ROUNDING


@every_tableau
def test_a_field_without_explicit_time_has_no_cotangent_to_it(tableau, generator):
    field, stepper = TanhField(generator), RungeKutta(tableau)
    y, w = two_rows(generator)
    assert stepper.transpose(field, T, H, stepper.step(field, T, H, y).states, w).time is None


@every_tableau
def test_transpose_is_the_transposed_jacobian(tableau, generator):
    field, stepper = TanhField(generator), RungeKutta(tableau)
    y = torch.randn(1, 3, generator=generator)
    jacobian = torch.autograd.functional.jacobian(lambda y: stepper.step(field, T, H, y[None]).end[0], y[0])
    states = stepper.step(field, T, H, y).states
    rows = [stepper.transpose(field, T, H, states, unit[None]).start[0] for unit in torch.eye(3)]
    assert relative(torch.stack(rows), jacobian) < ROUNDING


@every_dense
def test_transpose_spends_one_product_a_stage_and_no_evaluation(tableau, generator):
    field, stepper = Recorder(TanhField(generator)), RungeKutta(tableau)
    y = torch.randn(2, 3, generator=generator)
    states = stepper.step(field, T, H, y).states
    evaluations = len(field.calls)
    stepper.transpose(field, T, H, states, y)
    assert evaluations == field.products == tableau.solution_stages
    assert len(field.calls) == evaluations


# The bound of h‖J‖


@every_tableau
def test_stretch_is_a_lower_bound_of_the_norm(tableau, generator):
    field, stepper = TanhField(generator), RungeKutta(tableau)
    y, w = two_rows(generator)
    taken = stepper.step(field, T, H, y)
    pulled = stepper.transpose(field, T, H, taken.states, w)

    def norms(state: Tensor) -> Tensor:
        jacobians = [torch.autograd.functional.jacobian(lambda y: field(T, y[None])[0], row) for row in state]
        return torch.stack([torch.linalg.matrix_norm(jacobian, 2) for jacobian in jacobians])

    largest = torch.stack([H * norms(state) for state in taken.states]).amax(dim=0)
    assert pulled.stretch.shape == (2,)
    assert (pulled.stretch <= largest * (1 + 1e-14)).all()
    assert (pulled.stretch > 0.2 * largest).all()


@every_tableau
@pytest.mark.parametrize("h", [H, -H])
def test_stretch_is_the_norm_along_the_top_eigenvector(tableau, h, generator):
    values = torch.tensor([[0.5, 1.0, 6.0], [0.1, 2.0, 3.0]])
    a = symmetric(generator, values)
    field, stepper = LinearField(a, torch.zeros(2, 3)), RungeKutta(tableau)
    y = torch.randn(2, 3, generator=generator)
    top = torch.linalg.eigh(a).eigenvectors[:, :, -1]
    pulled = stepper.transpose(field, T, h, stepper.step(field, T, h, y).states, top)
    assert relative(pulled.stretch, abs(h) * values[:, -1]) < ROUNDING


@pytest.mark.parametrize("h", [H, -H])
@every_tableau
def test_stretch_is_the_largest_of_all_products(tableau, h, generator):
    seen = []

    class Watched(TanhField):
        def vjp(self, t: Tensor | float, y: Tensor, w: Tensor) -> VJP:
            pulled = super().vjp(t, y, w)
            seen.append(abs(h) * pulled.state.norm(dim=1) / w.norm(dim=1))
            return pulled

    field, stepper = Watched(generator, time=2.0), RungeKutta(tableau)
    y, w = two_rows(generator)
    # Large and small slopes of tanh, so that the largest product is not that of the same stage in both rows.
    y[0] *= 3
    pulled = stepper.transpose(field, T, h, stepper.step(field, T, h, y).states, w)
    # h κ is what is pulled back, so its norm holds |h| once.
    assert relative(pulled.stretch, torch.stack(seen).amax(dim=0)) < ROUNDING


def test_the_stretch_of_a_vanishing_cotangent_is_zero(generator):
    field, stepper = TanhField(generator), RungeKutta(TABLEAUS["rk4"])
    y, w = two_rows(generator)
    w[0] = 0
    pulled = stepper.transpose(field, T, H, stepper.step(field, T, H, y).states, w)
    assert pulled.stretch[0] == 0 and pulled.stretch[1] > 0
    assert torch.equal(pulled.start[0], torch.zeros(3))
