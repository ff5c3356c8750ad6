"""Batched Krylov and series solvers for symmetric systems A x = b, every row a system of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .solution import Status, raise_if_failed, statuses

# A batched product: [rows, P] → [rows, P], symmetric in each row.
MatVec = Callable[[Tensor], Tensor]

# Steps of conjugate gradients between two looks at whether any row still runs.
ROUND = 5


@dataclass(frozen=True)
class LinearInfo:
    """Statistics of a linear solve, one entry a row.

    Args:
        steps: steps that changed the row's solution, ``[rows]``.
        residual: ‖b − A x‖ / ‖b‖ by the recurrence of the method, ``[rows]``; `neumann_series` says of which x.
        codes: status codes, ``[rows]``.
        products: number of batched products with A.
    """

    steps: Tensor
    residual: Tensor
    codes: Tensor
    products: int

    @property
    def status(self) -> list[Status]:
        """One `Status` a row."""
        return statuses(self.codes)

    def raise_if_failed(self, acceptable: tuple[Status, ...] = (Status.SUCCESS,)) -> None:
        """Raise `SolverError` with advice if any row ended in a status that is not acceptable."""
        raise_if_failed("the linear solve", self.codes, acceptable)


class CGState(NamedTuple):
    """Where conjugate gradients stand: every row's iterate x, residual r and direction p, ``[rows, P]``, and ‖r‖².

    Args:
        bound: ‖r‖ at which a row is done, ``[rows]``.
        codes: `Status` codes; a row that has not ended holds ``MAX_STEPS``, ``[rows]``.
        steps: steps that changed the row, ``[rows]``.
    """

    x: Tensor
    r: Tensor
    p: Tensor
    rho: Tensor
    bound: Tensor
    codes: Tensor
    steps: Tensor


def cg_step(matvec: MatVec, state: CGState) -> CGState:
    """Return the state one step on, without a look at it from the host; rows that have stopped do not change."""
    x, r, p, rho, bound, codes, steps = state
    running = codes == Status.MAX_STEPS.code
    ap = _product(matvec, p)
    curvature = _dot(p, ap)
    # Curvature within rounding of zero is a breakdown, not a sign: A p may be pure noise there.
    noise = torch.finfo(p.dtype).eps * torch.linalg.vector_norm(p, dim=1) * torch.linalg.vector_norm(ap, dim=1)
    sound = curvature.abs() > noise
    negative = running & sound & (curvature < 0)
    moving = running & sound & ~negative
    codes = torch.where(running & ~sound, Status.BREAKDOWN.code, codes)
    codes = torch.where(negative, Status.NEGATIVE_CURVATURE.code, codes)

    alpha = torch.where(moving, rho / curvature, 0.0)[:, None]
    x = torch.where(moving[:, None], x + alpha * p, x)
    r = torch.where(moving[:, None], r - alpha * ap, r)
    rho_next = _dot(r, r)
    codes = torch.where(moving & _done(rho_next, bound), Status.SUCCESS.code, codes)
    p = torch.where(moving[:, None], r + (rho_next / rho)[:, None] * p, p)
    return CGState(x, r, p, rho_next, bound, codes, steps + moving)


def conjugate_gradient(
    matvec: MatVec,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    tol: float = 1e-6,
    max_steps: int = 20,
    advance: Callable[[CGState, int], CGState] | None = None,
) -> tuple[Tensor, LinearInfo]:
    """Solve A x = b for symmetric positive definite A by conjugate gradients, every row on its own.

    A row stops when ‖r‖ ≤ tol·‖b‖, when its search direction has negative curvature (pᵀAp < 0: it keeps the iterate
    it had, as truncated Newton methods want it), when it breaks down, or after ``max_steps``. Rows that have stopped
    no longer change. Hestenes and Stiefel 1952; Nocedal and Wright, Numerical Optimization, algorithms 5.2 and 7.1.

    Args:
        matvec: the product, ``[rows, P] → [rows, P]``.
        b: right-hand sides, shape ``[rows, P]``.
        x0: where to start, shape ``[rows, P]``; zero, which saves a product, when ``None``.
        tol: relative residual at which a row is done; 0 always takes ``max_steps``, or stops at an exact solution.
        max_steps: most steps a row may take.
        advance: takes a few steps with the same A at once, given their number; `cg_step` with ``matvec`` if ``None``.

    Returns:
        The solution ``[rows, P]`` and its `LinearInfo`. A failed row is reported there, not raised.

    Raises:
        TypeError, ValueError: if an argument has the wrong shape, dtype or sign.
    """
    checks.rows("b", b)
    checks.at_least("tol", tol, 0.0)
    checks.count("max_steps", max_steps, least=0)
    # Powers of two are exact: solving for b / unit changes no bit of x, and keeps ‖r‖² inside the range of float32.
    if x0 is None:
        unit, products = _power_of_two(b), 0
        b = b / unit
        x, r = torch.zeros_like(b), b.clone()
    else:
        checks.like("x0", x0, b)
        r, products = b - _product(matvec, x0), 1
        unit = _power_of_two(torch.maximum(b.abs(), r.abs()))
        b, x, r = b / unit, x0 / unit, r / unit
    rho = _dot(r, r)
    bound = tol * torch.linalg.vector_norm(b, dim=1)
    codes = torch.full_like(rho, Status.MAX_STEPS.code, dtype=torch.long)
    codes = torch.where(_done(rho, bound), Status.SUCCESS.code, codes)
    codes = torch.where(torch.isfinite(rho), codes, Status.BREAKDOWN.code)
    state = CGState(x, r, r.clone(), rho, bound, codes, torch.zeros_like(codes))

    # To ask whether any row still runs makes the host wait for the device, which costs more than a few steps in vain.
    pace = ROUND if advance is not None or b.device.type != "cpu" else 1
    taken = 0
    while taken < max_steps and bool((state.codes == Status.MAX_STEPS.code).any()):
        count = min(pace, max_steps - taken)
        if advance is not None:
            state = advance(state, count)
        else:
            for _ in range(count):
                state = cg_step(matvec, state)
        taken += count
    return state.x * unit, LinearInfo(state.steps, _relative(state.rho.sqrt(), b), state.codes, products + taken)


def neumann_series(matvec: MatVec, b: Tensor, *, scale: float, steps: int) -> tuple[Tensor, LinearInfo]:
    """Approximate A⁻¹ b by the truncated Neumann series x = scale · Σ_{q=0}^{steps} (I − scale·A)^q b.

    It converges when the spectrum of A lies in (0, 2 / scale). A row whose terms grow is marked ``DIVERGED``
    (Lorraine, Vicol, Duvenaud 2020; Ji, Yang, Liang 2021).

    Args:
        matvec: the product, ``[rows, P] → [rows, P]``.
        b: right-hand sides, shape ``[rows, P]``.
        scale: at most 1 / ‖A‖ to be safe.
        steps: number of products.

    Returns:
        The approximation ``[rows, P]`` and its `LinearInfo`. The last term (I − scale·A)^steps b is the residual of
        the sum without it, which ``residual`` reports: that of the sum itself would take one more product.
    """
    checks.rows("b", b)
    checks.positive("scale", scale)
    checks.count("steps", steps, least=0)
    term, total = b, b
    norm = before = torch.linalg.vector_norm(b, dim=1)
    for _ in range(steps):
        term = term - scale * _product(matvec, term)
        total = total + term
        norm, before = torch.linalg.vector_norm(term, dim=1), norm
    residual = _relative(norm, b)
    # The terms of a convergent series shrink, down to rounding, and in the null space of A stay what they are; a
    # comparison with NaN is false, so NaN diverges too.
    eps = torch.finfo(b.dtype).eps
    shrinks = (norm <= before * (1 + 8 * eps)) | (residual <= eps)
    codes = torch.where(shrinks, Status.SUCCESS.code, Status.DIVERGED.code)
    return scale * total, LinearInfo(torch.full_like(codes, steps), residual, codes, steps)


@dataclass(frozen=True)
class Tridiagonal:
    """What Lanczos found: A Q ≈ Q T with T tridiagonal, every row a system of its own.

    Args:
        diagonal: of T, shape ``[rows, k]``.
        off: beside the diagonal, shape ``[rows, k − 1]``.
        basis: the orthonormal vectors Q, shape ``[k, rows, P]``.
    """

    diagonal: Tensor
    off: Tensor
    basis: Tensor

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Return T's eigenvalues ``[rows, k]``, ascending, and its eigenvectors ``[rows, k, k]`` in columns."""
        matrix = torch.diag_embed(self.diagonal) + torch.diag_embed(self.off, 1) + torch.diag_embed(self.off, -1)
        # LAPACK would refuse the whole batch for one row that is not finite.
        fine = torch.isfinite(matrix).all(dim=2).all(dim=1)[:, None]
        values, vectors = torch.linalg.eigh(torch.where(fine[:, :, None], matrix, 0.0))
        return torch.where(fine, values, torch.nan), vectors


