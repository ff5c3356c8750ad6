"""Interpolants, against the tableau's dense weights and finite differences."""

from __future__ import annotations

import pytest
import torch

from adjoint_meta.solvers.interpolation import DenseOutput, Interpolant, slope, value
from adjoint_meta.solvers.runge_kutta import RungeKutta
from adjoint_meta.solvers.tableaus import TABLEAUS


def step(name, generator):
    tableau = TABLEAUS[name].with_last_slope()
    y, h = torch.randn(3, 2, generator=generator), torch.rand(3, 1, generator=generator)
    taken = RungeKutta(tableau).step(lambda t, y: torch.sin(y + t), 0.3, h, y, estimate=True)
    return tableau, y, h, taken


@pytest.mark.parametrize("name", TABLEAUS)
def test_dense_is_the_combination_of_dense_weights(name, generator):
    tableau, y, h, taken = step(name, generator)
    theta = torch.rand(3, 1, generator=generator)
    coefficients = Interpolant.dense(tableau).coefficients(y, h, taken)
    expected = y + h * sum(b * k for b, k in zip(tableau.dense_weights(theta), taken.slopes, strict=True))
    torch.testing.assert_close(value(y, h, coefficients, theta), expected)
    torch.testing.assert_close(value(y, h, coefficients, torch.ones(3, 1)), taken.end)
    torch.testing.assert_close(slope(coefficients, torch.zeros(3, 1)), taken.slopes[0])
    torch.testing.assert_close(slope(coefficients, torch.ones(3, 1)), taken.slopes[-1])
    small = 1e-6
    ahead, behind = (value(y, h, coefficients, theta + sign * small / h) for sign in (1, -1))
    torch.testing.assert_close(slope(coefficients, theta), (ahead - behind) / (2 * small), rtol=1e-7, atol=1e-8)


def test_linear_is_a_straight_line(generator):
    tableau, y, h, taken = step("rk4", generator)
    coefficients = Interpolant.linear(tableau).coefficients(y, h, taken)
    theta = torch.tensor([[0.0], [0.25], [1.0]])
    torch.testing.assert_close(value(y, h, coefficients, theta), y + theta * (taken.end - y))
    torch.testing.assert_close(slope(coefficients, theta), (taken.end - y) / h)


def test_dense_output_finds_the_step_of_each_row():
    """Rows on steps of their own, one backward, one with fewer steps: straight lines with known values."""
    nodes = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 3.0], [3.0, -3.0, 3.0]])
    starts = torch.stack([nodes[:-1] * 10], dim=-1)
    coefficients = torch.full((2, 1, 3, 1), 10.0)
    solution = DenseOutput(nodes, starts, coefficients)
    t = torch.tensor([[0.5, -0.5, 2.5], [1.0, -2.0, 3.0], [2.5, -2.5, 0.0], [0.0, 0.0, 0.0], [3.0, -3.0, 3.0]])
    torch.testing.assert_close(solution(t), 10 * t[..., None])
    torch.testing.assert_close(solution.ends(), 10 * nodes[1:, :, None])
    with pytest.raises(ValueError, match="the solution is known from"):
        solution(torch.tensor([[0.5, 0.5, 0.5]]))
    found = solution.where_known(torch.tensor([[0.5, 0.5, 4.0]]))
    assert found[0, 0, 0] == 5
    assert torch.isnan(found[0, 1:]).all()
