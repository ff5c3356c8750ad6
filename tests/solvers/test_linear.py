from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import symmetric
from references import conjugate_gradient_iterates, relative
from scipy.sparse.linalg import cg as scipy_cg

from adjoint_meta.solvers import SolverError, Status, conjugate_gradient, neumann_series


def product(a: torch.Tensor):
    """The batched product with matrices ``[rows, P, P]``."""
    return lambda v: torch.einsum("rij,rj->ri", a, v)


def diagonal(*rows: list[float]):
    """The batched product with diagonal matrices."""
    entries = torch.tensor(rows)
    return lambda v: entries.to(v.dtype) * v


def definite(generator: torch.Generator, rows: int = 4, size: int = 6, condition: float = 50.0) -> torch.Tensor:
    return symmetric(generator, condition ** torch.rand(rows, size, generator=generator))


# Conjugate gradients


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


# Neumann series


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
