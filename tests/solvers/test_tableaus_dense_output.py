"""Dense output joins the ends smoothly, is SciPy's and Tsitouras's, and of the order it claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from references import order_of_convergence
from scipy.integrate import RK23, RK45
from tableau_references import ALL, FIRST_SAME_AS_LAST, NUDGE, every_dense, floats

from adjoint_meta.solvers import TABLEAUS, ButcherTableau

DENSE_ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "bosh3": 3, "rk4": 3, "dopri5": 4, "tsit5": 4}
MORE_DENSE_ORDERS = {"adaptive_heun": 2, "fehlberg2": 2, "heun3": 3, "rk4_38": 3}


def test_dense_orders():
    assert {name: t.with_last_slope().dense_order for name, t in ALL.items()} == DENSE_ORDERS | MORE_DENSE_ORDERS
    for name, tableau in ALL.items():
        if name not in FIRST_SAME_AS_LAST:
            assert tableau.dense_order == 0 and tableau.dense_polynomials == ()
            with pytest.raises(ValueError, match=rf"{name} has no dense output .* use with_last_slope\(\)"):
                tableau.dense_weights(0.5)


@every_dense
def test_dense_output_joins_the_ends(tableau):
    polynomials = tableau.dense_polynomials
    assert all(len(row) == 4 for row in polynomials)  # no constant: b(0) = 0
    assert tuple(map(sum, polynomials)) == tableau.b
    assert tableau.dense_weights(0.0) == [0.0] * tableau.stages
    np.testing.assert_allclose(tableau.dense_weights(1.0), floats(tableau.b), rtol=0, atol=1e-13)


@every_dense
def test_dense_output_has_the_slopes_of_the_ends(tableau):
    # b'(0) picks the first stage and b'(1) the last, so that steps join smoothly.
    first, last = [[int(i == end) for i in range(tableau.stages)] for end in (0, tableau.stages - 1)]
    assert [row[0] for row in tableau.dense_polynomials] == first
    assert [sum(p * q for p, q in enumerate(row, start=1)) for row in tableau.dense_polynomials] == last


@pytest.mark.parametrize(("name", "scipys"), [("dopri5", RK45), ("bosh3", RK23)])
def test_dense_output_is_scipys(name, scipys):
    found = np.array([floats(row) for row in TABLEAUS[name].dense_polynomials])
    np.testing.assert_allclose(found[:, : scipys.P.shape[1]], scipys.P, rtol=0, atol=1e-14)
    assert not found[:, scipys.P.shape[1] :].any()


@pytest.mark.parametrize("theta", [0.1, 0.5, 0.77])
def test_dense_output_of_tsit5_is_its_papers(theta):
    # Tsitouras 2011, the interpolant in the factors that it prints.
    square = theta**2
    printed = [
        -1.0530884977290216
        * theta
        * (theta - 1.3299890189751412)
        * (square - 1.4364028541716351 * theta + 0.7139816917074209),
        0.1017 * square * (square - 2.1966568338249754 * theta + 1.2949852507374631),
        2.490627285651253 * square * (square - 2.38535645472061657 * theta + 1.57803468208092486),
        -16.54810288924490272 * square * (theta - 1.21712927295533244) * (theta - 0.61620406037800089),
        47.37952196281928122 * square * (theta - 1.203071208372362603) * (theta - 0.658047292653547382),
        -34.87065786149660974 * square * (theta - 1.2) * (theta - 2 / 3),
        2.5 * square * (theta - 1) * (theta - 0.6),
    ]
    np.testing.assert_allclose(TABLEAUS["tsit5"].dense_weights(theta), printed, rtol=0, atol=1e-13)


def exact(t: float) -> np.ndarray:
    """y = 1/(1 + t²) and u = exp(arctan t), which solve y' = −2ty², u' = yu."""
    return np.array([1 / (1 + t * t), np.exp(np.arctan(t))])


def dense_error(tableau: ButcherTableau, theta: float, h: float, t: float) -> float:
    """The error at ϑ in one step of size h from the exact solution at t."""
    slopes: list[np.ndarray] = []

    def after(weights: Sequence[float]) -> np.ndarray:
        return exact(t) + h * sum((w * k for w, k in zip(weights, slopes, strict=False)), np.zeros(2))

    for row, node in zip(tableau.a, floats(tableau.c), strict=True):
        y, u = after(floats(row))
        slopes.append(np.array([-2 * (t + node * h) * y * y, y * u]))
    return float(np.linalg.norm(after(tableau.dense_weights(theta)) - exact(t + theta * h)))


@every_dense
@pytest.mark.parametrize("theta", [0.2, 0.5, 0.85])
def test_the_local_error_of_dense_output_is_of_its_order(tableau, theta):
    # From several times, since at a single one the leading error may happen to be near 0.
    steps = (16, 32, 64)
    errors = [math.hypot(*(dense_error(tableau, theta, 1 / n, t) for t in (-0.9, -0.3, 0.2, 0.7))) for n in steps]
    assert order_of_convergence(steps, errors) == pytest.approx(tableau.dense_order + 1, abs=0.15)


def test_dense_weights_of_numbers_are_numbers():
    weights = TABLEAUS["dopri5"].dense_weights(0.25)
    assert [type(weight) for weight in weights] == [float] * 7
    assert weights[1] == 0  # the second stage of dopri5 weighs nothing anywhere


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_dense_weights_of_tensors_are_tensors(dtype, shape, generator):
    tableau, theta = TABLEAUS["dopri5"], torch.rand(shape, generator=generator, dtype=dtype)
    weights = tableau.dense_weights(theta)
    assert weights.pop(1) == 0.0
    assert all(weight.shape == shape and weight.dtype == dtype for weight in weights)
    for row, value in enumerate(theta.flatten().tolist()):
        expected = tableau.dense_weights(value)
        expected.pop(1)
        found = [weight.flatten()[row].item() for weight in weights]
        assert found == pytest.approx(expected, abs=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["dopri5", "tsit5"])
def test_wrong_quartic_weights_are_refused(name):
    tableau = TABLEAUS[name]
    for i in range(tableau.stages):
        wrong = tuple(d + NUDGE * (k == i) for k, d in enumerate(tableau.quartic))
        with pytest.raises(ValueError, match=f"{name}: the dense condition of order 1 .* for the power 2, expected 0"):
            replace(tableau, quartic=wrong)
    with pytest.raises(ValueError, match=f"{name}: the dense condition of order 4"):
        replace(tableau, quartic=(Fraction(0),) * tableau.stages)
    with pytest.raises(ValueError, match="quartic weights must be 7, got 6"):
        replace(tableau, quartic=tableau.quartic[1:])


def test_quartic_weights_need_the_last_slope():
    with pytest.raises(ValueError, match="rk4: dense output needs f at the end of the step as the last stage"):
        replace(TABLEAUS["rk4"], quartic=(Fraction(0),) * 4)
