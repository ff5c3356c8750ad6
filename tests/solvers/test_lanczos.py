from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import symmetric
from references import relative
from scipy.linalg import eigh_tridiagonal

from adjoint_meta.solvers import lanczos


def product(a: torch.Tensor):
    """The batched product with matrices ``[rows, P, P]``."""
    return lambda v: torch.einsum("rij,rj->ri", a, v)


def tridiagonal(found, row: int) -> torch.Tensor:
    return torch.diag(found.diagonal[row]) + torch.diag(found.off[row], 1) + torch.diag(found.off[row], -1)


def indefinite(generator: torch.Generator, rows: int = 3, size: int = 7) -> torch.Tensor:
    return symmetric(generator, torch.randn(rows, size, generator=generator))


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_the_projection_is_the_one_by_definition(steps, generator):
    a, start = indefinite(generator), torch.randn(3, 7, generator=generator)
    found = lanczos(product(a), start, steps)
    assert found.diagonal.shape == (3, steps) and found.off.shape == (3, steps - 1)
    assert found.basis.shape == (steps, 3, 7)
    for row in range(3):
        # QᵀQ = I, QᵀAQ = T, and Q spans start, A start, A² start, …, each vector adding one of them.
        q = found.basis[:, row].T
        assert torch.allclose(q.T @ q, torch.eye(steps), atol=1e-14)
        assert torch.allclose(q.T @ a[row] @ q, tridiagonal(found, row), atol=1e-13)
        krylov = torch.stack([torch.linalg.matrix_power(a[row], k) @ start[row] for k in range(steps)], dim=1)
        dense, triangle = torch.linalg.qr(krylov)
        assert torch.allclose(q * torch.sign((q * dense).sum(dim=0)), dense, atol=1e-9)
        assert torch.all(found.off[row] > 0) and float(q[:, 0] @ start[row]) > 0
        assert float(triangle.diagonal().abs().min()) > 1e-3


def test_one_product_a_step(generator):
    a, calls = indefinite(generator), []

    def counted(v):
        calls.append(v)
        return product(a)(v)

    found = lanczos(counted, torch.randn(3, 7, generator=generator), 4)
    assert len(calls) == 4
    assert all(torch.equal(v, q) for v, q in zip(calls, found.basis, strict=True))


def test_ritz_pairs_are_the_eigenpairs_of_t(generator):
    found = lanczos(product(indefinite(generator)), torch.randn(3, 7, generator=generator), 5)
    values, vectors = found.ritz()
    for row in range(3):
        expected, _ = eigh_tridiagonal(found.diagonal[row].numpy(), found.off[row].numpy())
        assert torch.allclose(values[row], torch.from_numpy(expected), atol=1e-13)
        assert relative(tridiagonal(found, row) @ vectors[row], vectors[row] * values[row]) < 1e-13


def test_ritz_values_converge_to_the_extreme_eigenvalues(generator):
    eigenvalues = torch.cat([torch.tensor([-4.0, 9.0]), torch.linspace(-1, 1, 38)])
    a, start = symmetric(generator, eigenvalues[None]), torch.randn(1, 40, generator=generator)
    low, high = [], []
    for steps in (2, 4, 8, 16):
        values, _ = lanczos(product(a), start, steps).ritz()
        low.append(float(values[0, 0]) + 4)
        high.append(9 - float(values[0, -1]))
    # From inside, monotonically, and fast: both lie far off the others.
    for gaps in (low, high):
        assert all(gap > -1e-12 for gap in gaps) and all(b < a + 1e-12 for a, b in pairwise(gaps))
        assert gaps[0] > 1e-3 and gaps[2] < 1e-4 and abs(gaps[3]) < 1e-9


