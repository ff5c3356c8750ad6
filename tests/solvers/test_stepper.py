from __future__ import annotations

import copy

import pytest
import torch
from problems import symmetric
from references import relative
from row_problems import RowLinear, RowTanh

from adjoint_meta.solvers.stepper import Detached, add, stretch


@pytest.fixture
def field(generator) -> RowTanh:
    field = RowTanh(generator, torch.rand(3, 2, generator=generator))
    for parameter in field.parameters:
        parameter.requires_grad_()
    return field


def test_a_detached_field_has_the_values_and_no_graph(field, generator):
    y = torch.randn(3, 2, generator=generator, requires_grad=True)
    value, whole = Detached(field)(0.3, y), field(0.3, y)
    assert whole.requires_grad and not value.requires_grad
    assert torch.equal(value, whole)


def test_a_detached_field_has_detached_rows_and_everything_else_of_the_field(field, generator):
    y, rows = torch.randn(3, 2, generator=generator), torch.tensor([2, 0])
    detached = Detached(field)
    some = detached.rows(rows)
    assert isinstance(some, Detached) and not some(0.3, y[rows]).requires_grad
    assert torch.equal(some(0.3, y[rows]), field(0.3, y)[rows])
    assert all(a is b for a, b in zip(detached.parameters, field.parameters, strict=True))
    assert torch.equal(detached.vjp(0.3, y, y).state, field.vjp(0.3, y, y).state)
    with pytest.raises(AttributeError, match="potential"):
        _ = detached.potential


def test_a_detached_field_can_be_copied(field, generator):
    y = torch.randn(3, 2, generator=generator)
    assert torch.equal(copy.copy(Detached(field))(0.3, y), field(0.3, y))


def test_adding_cotangents():
    one, two = (torch.ones(2), torch.zeros(1)), (torch.full((2,), 2.0), torch.ones(1))
    assert add((), ()) == ()
    assert add(one, ()) is one and add((), one) is one
    assert [x.tolist() for x in add(one, two)] == [[3.0, 3.0], [1.0]]
    with pytest.raises(ValueError, match="zip"):
        add(one, two[:1])


def test_the_stretch_is_a_lower_bound_that_the_steepest_direction_attains(generator):
    a, h = symmetric(generator, torch.tensor([[0.5, -3.0, 1.0], [2.0, 0.1, 7.0]])), 0.1
    field, y = RowLinear(a, torch.zeros(2, 3)), torch.zeros(2, 3)
    exact = h * torch.linalg.matrix_norm(a, 2)
    for _ in range(20):
        kappa = torch.randn(2, 3, generator=generator)
        found = stretch(field.vjp(0.0, y, h * kappa).state, kappa)
        assert relative(found, h * torch.einsum("rij,rj->ri", a, kappa).norm(dim=1) / kappa.norm(dim=1)) < 1e-14
        assert torch.all(found <= exact * (1 + 1e-14))
    values, vectors = torch.linalg.eigh(a)
    steepest = values.abs().argmax(dim=1)
    kappa = torch.stack([vectors[row, :, i] for row, i in enumerate(steepest.tolist())])
    assert relative(stretch(field.vjp(0.0, y, h * kappa).state, kappa), exact) < 1e-14


def test_the_stretch_of_nothing_is_zero():
    kappa = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert stretch(2 * kappa, kappa).tolist() == [0.0, 2.0]
    assert stretch(kappa.float(), kappa.float()).dtype == torch.float32
