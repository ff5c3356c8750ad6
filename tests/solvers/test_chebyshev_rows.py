"""Rows with stages of their own take the very steps that they would take alone."""

from __future__ import annotations

import math

import torch
from chebyshev_references import MIXED, Forced, H, T, drawn, rkc

from adjoint_meta.solvers.chebyshev import Chebyshev
from adjoint_meta.solvers.stepper import VJP


class Coupled:
    """f(t, y)_i = t + y_i y_{i−1} − r y_i, a rate r a row: of products and sums only, so that batches cannot round."""

    def __init__(self, rates: torch.Tensor) -> None:
        self.rates = rates

    def __call__(self, t, y):
        return t + y * y.roll(1, dims=1) - self.rates * y

    def vjp(self, t, y, w):
        state = w * y.roll(1, dims=1) + (w * y).roll(-1, dims=1) - self.rates * w
        return VJP(self(t, y), state, (-(w * y).sum(dim=1),), w.sum(dim=1))


def test_rows_with_their_own_stages_end_exactly_where_they_would_alone(generator):
    rates = torch.tensor([[30.0], [2.0], [100.0], [40.0]])
    sizes = torch.tensor([[0.25], [0.5], [0.3], [0.1]])
    times = torch.tensor([[0.0], [1.0], [-0.5], [0.3]])
    y, w = drawn(generator, size=5), drawn(generator, size=5)
    method, stages = Chebyshev(), torch.tensor(MIXED)
    together = method.step(Coupled(rates), times, sizes, y, stages=stages, estimate=True)
    pulled = method.transpose(Coupled(rates), times, sizes, together.states, w, stages=stages)
    assert len(together.states) == max(MIXED)
    for r, count in enumerate(MIXED):
        row = slice(r, r + 1)
        field, t, h = Coupled(rates[row]), times[row], sizes[row]
        alone = method.step(field, t, h, y[row], stages=stages[row], estimate=True)
        expected = method.transpose(field, t, h, alone.states, w[row], stages=stages[row])
        assert len(alone.states) == count
        for found, single in zip(together[:4:2], alone[:4:2], strict=True):
            assert torch.equal(found[row], single)
        assert torch.equal(together.slope[row], alone.slope)
        for state, single in zip(together.states[:count], alone.states, strict=True):
            assert torch.equal(state[row], single)
        assert all(torch.equal(state[row], alone.end) for state in together.states[count:])
        for name in ("start", "size", "time", "stretch"):
            assert torch.equal(getattr(pulled, name)[row], getattr(expected, name))
        assert torch.equal(pulled.parameters[0][row], expected.parameters[0])


def test_plain_numbers_are_the_coefficients_of_rows_alike(generator):
    # The same numbers from a table: a second row with more stages forces it.
    field, method = Coupled(torch.full((2, 1), 7.0)), Chebyshev()
    y = drawn(generator, rows=1).expand(2, 3)
    plain = method.step(field, T, H, y, stages=torch.tensor([6, 6]))
    table = method.step(field, T, H, y, stages=torch.tensor([6, 8]))
    default = rkc(6).step(field, T, H, y)
    assert torch.equal(plain.end[0], table.end[0]) and torch.equal(plain.end, default.end)
    assert not torch.equal(table.end[1], plain.end[1])


def test_idle_stages_pull_nothing_back_whatever_pads_their_states(generator):
    method, stages = Chebyshev(), torch.tensor(MIXED)
    field = Forced(generator)
    y, w = drawn(generator), drawn(generator)
    states = list(method.step(field, T, H, y, stages=stages).states)
    expected = method.transpose(field, T, H, states, w, stages=stages)
    garbage = [state.clone() for state in states]
    for j, state in enumerate(garbage):
        state[stages <= j] = 1e3 * torch.randn(3, generator=generator)
    garbage += [torch.full_like(y, math.nan)] * 2

    cotangents = []

    class Watched(Forced):
        def __init__(self, field):
            self.weight, self.force = field.weight, field.force

        def vjp(self, t, y, w):
            cotangents.insert(0, w)
            return super().vjp(t, y, w)

    found = method.transpose(Watched(field), T, H, garbage, w, stages=stages)
    assert len(cotangents) == max(MIXED)
    for j, cotangent in enumerate(cotangents):
        assert torch.equal(cotangent.abs().sum(dim=1) > 0, stages > j)
    for name in ("start", "size", "time", "stretch"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert all(map(torch.equal, found.parameters, expected.parameters))
