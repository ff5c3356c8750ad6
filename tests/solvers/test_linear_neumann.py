"""The Neumann series is the truncated sum, knows its residual, and reports growth."""

from __future__ import annotations

import pytest
import torch
from linear_systems import definite, diagonal, product
from references import relative

from adjoint_meta.solvers import SolverError, Status, neumann_series


@pytest.mark.parametrize("steps", [0, 1, 4, 9])
def test_neumann_is_the_truncated_sum(steps, generator):
    a, b = definite(generator, condition=5.0), torch.randn(4, 6, generator=generator)
    calls = []

    def counted(v):
        calls.append(v)
        return product(a)(v)

    x, info = neumann_series(counted, b, scale=0.15, steps=steps)
    remainder = torch.eye(6) - 0.15 * a
    series = 0.15 * sum(torch.linalg.matrix_power(remainder, q) for q in range(steps + 1))
    assert relative(x, product(series)(b)) < 1e-14
    assert info.products == len(calls)
    assert info.steps.tolist() == [steps] * 4


@pytest.mark.parametrize("steps", [0, 1, 4, 9])
def test_the_neumann_residual_is_that_of_the_sum_without_its_last_term(steps, generator):
    a, b = definite(generator, condition=5.0), torch.randn(4, 6, generator=generator)
    _, info = neumann_series(product(a), b, scale=0.15, steps=steps)
    before = neumann_series(product(a), b, scale=0.15, steps=steps - 1)[0] if steps else torch.zeros_like(b)
    assert relative(info.residual, (b - product(a)(before)).norm(dim=1) / b.norm(dim=1)) < 1e-12


def test_neumann_converges_to_the_solution(generator):
    a, b = definite(generator, condition=5.0), torch.randn(4, 6, generator=generator)
    x, info = neumann_series(product(a), b, scale=0.15, steps=300)
    assert relative(x, torch.linalg.solve(a, b)) < 1e-12
    assert info.status == [Status.SUCCESS] * 4


def test_neumann_reports_a_series_that_grows():
    # scale · A = 2.5 lies outside (0, 2), and so does −0.1.
    _, info = neumann_series(diagonal([2.5, 1], [0.5, 1], [-0.1, 1]), torch.ones(3, 2), scale=1.0, steps=20)
    assert info.status == [Status.DIVERGED, Status.SUCCESS, Status.DIVERGED]
    with pytest.raises(SolverError, match=r"row 0, 2.*decrease the scale"):
        info.raise_if_failed()


def test_neumann_reports_growth_that_has_not_yet_won():
    # The terms grow from the second on, though their norm is still below that of b.
    _, info = neumann_series(diagonal([2.5, 1]), torch.tensor([[0.01, 1.0]]), scale=1.0, steps=5)
    assert info.status == [Status.DIVERGED]


def test_neumann_with_values_that_are_not_finite_fails():
    _, info = neumann_series(diagonal([float("nan"), 1], [1.0, 1]), torch.ones(2, 2), scale=1.0, steps=2)
    assert info.status == [Status.DIVERGED, Status.SUCCESS]


def test_neumann_of_zero_is_zero():
    x, info = neumann_series(diagonal([1.0, 2]), torch.zeros(1, 2), scale=0.5, steps=3)
    assert torch.equal(x, torch.zeros(1, 2))
    assert info.status == [Status.SUCCESS] and info.residual.tolist() == [0.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, "scale must be positive"),
        ({"steps": -1}, ValueError, "steps must be at least 0"),
        ({"b": torch.ones(3)}, ValueError, r"b must have shape \[rows, P\]"),
        ({"matvec": lambda v: v[:1]}, ValueError, "matvec's result must have shape"),
    ],
)
def test_wrong_arguments_of_neumann_are_refused(arguments, error, message):
    given = {"matvec": lambda v: v, "b": torch.ones(2, 3), "scale": 0.5, "steps": 2, **arguments}
    with pytest.raises(error, match=message):
        neumann_series(given.pop("matvec"), given.pop("b"), **given)
