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
from torchdiffeq._impl import adaptive_heun as torchdiffeq_adaptive_heun
from torchdiffeq._impl import bosh3 as torchdiffeq_bosh3
from torchdiffeq._impl import dopri5 as torchdiffeq_dopri5
from torchdiffeq._impl import fehlberg2 as torchdiffeq_fehlberg2

from adjoint_meta.solvers import TABLEAUS, ButcherTableau
from adjoint_meta.solvers.butcher import _density, rooted_trees
from adjoint_meta.solvers.stability import real_stability_limit
from adjoint_meta.solvers.tableaus import MORE_TABLEAUS

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "bosh3": 3, "rk4": 4, "dopri5": 5, "tsit5": 5}
MORE_ORDERS = {"adaptive_heun": 2, "fehlberg2": 2, "heun3": 3, "rk4_38": 4}
FIRST_SAME_AS_LAST = ["bosh3", "dopri5", "tsit5"]
DENSE_ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "bosh3": 3, "rk4": 3, "dopri5": 4, "tsit5": 4}
MORE_DENSE_ORDERS = {"adaptive_heun": 2, "fehlberg2": 2, "heun3": 3, "rk4_38": 3}
NUDGE = Fraction(1, 1000)

ALL = {**TABLEAUS, **MORE_TABLEAUS}
every_tableau = pytest.mark.parametrize("tableau", ALL.values(), ids=ALL)
every_dense = pytest.mark.parametrize("tableau", [t.with_last_slope() for t in ALL.values()], ids=ALL)


def dense(tableau: ButcherTableau) -> np.ndarray:
    """The square matrix A."""
    return np.array([[float(x) for x in row] + [0.0] * (tableau.stages - len(row)) for row in tableau.a])


def floats(weights: tuple[Fraction, ...]) -> np.ndarray:
    return np.array([float(weight) for weight in weights])


def test_the_methods_and_their_orders():
    assert {name: tableau.order for name, tableau in TABLEAUS.items()} == ORDERS
    assert {name: tableau.order for name, tableau in MORE_TABLEAUS.items()} == MORE_ORDERS
    assert all(tableau.name == name and tableau.source for name, tableau in ALL.items())


@pytest.mark.parametrize(("nodes", "count"), [*enumerate([1, 1, 2, 4, 9, 20], start=1)])
def test_number_of_rooted_trees(nodes, count):
    # OEIS A000081
    trees = rooted_trees(nodes)
    assert len(trees) == len(set(trees)) == count


def test_densities_of_the_trees_of_order_four():
    # Hairer, Nørsett, Wanner, Solving ODEs I, II.2, Table 2.2
    assert sorted(map(_density, rooted_trees(4))) == [4, 8, 12, 24]


@every_tableau
def test_no_method_satisfies_the_conditions_of_a_higher_order(tableau):
    with pytest.raises(ValueError, match=f"condition of order {tableau.order + 1}"):
        replace(tableau, order=tableau.order + 1)


@pytest.mark.parametrize("tableau", [t for t in ALL.values() if t.embedded], ids=lambda t: t.name)
def test_the_embedded_method_is_one_order_lower_and_not_better(tableau):
    assert tableau.embedded_order == tableau.order - 1
    with pytest.raises(ValueError, match=f"condition of order {tableau.order}"):
        replace(tableau, embedded_order=tableau.order)


@every_tableau
def test_a_wrong_row_sum_is_refused(tableau):
    for i in range(tableau.stages):
        nodes = list(tableau.c)
        nodes[i] += NUDGE
        with pytest.raises(ValueError, match=f"{tableau.name}: row {i} of a sums to"):
            replace(tableau, c=tuple(nodes))


def with_entry(tableau: ButcherTableau, i: int, j: int) -> ButcherTableau:
    """The tableau with a_ij nudged, and c_i too, so that only the order conditions can notice."""
    a, c = [list(row) for row in tableau.a], list(tableau.c)
    a[i][j] += NUDGE
    c[i] += NUDGE
    return replace(tableau, a=tuple(map(tuple, a)), c=tuple(c))


