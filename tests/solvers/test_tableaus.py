"""Every tableau has its order and no higher, the published coefficients, and refuses any other."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy.integrate import RK23, RK45
from tableau_references import ALL, FIRST_SAME_AS_LAST, NUDGE, dense, every_tableau, floats
from torchdiffeq._impl import adaptive_heun as torchdiffeq_adaptive_heun
from torchdiffeq._impl import bosh3 as torchdiffeq_bosh3
from torchdiffeq._impl import dopri5 as torchdiffeq_dopri5
from torchdiffeq._impl import fehlberg2 as torchdiffeq_fehlberg2

from adjoint_meta.solvers import TABLEAUS, ButcherTableau
from adjoint_meta.solvers.butcher import _density, rooted_trees
from adjoint_meta.solvers.tableaus import MORE_TABLEAUS

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "bosh3": 3, "rk4": 4, "dopri5": 5, "tsit5": 5}
MORE_ORDERS = {"adaptive_heun": 2, "fehlberg2": 2, "heun3": 3, "rk4_38": 4}


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
