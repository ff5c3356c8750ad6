from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from row_problems import Elementwise

from adjoint_meta.solvers import Constant, PIController
from adjoint_meta.solvers.step_size import rms


def scaled(error, y, end, rtol, atol):
    """The ratio of one row in NumPy."""
    error, y, end = (x.numpy() for x in (error, y, end))
    return np.sqrt(np.mean((error / (atol + rtol * np.maximum(abs(y), abs(end)))) ** 2))


def judged(ratio: list[float], before: list[float], order: int = 4, **settings):
    """The verdict on rows whose errors have these ratios."""
    controller = PIController(rtol=0.0, atol=1.0, **settings)
    rows = torch.zeros(len(ratio), 3)
    return controller.judge(torch.tensor(ratio)[:, None].expand(-1, 3), rows, rows, torch.tensor(before), order)


def test_the_root_mean_square_is_taken_row_by_row(generator):
    x = torch.randn(3, 5, generator=generator)
    assert np.allclose(rms(x), np.sqrt(np.mean(x.numpy() ** 2, axis=1)), rtol=1e-15)
    assert rms(torch.zeros(2, 0)).tolist() == [0.0, 0.0]


# Constant steps


def test_constant_steps_are_even_shares_whatever_their_error(generator):
    controller, y = Constant(4), torch.randn(2, 3, generator=generator)
    assert not controller.adaptive
    assert controller.first(None, 1.0, torch.tensor(-3.0), y, y, 1).tolist() == [-0.75, -0.75]
    error = torch.tensor([[1e9] * 3, [float("nan")] * 3])
    verdict = controller.judge(error, y, y, torch.ones(2), 1)
    assert verdict.accept.tolist() == [True, True]
    assert verdict.factor.tolist() == [1.0, 1.0]


# The judgement of a step


@pytest.mark.parametrize(("rtol", "atol"), [(1e-3, 1e-6), (0.0, 1e-4), (1e-2, 0.0)])
def test_the_ratio_is_the_error_in_units_of_the_tolerance(rtol, atol, generator):
    y, end = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    error = 1e-3 * torch.rand(4, 1, generator=generator) * torch.randn(4, 3, generator=generator)
    verdict = PIController(rtol, atol).judge(error, y, end, torch.ones(4), 2)
    expected = [scaled(*row, rtol, atol) for row in zip(error, y, end, strict=True)]
    assert np.allclose(verdict.ratio, expected, rtol=1e-14)
    assert verdict.accept.tolist() == [bool(ratio <= 1) for ratio in expected]


@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_factors_are_those_of_the_formula(order):
    ratios, before = [0.3, 0.3, 1.0, 1.0001, 7.0], [0.3, 0.9, 0.02, 0.02, 0.5]
    verdict = judged(ratios, before, order)
    k = order + 1
    # Hairer, Nørsett, Wanner IV.2, eq. 2.43c, after an accepted step; the integral part alone after a rejected one.
    expected = [0.9 * r ** (-0.7 / k) * b ** (0.4 / k) for r, b in zip(ratios[:3], before[:3], strict=True)]
    expected += [0.9 * r ** (-1 / k) for r in ratios[3:]]
    assert verdict.accept.tolist() == [True, True, True, False, False]
    assert verdict.factor.tolist() == pytest.approx([min(max(f, 0.2), 5.0) for f in expected], rel=1e-14)
    assert verdict.ratio.tolist() == pytest.approx(ratios, rel=1e-15)


def test_factors_keep_within_their_bounds():
    assert judged([1e-9, 1e9], [1.0, 1.0], order=1).factor.tolist() == [5.0, 0.2]
    assert judged([1e-9, 1e9], [1.0, 1.0], order=1, shrink=0.5, grow=2.0).factor.tolist() == [2.0, 0.5]
    # A ratio counts as 1e-4 at the least, that of a perfect step too.
    perfect = judged([0.0, 1e-7], [1.0, 1.0])
    assert perfect.accept.tolist() == [True] * 2
    assert perfect.factor.tolist() == pytest.approx([0.9 * 1e-4 ** (-0.7 / 5)] * 2)
    assert perfect.ratio.tolist() == [1e-4] * 2