@every_tableau
def test_any_wrong_coefficient_is_refused(tableau):
    for i in range(tableau.stages):
        for j in range(i):
            with pytest.raises(ValueError, match=f"{tableau.name}: the condition of order"):
                with_entry(tableau, i, j)
        for field in ("b", "embedded"):
            weights = getattr(tableau, field)
            if weights is not None:
                wrong = tuple(w + NUDGE * (k == i) for k, w in enumerate(weights))
                with pytest.raises(ValueError, match=r"condition of order 1 .* expected 1/1"):
                    replace(tableau, **{field: wrong})


def test_two_weights_that_still_sum_to_one_are_refused():
    rk4 = TABLEAUS["rk4"]
    swapped = (rk4.b[1], rk4.b[0], rk4.b[2], rk4.b[3])
    with pytest.raises(ValueError, match="condition of order 2"):
        replace(rk4, b=swapped)


@pytest.mark.parametrize(
    "change",
    [
        {"a": ((), (Fraction(1, 2), Fraction(0)))},
        {"a": ((),)},
        {"a": ((), (Fraction(1, 2),), (Fraction(1, 2), Fraction(0)))},
        {"c": (Fraction(0),)},
        {"b": (Fraction(1),)},
    ],
)
def test_wrong_shapes_are_refused(change):
    with pytest.raises(ValueError, match="midpoint: a must be strictly lower triangular"):
        replace(TABLEAUS["midpoint"], **change)


def test_embedded_weights_of_the_wrong_number_are_refused():
    with pytest.raises(ValueError, match="embedded weights must be 2, got 1"):
        replace(TABLEAUS["heun"], embedded=(Fraction(1),))


def test_embedded_weights_need_an_order():
    # Otherwise any weights at all would pass for an error estimate.
    nonsense = (Fraction(7), Fraction(-3))
    with pytest.raises(ValueError):
        replace(TABLEAUS["heun"], embedded=nonsense, embedded_order=0)


def test_first_same_as_last_and_stages_needed():
    assert [name for name, t in TABLEAUS.items() if t.first_same_as_last] == FIRST_SAME_AS_LAST
    assert not any(t.first_same_as_last for t in MORE_TABLEAUS.values())
    assert {name: t.solution_stages for name, t in TABLEAUS.items()} == {
        "euler": 1,
        "midpoint": 2,
        "heun": 2,
        "bosh3": 3,
        "rk4": 4,
        "dopri5": 6,
        "tsit5": 6,
    }


@pytest.mark.parametrize(("name", "scipys"), [("dopri5", RK45), ("bosh3", RK23)])
def test_coefficients_are_scipys(name, scipys):
    tableau, stages = TABLEAUS[name], len(scipys.B)
    np.testing.assert_allclose(dense(tableau)[:stages, : scipys.A.shape[1]], scipys.A, rtol=0, atol=1e-15)
    np.testing.assert_allclose(floats(tableau.c)[:stages], scipys.C, rtol=0, atol=1e-15)
    np.testing.assert_allclose(floats(tableau.b)[:stages], scipys.B, rtol=0, atol=1e-15)
    # SciPy's E is the embedded solution minus the solution.
    np.testing.assert_allclose(floats(tableau.embedded) - floats(tableau.b), scipys.E, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("dopri5", torchdiffeq_dopri5._DORMAND_PRINCE_SHAMPINE_TABLEAU),
        ("bosh3", torchdiffeq_bosh3._BOGACKI_SHAMPINE_TABLEAU),
        ("adaptive_heun", torchdiffeq_adaptive_heun._ADAPTIVE_HEUN_TABLEAU),
        ("fehlberg2", torchdiffeq_fehlberg2._FEHLBERG2_TABLEAU),
    ],
)
def test_coefficients_are_torchdiffeqs(name, theirs):
    tableau = ALL[name]
    np.testing.assert_allclose(floats(tableau.c)[1:], theirs.alpha, rtol=0, atol=1e-15)
    for row, their_row in zip(tableau.a[1:], theirs.beta, strict=True):
        np.testing.assert_allclose(floats(row), their_row, rtol=0, atol=1e-14)
    np.testing.assert_allclose(floats(tableau.b), theirs.c_sol, rtol=0, atol=1e-15)
    if name != "dopri5":  # torchdiffeq's estimates its error by Shampine's weights, not Dormand and Prince's
        np.testing.assert_allclose(tableau.error_weights, theirs.c_error, rtol=0, atol=1e-15)


