"""Implicit steps in float32 reach what rounding allows, and say when it decides nothing."""

from __future__ import annotations

import math

import pytest
import torch
from implicit_problems import TIGHT, T, apply, convex, draw, every_kind, every_method, some_convex, stability
from problems import LinearField, symmetric
from references import relative

from adjoint_meta.solvers import ImplicitEuler, Status


@every_method
@every_kind
@pytest.mark.parametrize("h", [0.1, 10.0])
def test_float32_converges_and_stays_float32(method, kind, h, generator):
    field, y, w = some_convex(kind, generator), draw(generator), draw(generator)
    half = kind(convex, [parameter.float() for parameter in field.parameters])
    time, size = torch.tensor(T), torch.tensor(h)  # of float64
    exact, rough = method(**TIGHT).step(field, T, h, y), method().step(half, time, size, y.float())
    assert torch.all(rough.codes == Status.SUCCESS.code)
    assert relative(rough.end.double(), exact.end) < 1e-6
    expected = method(**TIGHT).transpose(field, T, h, exact.states, w)
    pulled = method().transpose(half, time, size, rough.states, w.float())
    assert relative(pulled.start.double(), expected.start) < 1e-5
    rows = method().step(half, T, torch.full((3, 1), h), y.float())  # one float64 size a row
    kinds = {x.dtype for x in (*rough.states, rough.slope, rows.end, pulled.start, pulled.size, *pulled.parameters)}
    assert kinds == {torch.float32}


@every_method
@pytest.mark.parametrize("largest", [1e2, 1e4])
def test_stiff_float32_ends_at_what_rounding_allows(method, largest, generator):
    # Dense, so that every entry of A y is rounded at the size of the largest; P = 30 as in a small head.
    a = symmetric(generator, torch.logspace(-1, math.log10(largest), 30).expand(3, 30))
    b, y = draw(generator, 3, 30), draw(generator, 3, 30)
    rough = method().step(LinearField(a.float(), b.float()), 0.0, 1.0, y.float())
    exact = b + apply(stability(method, a, 1.0), y - b)
    assert torch.all(rough.codes == Status.SUCCESS.code)
    # Rounding A alone moves the solution by up to ε ‖A‖ ‖y‖.
    assert relative(rough.end.double(), exact) < max(1e-6, 3 * 1.2e-7 * largest)


def test_float32_that_decides_nothing_is_no_success(generator):
    # Rounding A y moves the solution by as much as the solution is long: whatever comes out is not to be trusted.
    a = symmetric(generator, torch.logspace(-1, 7, 30).expand(3, 30))
    b, y = draw(generator, 3, 30), draw(generator, 3, 30)
    stepper = ImplicitEuler(newton_steps=20)
    taken, (info,) = stepper.solve(LinearField(a.float(), b.float()), 0.0, 1.0, y.float())
    assert info.products <= 20 * 60, "CG ends after 2P steps, where only rounding is left to work on"
    exact = b + apply(stability(ImplicitEuler, a, 1.0), y - b)
    wrong = (taken.end.double() - exact).norm(dim=1) > 1e-2 * exact.norm(dim=1)
    assert wrong.any() and torch.all(taken.codes[wrong] == Status.NEWTON.code)
