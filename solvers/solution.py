"""How a solve ended: a status a row, whose text says what happened and what to change, and the error it becomes."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor


class SolverError(RuntimeError):
    """A solve failed; the message says in which rows, why, and what to change."""


class Status(Enum):
    """How a row's solve ended; the value is the sentence to show."""

    SUCCESS = "The solve succeeded."
    NON_FINITE = (
        "The state stopped being finite. An explicit step is stable only while h·‖J‖ stays below about 2: take more "
        "steps, a shorter horizon or a smaller learning rate, and check the data for huge or missing values."
    )
    MAX_STEPS = (
        "The residual was still above the tolerance after the last step: allow more steps or a larger tolerance."
    )
    STEP_LIMIT = (
        "The end was not reached within the steps allowed: allow more steps, loosen the tolerances, or, if the "
        "field is stiff, use a stabilised or implicit method where there is one (rkc, implicit_euler)."
    )
    UNDERFLOW = (
        "The step size fell below what the time can resolve: the field is not smooth enough there, or has a "
        "singularity. Loosen rtol and atol, shorten the interval, or use float64."
    )
    BREAKDOWN = (
        "The search direction vanished before the residual did, or a product was not finite: the operator is "
        "singular or not symmetric. Add damping, and check that the matvec is linear."
    )
    NEGATIVE_CURVATURE = (
        "A direction of negative curvature was met, so the operator is not positive definite: raise the proximal "
        "strength or the damping, solve the inner problem further, or use the Gauss-Newton product."
    )
    DIVERGED = "The terms of the series grow, so it has no sum: decrease the scale below 2 / ‖A‖."
    NEWTON = (
        "Newton's method did not solve the equation of an implicit step: take more, shorter steps, allow more Newton "
        "or CG steps, or loosen newton_tol; give the field a potential if it has one, and check that its Jacobian is "
        "symmetric."
    )
    STAGNATION = (
        "The slope fell to the rounding of the field before it fell to the tolerance of rest: raise the "
        "tolerance (steady_tol), or use float64."
    )

    @property
    def code(self) -> int:
        """The number that stands for this status in a tensor of codes."""
        return _CODES[self]


_ALL = tuple(Status)
_CODES = {status: code for code, status in enumerate(_ALL)}


def statuses(codes: Tensor) -> list[Status]:
    """Return one `Status` a row (reads the codes back from the device)."""
    return [_ALL[code] for code in codes.tolist()]


def raise_if_failed(what: str, codes: Tensor, acceptable: tuple[Status, ...] = (Status.SUCCESS,)) -> None:
    """Raise when any row ended in a status that is not acceptable.

    Raises:
        SolverError: naming the rows, the reason and the remedy.
    """
    found = statuses(codes)
    bad = [row for row, status in enumerate(found) if status not in acceptable]
    if bad:
        rows = ", ".join(map(str, bad[:8])) + (", …" if len(bad) > 8 else "")
        raise SolverError(f"{what} failed in {len(bad)} of {len(found)} rows (row {rows}): {found[bad[0]].value}")


def finite_codes(y: Tensor) -> Tensor:
    """Return the codes ``[rows]``: success where the row is finite, ``NON_FINITE`` elsewhere."""
    return torch.where(torch.isfinite(y).all(dim=1), Status.SUCCESS.code, Status.NON_FINITE.code)