def test_the_first_entries_of_the_eigenvectors_are_gauss_weights(generator):
    # k nodes integrate polynomials up to degree 2k − 1 exactly: Σ w_i θ_i^p = sᵀ A^p s / sᵀs.
    a, start = indefinite(generator), torch.randn(3, 7, generator=generator)
    values, vectors = lanczos(product(a), start, 3).ritz()
    weights = vectors[:, 0, :] ** 2
    for power in range(6):
        moment = torch.einsum("ri,rij,rj->r", start, torch.linalg.matrix_power(a, power), start) / (start**2).sum(dim=1)
        assert torch.allclose((weights * values**power).sum(dim=1), moment, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("size", [5, 60])
def test_the_basis_stays_orthogonal_and_ritz_values_do_not_repeat(size, generator):
    # Without a second pass the copies of the outlier appear after some fifteen steps.
    eigenvalues = torch.cat([torch.tensor([1e4]), torch.linspace(0, 1, size - 1)])
    a = symmetric(generator, eigenvalues[None])
    found = lanczos(product(a), torch.randn(1, size, generator=generator), min(size, 40))
    q = found.basis[:, 0]
    assert float((q @ q.T - torch.eye(len(q))).abs().max()) < 1e-12
    values, _ = found.ritz()
    assert int((values > 100).sum()) == 1


# Degenerate systems


def test_a_space_that_is_exhausted_goes_on_with_zeros(generator):
    # Rows whose start lies in an invariant space of dimension 1, 2 and 7.
    basis, _ = torch.linalg.qr(torch.randn(7, 7, generator=generator))
    eigenvalues = torch.arange(1.0, 8.0)
    a = (basis @ torch.diag(eigenvalues) @ basis.T).expand(3, 7, 7)
    start = torch.stack([basis[:, 2], basis[:, 0] + 2 * basis[:, 6], basis.sum(dim=1)])
    found = lanczos(product(a), start, 7)
    for row, expected in enumerate([[3.0], [1.0, 7.0], eigenvalues.tolist()]):
        kept = len(expected)
        assert not found.diagonal[row, kept:].any() and not found.off[row, kept - 1 :][: 7 - kept].any()
        assert not found.basis[kept:, row].any()
        values = torch.linalg.eigvalsh(tridiagonal(found, row)[:kept, :kept])
        assert values.tolist() == pytest.approx(expected, rel=1e-10)
    values, _ = found.ritz()
    assert torch.all((values > -1e-12).all(dim=1))


def test_more_steps_than_dimensions(generator):
    a, start = indefinite(generator, size=3), torch.randn(3, 3, generator=generator)
    values, _ = lanczos(product(a), start, 6).ritz()
    for row in range(3):
        expected = sorted([*torch.linalg.eigvalsh(a[row]).tolist(), 0.0, 0.0, 0.0])
        assert values[row].tolist() == pytest.approx(expected, abs=1e-12)


def test_zero_rows_and_zero_operators_are_zero(generator):
    a, start = indefinite(generator), torch.randn(3, 7, generator=generator)
    a[0], start[1] = 0, 0
    found = lanczos(product(a), start, 4)
    assert not found.diagonal[:2].any() and not found.off[:2].any() and not found.basis[:, 1].any()
    # The third row does not notice.
    alone = lanczos(product(a[2:]), start[2:], 4)
    assert torch.allclose(found.diagonal[2], alone.diagonal[0], rtol=1e-13)
    assert all(torch.isfinite(x).all() for x in (*found.ritz(), found.basis))


@given(power=st.integers(-280, 280))
def test_the_length_of_the_start_does_not_matter(power):
    generator = torch.Generator().manual_seed(3)
    a, start = indefinite(generator), torch.randn(3, 7, generator=generator)
    expected, found = (lanczos(product(a), x, 3) for x in (start, start * 10.0**power))
    assert torch.allclose(found.diagonal, expected.diagonal, atol=1e-13)
    assert torch.allclose(found.off, expected.off, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_stays(dtype, generator):
    a, start = indefinite(generator, size=20).to(dtype), torch.randn(3, 20, generator=generator).to(dtype)
    # Lengths whose squares leave the range of float32.
    for length in (1e-25, 1.0, 1e25):
        found = lanczos(product(a), start * length, 6)
        values, vectors = found.ritz()
        assert {x.dtype for x in (found.diagonal, found.off, found.basis, values, vectors)} == {dtype}
        q = found.basis.permute(1, 2, 0)
        eps = torch.finfo(dtype).eps
        assert torch.allclose(q.mT @ q, torch.eye(6, dtype=dtype), atol=20 * eps)
        dense = torch.stack([tridiagonal(found, row) for row in range(3)])
        assert torch.allclose(q.mT @ a @ q, dense, atol=100 * eps)


def test_a_row_that_is_not_finite_keeps_to_itself(generator):
    a, start = indefinite(generator), torch.randn(3, 7, generator=generator)
    a[0] = torch.diag(torch.tensor([1.0, 2, 3, 4, 5, 6, 1e308]))
    start[0] = 1.0  # the second product overflows
    values, _ = lanczos(product(a), start, 4).ritz()
    alone, _ = lanczos(product(a[1:]), start[1:], 4).ritz()
    assert torch.allclose(values[1:], alone, rtol=1e-12)
    assert not math.isfinite(float(values[0].sum())) or float(values[0].abs().max()) > 1e307


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start": torch.ones(3)}, ValueError, r"start must have shape \[rows, P\]"),
        ({"start": torch.ones(2, 3, dtype=torch.long)}, TypeError, "start must be floating point"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"steps": 1.5}, TypeError, "steps must be a whole number"),
        ({"matvec": lambda v: v[:, :2]}, ValueError, r"matvec's result must have shape \[2, 3\]"),
        ({"matvec": lambda v: v.float()}, TypeError, r"matvec's result must be torch\.float64"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    given = {"matvec": lambda v: v, "start": torch.ones(2, 3), "steps": 2, **arguments}
    with pytest.raises(error, match=message):
        lanczos(given["matvec"], given["start"], given["steps"])