def test_tsit5_has_the_structure_and_error_weights_of_its_paper():
    tableau = TABLEAUS["tsit5"]
    # Tsitouras 2011: c_6 = c_7 = 1, b_2 = 0.01 is chosen freely, and Σ_i b_i a_ij = b_j (1 − c_j) for every j > 1.
    b, c, a = floats(tableau.b), floats(tableau.c), dense(tableau)
    assert c[5] == c[6] == 1
    np.testing.assert_allclose(b[1], 0.01)
    np.testing.assert_allclose((b @ a)[1:], (b * (1 - c))[1:], rtol=0, atol=1e-14)
    # b̂ − b as printed in Table 1, its last entry with the sign that makes the weights sum to zero.
    printed = [
        -0.001780011052226,
        -0.000816434459657,
        0.007880878010262,
        -0.144711007173263,
        0.582357165452555,
        -0.458082105929187,
        1 / 66,
    ]
    np.testing.assert_allclose(floats(tableau.embedded) - b, printed, rtol=0, atol=1e-14)


@every_tableau
def test_floats_are_the_nearest_to_the_fractions(tableau):
    a, b, c = tableau.floats
    assert [list(row) for row in a] == [[float(x) for x in row] for row in tableau.a]
    assert list(b) == [float(x) for x in tableau.b]
    assert list(c) == [float(x) for x in tableau.c]


@every_tableau
def test_error_weights_are_the_difference_rounded_once(tableau):
    if tableau.embedded is None:
        assert tableau.error_weights == ()
    else:
        differences = [b - other for b, other in zip(tableau.b, tableau.embedded, strict=True)]
        assert list(tableau.error_weights) == [float(difference) for difference in differences]
        assert abs(sum(differences)) < 1e-13 and any(differences)


# One more stage at the end


@pytest.mark.parametrize("name", FIRST_SAME_AS_LAST)
def test_a_tableau_with_the_last_slope_is_its_own_extension(name):
    assert TABLEAUS[name].with_last_slope() is TABLEAUS[name]


@pytest.mark.parametrize("name", [name for name in ALL if name not in FIRST_SAME_AS_LAST])
def test_the_last_slope_is_one_more_stage_that_weighs_nothing(name):
    tableau, extended = ALL[name], ALL[name].with_last_slope()
    assert extended.first_same_as_last and extended.stages == tableau.stages + 1
    assert (extended.name, extended.order, extended.source) == (tableau.name, tableau.order, tableau.source)
    assert extended.a == (*tableau.a, tableau.b) and extended.c == (*tableau.c, 1) and extended.b == (*tableau.b, 0)
    assert extended.solution_stages == tableau.solution_stages
    assert extended.embedded == (None if tableau.embedded is None else (*tableau.embedded, 0))
    assert extended.embedded_order == tableau.embedded_order
    assert extended.error_weights == tableau.error_weights + (0.0,) * (tableau.embedded is not None)
    assert extended.stability_polynomial == tableau.stability_polynomial
    assert extended.with_last_slope() is extended


# Stability


