"""A tableau's stability polynomial is that of its resolvent, and its limit the end of the stable interval."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from tableau_references import ALL, dense, every_dense, every_tableau, floats

from adjoint_meta.solvers import TABLEAUS
from adjoint_meta.solvers.stability import real_stability_limit


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
