"""The transpose of an RKC step is autograd's through the paper's recursion, one product a stage."""

from __future__ import annotations

import pytest
import torch
from chebyshev_references import DAMPING, MIXED, Diagonal, Forced, H, T, drawn, rkc, textbook
from problems import Recorder, TanhField
from references import relative

from adjoint_meta.solvers.chebyshev import Chebyshev


@pytest.mark.parametrize("h", [H, -H, 2.0])
@pytest.mark.parametrize("stages", [MIXED, (2,) * 4, (3,) * 4, (50,) * 4, (2, 3, 100, 40)], ids=str)
def test_the_transpose_is_the_transposed_jacobian(stages, h, generator):
    field, method, stages = Forced(generator), Chebyshev(), torch.tensor(stages)
    y, v, w = drawn(generator), drawn(generator), drawn(generator)
    states = method.step(field, T, h, y, stages=stages).states
    start = method.transpose(field, T, h, states, w, stages=stages).start
    _, pushed = torch.func.jvp(lambda y: method.step(field, T, h, y, stages=stages).end, (y,), (v,))
    scale = w.norm(dim=1) * pushed.norm(dim=1)
    assert torch.all(((w * pushed).sum(dim=1) - (start * v).sum(dim=1)).abs() < 1e-12 * scale)


@pytest.mark.parametrize("damping", [DAMPING, 10.0])
def test_all_cotangents_are_autograds_through_the_papers_recursion(damping, generator):
    field, method, stages = Forced(generator), Chebyshev(damping), torch.tensor(MIXED)
    y, w = drawn(generator), drawn(generator)
    times, sizes = torch.tensor([[0.3], [-1.0], [0.0], [2.0]]), torch.tensor([[0.25], [0.5], [1.5], [-0.3]])
    states = method.step(field, times, sizes, y, stages=stages).states
    found = method.transpose(field, times, sizes, states, w, stages=stages)

    inputs = [tensor.requires_grad_() for tensor in (y, sizes, times, field.weight, field.force)]
    ends = [textbook(field, times[r], sizes[r], y[r], count, damping) for r, count in enumerate(MIXED)]
    start, size, time, *parameters = torch.autograd.grad(torch.stack(ends), inputs, w)
    assert relative(found.start, start) < 1e-12
    assert relative(found.size, size[:, 0]) < 1e-12
    assert relative(found.time, time[:, 0]) < 1e-12
    assert len(found.parameters) == 2
    assert all(relative(x, expected) < 1e-12 for x, expected in zip(found.parameters, parameters, strict=True))


def test_one_size_and_one_time_for_all_rows(generator):
    field, stages = Forced(generator), torch.tensor(MIXED)
    y, w = drawn(generator), drawn(generator)
    t, h = torch.tensor(T, requires_grad=True), torch.tensor(H, requires_grad=True)
    method = Chebyshev()
    time, size = torch.autograd.grad(method.step(field, t, h, y, stages=stages).end, (t, h), w)
    states = method.step(field, T, H, y, stages=stages).states
    found = method.transpose(field, T, H, states, w, stages=stages)
    assert relative(found.size.sum(), size) < 1e-12 and relative(found.time.sum(), time) < 1e-12


def test_a_field_without_time_has_no_cotangent_of_it(generator):
    field, method = TanhField(generator), rkc(4)
    y, w = drawn(generator), drawn(generator)
    h = torch.full((len(y), 1), H, requires_grad=True)
    (size,) = torch.autograd.grad(textbook(field, T, h, y, 4), h, w)
    found = method.transpose(field, T, H, method.step(field, T, H, y).states, w)
    assert found.time is None
    assert relative(found.size, size[:, 0]) < 1e-12


def test_the_transpose_spends_one_product_a_stage_and_no_evaluation(generator):
    field, method = Recorder(Forced(generator)), rkc(7)
    y = drawn(generator)
    states = method.step(field, T, H, y).states
    method.transpose(field, T, H, states, y)
    assert field.products == len(field.calls) == len(states) == 7


def test_stretch_bounds_h_times_the_norm_from_below(generator):
    rates = torch.tensor([[-1.0, -4.0, -9.0], [-3.0, -3.0, -3.0], [0.0, 0.0, 0.0]])
    field, method, stages = Diagonal(rates), Chebyshev(), torch.tensor([4, 2, 3])
    y, w = drawn(generator, rows=3), drawn(generator, rows=3)
    states = method.step(field, 0.0, 0.5, y, stages=stages).states
    found = method.transpose(field, 0.0, 0.5, states, w, stages=stages).stretch
    assert 0.5 < found[0] < 4.5
    assert found[1] == pytest.approx(1.5, rel=1e-14) and found[2] == 0
    still = method.transpose(field, 0.0, 0.5, states, torch.zeros_like(w), stages=stages)
    assert torch.equal(still.stretch, torch.zeros(3)) and torch.equal(still.start, torch.zeros(3, 3))


def test_stretch_is_the_largest_of_all_products(generator):
    ratios = []

    class Watched(Forced):
        def vjp(self, t, y, w):
            pulled = super().vjp(t, y, w)
            ratios.append(H * pulled.state.norm(dim=1) / w.norm(dim=1))
            return pulled

    field, method, y = Watched(generator), rkc(9), drawn(generator, rows=20)
    states = method.step(field, T, H, y).states
    found = method.transpose(field, T, H, states, drawn(generator, rows=20)).stretch
    largest, where = torch.stack(ratios).max(dim=0)
    assert torch.allclose(found, largest, rtol=1e-12, atol=0)
    assert len(where.unique()) > 2
