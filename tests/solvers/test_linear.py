"""Conjugate gradients are scipy's, each row stops on its own, and no linear solve touches its inputs or their dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_systems import definite, diagonal, product
from problems import symmetric
from references import conjugate_gradient_iterates, relative
from scipy.sparse.linalg import cg as scipy_cg

from adjoint_meta.solvers import Status, conjugate_gradient, neumann_series


def test_cg_solves_like_a_direct_solver(generator):
    a, b = definite(generator), torch.randn(4, 6, generator=generator)
    x, info = conjugate_gradient(product(a), b, tol=1e-12, max_steps=50)
    assert info.status == [Status.SUCCESS] * 4
    # An error of κ · tol is what the residual guarantees.
    assert relative(x, torch.linalg.solve(a, b)) < 1e-10
    assert torch.all(info.residual <= 1e-12)
    info.raise_if_failed()


@given(
    spectra=st.lists(st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=5), min_size=1, max_size=4),
    seed=st.integers(0, 2**20),
    tol=st.sampled_from([1e-2, 1e-5, 1e-8]),
)
def test_a_row_that_succeeds_has_the_residual_it_was_asked_for(spectra, seed, tol):
    generator = torch.Generator().manual_seed(seed)
    eigenvalues = torch.tensor(spectra)
    a = symmetric(generator, eigenvalues)
    b = torch.randn(*eigenvalues.shape, generator=generator)
    x, info = conjugate_gradient(product(a), b, tol=tol, max_steps=60)
    true = (b - product(a)(x)).norm(dim=1) / b.norm(dim=1)
    done = info.codes == Status.SUCCESS.code
    assert torch.all(info.residual[done] <= tol)
    # The recurrence drifts from the true residual by rounding times the condition number, at most 1e6 here.
    assert torch.allclose(true, info.residual, rtol=1e-3, atol=1e-9)
    assert set(info.status) <= {Status.SUCCESS, Status.MAX_STEPS}


@pytest.mark.parametrize("steps", range(6))
def test_cg_is_scipys_iterate_by_iterate(steps, generator):
    a, b = definite(generator, condition=10.0), torch.randn(4, 6, generator=generator)
    x, info = conjugate_gradient(product(a), b, tol=0.0, max_steps=steps)
    for row in range(4):
        iterates = [np.zeros(6)]
        scipy_cg(
            a[row].numpy(),
            b[row].numpy(),
            rtol=0.0,
            maxiter=max(steps, 1),
            callback=lambda xk, iterates=iterates: iterates.append(xk.copy()),
        )
        assert np.allclose(x[row].numpy(), iterates[steps], rtol=1e-11, atol=1e-12)
        textbook = conjugate_gradient_iterates(a[row].numpy(), b[row].numpy(), steps)[-1]
        assert np.allclose(x[row].numpy(), textbook, rtol=1e-11, atol=1e-12)
    assert info.steps.tolist() == [steps] * 4
    assert info.products == steps


@pytest.mark.parametrize("tol", [0.5, 0.2, 1e-1, 1e-2, 1e-3])
def test_a_row_stops_at_the_first_step_within_its_tolerance(tol, generator):
    # Right-hand sides of any size: the tolerance is relative.
    a, scale = definite(generator, rows=24), 10.0 ** torch.linspace(-3, 3, 24)[:, None]
    b = scale * torch.randn(24, 6, generator=generator)
    _, info = conjugate_gradient(product(a), b, tol=tol, max_steps=50)
    for row in range(24):
        matrix, right = a[row].numpy(), b[row].numpy()
        sizes = [np.linalg.norm(right - matrix @ x) for x in conjugate_gradient_iterates(matrix, right, 6)]
        first = next(k for k, size in enumerate(sizes) if size <= tol * np.linalg.norm(right))
        assert info.steps[row] == first


def test_every_row_converges_on_its_own():
    # A matrix with k distinct eigenvalues is solved in k steps.
    matvec = diagonal([1.0, 1, 1, 1, 1], [1.0, 2, 1, 2, 1], [1.0, 2, 3, 4, 5])
    b = torch.ones(3, 5)
    x, info = conjugate_gradient(matvec, b, tol=1e-10, max_steps=20)
    assert info.steps.tolist() == [1, 2, 5]
    assert info.products == 5
    assert relative(matvec(x), b) < 1e-10
    for row in range(3):
        entries = matvec(torch.ones(3, 5))[row : row + 1]
        alone, its = conjugate_gradient(lambda v, d=entries: d * v, b[row : row + 1], tol=1e-10, max_steps=20)
        assert its.steps.tolist() == [info.steps[row]]
        assert relative(x[row], alone[0]) < 1e-14


@pytest.mark.parametrize("max_steps", [2, 3, 4, 20])
def test_a_row_that_has_stopped_does_not_change(max_steps):
    matvec, b = diagonal([1.0, 1, 1, 1, 1], [1.0, 2, 1, 2, 1], [1.0, 2, 3, 4, 5]), torch.ones(3, 5)
    first, _ = conjugate_gradient(matvec, b, tol=1e-10, max_steps=1)
    second, _ = conjugate_gradient(matvec, b, tol=1e-10, max_steps=2)
    later, info = conjugate_gradient(matvec, b, tol=1e-10, max_steps=max_steps)
    assert torch.equal(later[0], first[0])
    assert torch.equal(later[1], second[1])
    assert info.steps.tolist() == [1, 2, min(max_steps, 5)]
    assert info.status[2] is (Status.SUCCESS if max_steps >= 5 else Status.MAX_STEPS)


def test_a_zero_right_hand_side_is_solved_by_zero():
    b = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    x, info = conjugate_gradient(diagonal([1.0, 2], [1.0, 2]), b, tol=1e-10)
    assert info.status == [Status.SUCCESS] * 2
    assert info.steps.tolist() == [0, 2]
    assert torch.equal(x[0], torch.zeros(2))
    assert info.residual[0] == 0
    _, alone = conjugate_gradient(diagonal([1.0, 2]), b[:1])
    assert alone.products == 0


def test_a_start_at_the_solution_takes_no_step(generator):
    a, b = definite(generator), torch.randn(4, 6, generator=generator)
    solution = torch.linalg.solve(a, b)
    x, info = conjugate_gradient(product(a), b, x0=solution, tol=1e-10)
    assert torch.equal(x, solution)
    assert info.steps.tolist() == [0] * 4
    assert info.products == 1
    assert info.status == [Status.SUCCESS] * 4


def test_a_warm_start_solves_for_the_rest(generator):
    a, b = definite(generator, condition=10.0), torch.randn(4, 6, generator=generator)
    x0 = torch.randn(4, 6, generator=generator)
    rest, _ = conjugate_gradient(product(a), b - product(a)(x0), tol=0.0, max_steps=3)
    x, _ = conjugate_gradient(product(a), b, x0=x0, tol=0.0, max_steps=3)
    assert relative(x, x0 + rest) < 1e-12


def test_inputs_are_left_as_they_were(generator):
    a, b = definite(generator), torch.randn(4, 6, generator=generator)
    x0 = torch.randn(4, 6, generator=generator)
    before = (b.clone(), x0.clone())
    conjugate_gradient(product(a), b, x0=x0)
    neumann_series(product(a), b, scale=0.01, steps=3)
    assert torch.equal(b, before[0]) and torch.equal(x0, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-30, -25, -20, 0, 15])
def test_the_size_of_the_right_hand_side_does_not_matter(dtype, exponent):
    # Small cotangents are ordinary in float32: a mean over many tasks of a loss near its minimum. 10⁻³⁰ is a normal
    # float32 number, its square is not.
    b = torch.tensor([[1.0, 1.0, 1.0]], dtype=dtype) * 10.0**exponent
    x, info = conjugate_gradient(diagonal([1.0, 2, 3]), b, tol=1e-5)
    assert info.status == [Status.SUCCESS]
    assert torch.allclose(x / 10.0**exponent, torch.tensor([[1.0, 1 / 2, 1 / 3]], dtype=dtype), rtol=1e-4)


def test_the_largest_right_hand_side():
    largest = torch.finfo(torch.float32).max
    x, info = conjugate_gradient(lambda v: 2 * v, torch.full((1, 3), largest, dtype=torch.float32))
    assert info.status == [Status.SUCCESS] and torch.allclose(x, torch.full_like(x, largest / 2))


def test_float32_stays_float32(generator):
    a, b = definite(generator).float(), torch.randn(4, 6, generator=generator).float()
    x, info = conjugate_gradient(product(a), b, tol=1e-4, max_steps=50)
    assert x.dtype == info.residual.dtype == torch.float32
    # κ times the tolerance.
    assert relative(x, torch.linalg.solve(a, b)) < 50 * 1e-4
    x, info = neumann_series(product(a), b, scale=0.01, steps=3)
    assert x.dtype == info.residual.dtype == torch.float32