def lanczos(matvec: MatVec, start: Tensor, steps: int) -> Tridiagonal:
    """Project a symmetric A on the Krylov space of a start vector, every row on its own.

    The basis is kept orthogonal by a second pass of Gram-Schmidt, since without it the Ritz values repeat. A row whose
    space is exhausted goes on with zero vectors, so that T only gains zeros (Golub, Van Loan, Matrix Computations,
    10.1; the squares of the eigenvectors' first entries are the weights of the Gauss quadrature of the start vector's
    spectral measure, Golub and Welsch 1969).

    Args:
        matvec: the product, ``[rows, P] → [rows, P]``.
        start: shape ``[rows, P]``; its length does not matter.
        steps: number of products k.
    """
    checks.rows("start", start)
    checks.count("steps", steps)
    start = start / _power_of_two(start)
    norm = torch.linalg.vector_norm(start, dim=1, keepdim=True)
    q = torch.where(norm > 0, start / norm, 0.0)
    basis, diagonal, off = start.new_empty((steps, *start.shape)), [], []
    scale = torch.zeros_like(norm)
    for k in range(steps):
        basis[k] = q
        r = _product(matvec, q)
        diagonal.append(_dot(q, r))
        scale = torch.maximum(scale, torch.linalg.vector_norm(r, dim=1, keepdim=True))
        for _ in range(2):
            r = r - torch.einsum("krp,kr->rp", basis[: k + 1], torch.einsum("krp,rp->kr", basis[: k + 1], r))
        norm = torch.linalg.vector_norm(r, dim=1, keepdim=True)
        # What is left at rounding level is no direction.
        norm = torch.where(norm > torch.finfo(r.dtype).eps * 10 * scale, norm, 0.0)
        off.append(norm.squeeze(1))
        q = torch.where(norm > 0, r / norm, 0.0)
    empty = start.new_empty((start.shape[0], 0))
    return Tridiagonal(torch.stack(diagonal, 1), torch.stack(off[:-1], 1) if steps > 1 else empty, basis)


def _product(matvec: MatVec, v: Tensor) -> Tensor:
    product = matvec(v)
    checks.like("matvec's result", product, v)
    return product


def _power_of_two(b: Tensor) -> Tensor:
    """Return for each row a power of two near its largest entry, shape ``[rows, 1]``; 1 for a zero row."""
    largest = b.abs().amax(dim=1, keepdim=True)
    _, exponent = torch.frexp(torch.where(torch.isfinite(largest) & (largest > 0), largest, 1.0))
    return torch.ldexp(torch.ones_like(largest), exponent - 1)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(dim=1)


def _done(rho: Tensor, bound: Tensor) -> Tensor:
    return rho.sqrt() <= bound


def _relative(norm: Tensor, b: Tensor) -> Tensor:
    """Return norm / ‖b‖, and 0 for a zero right-hand side solved by zero."""
    scale = torch.linalg.vector_norm(b, dim=1)
    return torch.where(scale > 0, norm / torch.where(scale > 0, scale, 1.0), norm)
