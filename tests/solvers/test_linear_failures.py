"""A row that conjugate gradients cannot solve fails alone and with its reason; wrong arguments are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_systems import diagonal
from references import conjugate_gradient_iterates, relative

from adjoint_meta.solvers import SolverError, Status, conjugate_gradient


def test_max_steps_is_a_status_with_advice():
    x, info = conjugate_gradient(diagonal([1.0, 2, 3]), torch.ones(1, 3), tol=1e-10, max_steps=2)
    assert info.status == [Status.MAX_STEPS]
    assert info.residual[0] > 1e-10
    assert torch.isfinite(x).all()
    with pytest.raises(SolverError, match=r"the linear solve failed in 1 of 1 rows \(row 0\).*allow more steps"):
        info.raise_if_failed()
    info.raise_if_failed(acceptable=(Status.SUCCESS, Status.MAX_STEPS))


def test_no_steps_give_zero():
    x, info = conjugate_gradient(diagonal([1.0, 2, 3]), torch.ones(1, 3), max_steps=0)
    assert torch.equal(x, torch.zeros(1, 3))
    assert (info.products, info.steps.tolist(), info.status) == (0, [0], [Status.MAX_STEPS])
    assert info.residual.tolist() == [1.0]


def test_negative_curvature_stops_its_row_only():
    matvec = diagonal([1.0, 2, 3], [3.0, 2, -1], [-1.0, -1, -1])
    b = torch.tensor([[1.0, 1, 1], [5.0, 1, 1], [1.0, 1, 1]])
    x, info = conjugate_gradient(matvec, b, tol=1e-10, max_steps=10)
    assert info.status == [Status.SUCCESS, Status.NEGATIVE_CURVATURE, Status.NEGATIVE_CURVATURE]
    assert relative(x[0], torch.tensor([1.0, 1 / 2, 1 / 3])) < 1e-10
    # The second row met it after some steps and kept the iterate it had; the third never moved.
    steps = int(info.steps[1])
    assert steps > 0
    expected = conjugate_gradient_iterates(np.diag([3.0, 2, -1]), b[1].numpy(), steps)
    assert np.allclose(x[1].numpy(), expected[steps])
    assert torch.equal(x[2], torch.zeros(3)) and info.steps[2] == 0
    with pytest.raises(SolverError, match=r"2 of 3 rows \(row 1, 2\).*negative curvature.*proximal"):
        info.raise_if_failed()


def test_a_singular_operator_breaks_down():
    # (1, 0) with b = (1, 1): the residual's component in the kernel can never be removed.
    x, info = conjugate_gradient(diagonal([1.0, 0], [0.0, 0], [1.0, 2]), torch.ones(3, 2), tol=1e-10, max_steps=10)
    assert info.status == [Status.BREAKDOWN, Status.BREAKDOWN, Status.SUCCESS]
    assert torch.isfinite(x).all()
    assert relative(x[2], torch.tensor([1.0, 0.5])) < 1e-12
    with pytest.raises(SolverError, match=r"singular or not symmetric.*damping"):
        info.raise_if_failed()


def test_a_singular_system_with_a_solution_is_solved():
    x, info = conjugate_gradient(diagonal([2.0, 0]), torch.tensor([[1.0, 0.0]]))
    assert info.status == [Status.SUCCESS]
    assert torch.equal(x, torch.tensor([[0.5, 0.0]]))


def test_products_that_are_not_finite_break_down_their_row_only():
    x, info = conjugate_gradient(diagonal([1.0, float("nan")], [1.0, float("inf")], [1.0, 2]), torch.ones(3, 2))
    assert info.status == [Status.BREAKDOWN, Status.BREAKDOWN, Status.SUCCESS]
    assert torch.isfinite(x).all()


def test_a_right_hand_side_that_is_not_finite_breaks_down_its_row_only():
    b = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0], [1.0, 1.0]])
    x, info = conjugate_gradient(diagonal(*[[1.0, 2.0]] * 3), b)
    assert info.status == [Status.BREAKDOWN, Status.BREAKDOWN, Status.SUCCESS]
    assert torch.equal(x[:2], torch.zeros(2, 2))
    assert relative(x[2], torch.tensor([1.0, 0.5])) < 1e-12


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"b": torch.ones(3)}, ValueError, r"b must have shape \[rows, P\].*got \[3\]"),
        ({"b": torch.ones(0, 3)}, ValueError, "at least one row"),
        ({"b": torch.ones(2, 3, dtype=torch.long)}, TypeError, "b must be floating point"),
        ({"b": [[1.0]]}, TypeError, "b must be a tensor"),
        ({"x0": torch.ones(2, 4)}, ValueError, r"x0 must have shape \[2, 3\], got \[2, 4\]"),
        ({"x0": torch.ones(2, 3, dtype=torch.float32)}, TypeError, "x0 must be torch.float64, got torch.float32"),
        ({"matvec": lambda v: v[:, :2]}, ValueError, r"matvec's result must have shape \[2, 3\]"),
        ({"matvec": lambda v: v.float()}, TypeError, "matvec's result must be torch.float64"),
        ({"tol": -1e-3}, ValueError, "tol must be finite and at least 0"),
        ({"tol": float("nan")}, ValueError, "tol must be finite"),
        ({"tol": "small"}, TypeError, "tol must be a number"),
        ({"max_steps": -1}, ValueError, "max_steps must be at least 0"),
        ({"max_steps": 2.5}, TypeError, "max_steps must be a whole number"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    given = {"matvec": lambda v: v, "b": torch.ones(2, 3), **arguments}
    with pytest.raises(error, match=message):
        conjugate_gradient(given.pop("matvec"), given.pop("b"), **given)