@every_tableau
def test_the_stability_polynomial_is_that_of_the_resolvent(tableau):
    # R(z) = 1 + z bᵀ(I − zA)⁻¹ 𝟙, Hairer and Wanner, Solving ODEs II, IV.2 and IV.3.
    a, b, one = dense(tableau), floats(tableau.b), np.ones(tableau.stages)
    for z in (-3.0, -0.7, 0.4, 1 + 2j):
        expected = 1 + z * b @ np.linalg.solve(np.eye(tableau.stages) - z * a, one)
        assert np.polyval(tableau.stability_polynomial[::-1], z) == pytest.approx(expected, rel=1e-12)
    # It is exp up to the order, and not one power further.
    taylor = [1 / math.factorial(power) for power in range(tableau.order + 1)]
    assert tableau.stability_polynomial[: len(taylor)] == pytest.approx(taylor, rel=1e-13)
    assert len(tableau.stability_polynomial) == tableau.solution_stages + 1


@every_dense
def test_the_method_is_stable_up_to_the_limit_and_not_behind_it(tableau):
    a, b = dense(tableau), floats(tableau.b)

    def grows(x: float) -> float:
        return abs(1 - x * b @ np.linalg.solve(np.eye(tableau.stages) + x * a, np.ones(tableau.stages)))

    limit = tableau.stability_limit
    assert isinstance(limit, float)
    assert max(grows(x) for x in np.linspace(0, limit, 400)) <= 1 + 1e-13
    assert grows(limit * (1 + 1e-6)) > 1 + 1e-8


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("euler", 2),
        ("midpoint", 2),
        ("heun", 2),
        # 1 − x + x²/2 − x³/6 = −1 and 1 − x + x²/2 − x³/6 + x⁴/24 = 1, by Cardano's formula.
        ("bosh3", 1 + (4 + 17**0.5) ** (1 / 3) - (4 + 17**0.5) ** (-1 / 3)),
        ("rk4", 4 / 3 + ((464 / 9) ** 0.5 + 172 / 27) ** (1 / 3) - ((464 / 9) ** 0.5 - 172 / 27) ** (1 / 3)),
    ],
)
def test_known_limits(name, limit):
    assert TABLEAUS[name].stability_limit == pytest.approx(limit, rel=1e-14)


def test_limits_to_four_figures():
    limits = {name: round(tableau.stability_limit, 4) for name, tableau in ALL.items()}
    assert limits == {
        "euler": 2.0,
        "midpoint": 2.0,
        "heun": 2.0,
        "bosh3": 2.5127,
        "rk4": 2.7853,
        "dopri5": 3.3066,
        "tsit5": 3.5068,
        "adaptive_heun": 2.0,
        "fehlberg2": 2.0078,
        "heun3": 2.5127,
        "rk4_38": 2.7853,
    }


def chebyshev(degree: int) -> list[Fraction]:
    """R(z) = T_s(1 + z/s²), whose |R(−x)| touches 1 at s − 1 points before it leaves at 2s²."""
    argument = np.polynomial.Polynomial([Fraction(1), Fraction(1, degree**2)])
    below, here = np.polynomial.Polynomial([Fraction(1)]), argument
    for _ in range(degree - 1):
        below, here = here, 2 * argument * here - below
    return list(here.coef)


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5, 6])
def test_touching_the_bound_does_not_end_the_interval(degree):
    assert real_stability_limit(chebyshev(degree)) == pytest.approx(2 * degree**2, rel=1e-12)


@pytest.mark.parametrize(
    ("coefficients", "limit"),
    [
        # Leaves through −1, and comes back through it before it leaves for good through 1 at x = 10.
        (["1", "1", "1/10"], 5 - 5**0.5),
        # Leaves through 1, without a crossing of −1.
        (["1", "1", "1"], 1),
    ],
)
def test_the_first_crossing_ends_the_interval(coefficients, limit):
    assert real_stability_limit([Fraction(entry) for entry in coefficients]) == pytest.approx(limit, rel=1e-14)


def test_a_polynomial_that_stays_is_refused():
    with pytest.raises(ValueError, match="no end of the stability interval of 1 was found"):
        real_stability_limit([Fraction(1)])


# Dense output


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