@given(ratio=st.floats(0, 1e12), before=st.floats(1e-4, 1), order=st.integers(1, 5), safety=st.floats(0.1, 1))
def test_a_rejected_step_is_never_repeated_at_its_size(ratio, before, order, safety):
    verdict = judged([ratio], [before], order, safety=safety)
    assert bool(verdict.accept) == (ratio <= 1)
    assert 0.2 <= float(verdict.factor) <= 5
    if ratio > 1:
        assert float(verdict.factor) <= max(safety, 0.2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_rejected_and_cut(value):
    y, bad = torch.zeros(3, 2), torch.tensor([[0.0, value], [0.0, 0.0], [0.0, 0.0]])
    verdict = PIController().judge(bad, y, bad.roll(1, dims=0), torch.ones(3), 4)
    # The error of the first row, and the end of the second one, are not finite.
    assert verdict.accept.tolist() == [False, False, True]
    assert float(verdict.factor[0]) == 0.2 and float(verdict.factor[1]) <= 0.9
    assert torch.isfinite(verdict.factor).all()


def test_another_norm(generator):
    y, error = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    verdict = PIController(0.0, 0.1, norm=lambda x: x.abs().amax(dim=1)).judge(error, y, y, torch.ones(3), 2)
    assert np.allclose(verdict.ratio, error.abs().amax(dim=1) / 0.1, rtol=1e-15)


# The first step


def by_hand(f, t0, duration, y, order, rtol, atol):
    """Hairer, Nørsett, Wanner II.4, the algorithm on page 169, on one row of NumPy numbers."""

    def norm(x):
        return np.sqrt(np.mean((x / (atol + rtol * abs(y))) ** 2))

    sign, slope = math.copysign(1.0, duration), f(t0, y)
    d0, d1 = norm(y), norm(slope)
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    h0 = min(h0, abs(duration))
    d2 = norm(f(t0 + sign * h0, y + sign * h0 * slope) - slope) / h0
    h1 = max(1e-6, h0 * 1e-3) if max(d1, d2) <= 1e-15 else (0.01 / max(d1, d2)) ** (1 / (order + 1))
    return sign * min(100 * h0, h1, abs(duration))


@pytest.mark.parametrize("duration", [2.0, -2.0, 1e-5])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_first_step_is_that_of_the_book(order, duration, generator):
    rtol, atol, t0 = 1e-4, 1e-5, 0.7
    y = torch.randn(4, 3, generator=generator) * torch.tensor([[1.0], [100.0], [1e-12], [0.01]])

    def f(t, y):
        return y**2 - t * y + 3e-2

    found = PIController(rtol, atol).first(Elementwise(f), t0, torch.tensor(duration), y, f(t0, y), order)
    expected = [by_hand(f, t0, duration, row.numpy(), order, rtol, atol) for row in y]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    # The rows differ, so none of them was given another's.
    assert abs(duration) < 1 or len({round(h, 12) for h in expected}) == 4


def test_the_first_step_where_nothing_moves():
    y = torch.ones(1, 2)
    at_rest = PIController().first(Elementwise(lambda t, y: 0 * y), 0.0, torch.tensor(5.0), y, 0 * y, 4)
    assert at_rest.tolist() == [1e-6]
    constant = PIController().first(Elementwise(lambda t, y: 0 * y + 3), 0.0, torch.tensor(5.0), y, 0 * y + 3, 4)
    assert float(constant) == pytest.approx(by_hand(lambda t, y: 0 * y + 3, 0.0, 5.0, np.ones(2), 4, 1e-3, 1e-6))


def test_a_probe_that_is_not_finite_leaves_the_probed_size():
    def f(t, y):
        return torch.where(y > 1.001, math.nan, y)

    y = torch.ones(2, 1) * torch.tensor([[1.0], [0.1]])
    found = PIController().first(Elementwise(f), 0.0, torch.tensor(1.0), y, f(0.0, y), 4)
    # h₀ = 0.01 ‖y‖ / ‖f‖ = 0.01 takes the first row where f is not a number.
    assert float(found[0]) == pytest.approx(0.01, rel=1e-14)
    assert 0.01 < float(found[1]) <= 1


def test_the_first_step_of_a_row_with_an_entry_at_zero_and_no_absolute_tolerance():
    # The scale of that entry is as good as 0, and its scaled slope overflows.
    y = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    found = PIController(rtol=1e-3, atol=0.0).first(
        Elementwise(lambda t, y: 1.5 - y), 0.0, torch.tensor(1.0), y, 1.5 - y, 4
    )
    assert torch.all(torch.isfinite(found)) and torch.all(found > 1e-9)


def test_an_infinite_interval():
    y = torch.ones(1, 2)
    found = PIController().first(Elementwise(lambda t, y: -y), 0.0, torch.tensor(math.inf), y, -y, 4)
    assert float(found) == pytest.approx(by_hand(lambda t, y: -y, 0.0, math.inf, np.ones(2), 4, 1e-3, 1e-6))


def test_float32_stays_float32(generator):
    y = torch.randn(3, 2, generator=generator).float()
    controller, duration = PIController(1e-3, 1e-6), torch.tensor(1.0, dtype=torch.float32)
    first = controller.first(Elementwise(lambda t, y: -t - y), 0.5, duration, y, -0.5 - y, 2)
    verdict = controller.judge(1e-4 * y, y, y, torch.ones_like(first), 2)
    constant = Constant(3).judge(y, y, y, torch.ones_like(first), 2)
    kinds = {x.dtype for x in (first, verdict.factor, verdict.ratio, constant.factor, constant.ratio)}
    assert kinds == {torch.float32}
    assert Constant(3).first(None, 0.0, duration, y, y, 2).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rtol": -1e-3}, ValueError, "rtol must be finite and at least 0"),
        ({"atol": -1e-3}, ValueError, "atol must be finite and at least 0"),
        ({"rtol": float("nan")}, ValueError, "rtol must be finite"),
        ({"rtol": "tight"}, TypeError, "rtol must be a number"),
        ({"rtol": 0.0, "atol": 0.0}, ValueError, "rtol and atol are both 0.*set one"),
        ({"safety": 0.0}, ValueError, "safety must be positive"),
        ({"safety": 1.1}, ValueError, "safety must be at most 1.*safety=1.1"),
        ({"shrink": 1.0}, ValueError, "shrink below 1.*shrink=1.0"),
        ({"shrink": 0.0}, ValueError, "shrink must be positive"),
        ({"grow": 0.9}, ValueError, "grow must be finite and at least 1"),
    ],
)
def test_wrong_settings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        PIController(**arguments)


def test_a_wrong_number_of_constant_steps_is_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Constant(0)
    with pytest.raises(TypeError, match="steps must be a whole number"):
        Constant(2.5)
