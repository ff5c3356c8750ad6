"""Linear solves with the curvature at the end of an inner solve, by conjugate gradients."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from adjoint_meta.adaptation import GradientFlow
from adjoint_meta.compiled_cg import Operator, advance
from adjoint_meta.curvature import ChunkedLinearisation
from adjoint_meta.solvers.linear import LinearInfo, conjugate_gradient
from adjoint_meta.solvers.solution import Status


def invert(
    operator: Operator,
    key: tuple[object, ...],
    flow: GradientFlow,
    linear: ChunkedLinearisation,
    phi: Tensor,
    c: Tensor,
    **options: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Solve A x = c, and return x ``[tasks, P]`` and the statistics of the solve.

    Args:
        operator: makes A of the flow, its linearisation and φ.
        key: what A depends on besides these.
        flow: of all tasks.
        linear: its linearisation at φ.
        phi: where, shape ``[tasks, P]``.
        c: query cotangents, shape ``[tasks, P]``.
        options: of `conjugate_gradient`: x0, tol, max_steps.
    """
    several = advance(flow, linear, phi, operator, key)
    x, info = conjugate_gradient(operator(flow, linear, phi), c, advance=several, **options)
    _warn_if_indefinite(info, torch.isfinite(c).all(dim=1))
    return x, {"cg_iterations": info.steps, "cg_residual": info.residual, "cg_status": info.codes}


def _warn_if_indefinite(info: LinearInfo, finite: Tensor) -> None:
    """Warn of tasks whose operator failed; a cotangent that is not finite fails the whole meta-gradient instead."""
    suspects = (Status.NEGATIVE_CURVATURE, Status.BREAKDOWN)
    bad = [status for status, fine in zip(info.status, finite.tolist(), strict=True) if fine and status in suspects]
    if bad:
        warnings.warn(
            f"conjugate gradients stopped early in {len(bad)} of {len(info.status)} tasks, whose meta-gradient is "
            f"the last iterate or, without one, first-order. {bad[0].value}",
            RuntimeWarning,
            stacklevel=2,
        )
