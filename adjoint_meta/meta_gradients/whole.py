"""A meta-gradient as one function of tensors, so that a CUDA graph can replay the whole of it."""

from __future__ import annotations

from torch import Tensor

from adjoint_meta.curvature import Curvature
from adjoint_meta.problem import Problem
from adjoint_meta.tasks import Batch

from .base import Hyper, Method, RowGradients, check, unchecked


def whole_meta_gradient(
    method: Method,
    curvature: Curvature,
    theta: Tensor,
    psi: Tensor,
    support: Batch,
    query: Batch,
    hyper: Hyper,
    steepest: Tensor | None = None,
    warm: Tensor | None = None,
) -> RowGradients:
    """Return `meta_gradient`, by one replay where the engine captures and the method reads nothing back.

    Inner solves of fixed length do not; adaptive steps and conjugate gradients, which ask when to stop, are captured
    piece by piece.

    Raises:
        SolverError: if the inner solve failed or the meta-gradient is not finite.
    """
    before = curvature.evaluations.counts()

    def apart() -> RowGradients:
        problem = Problem.of(curvature, psi, support, query, steepest, warm)
        return unchecked(method, problem, theta, hyper)

    def function(theta: Tensor, psi: Tensor, *others: Tensor) -> RowGradients:
        own, rows = others[: len(hyper)], others[len(hyper) :]
        parts = (Batch.of(*rows[: len(support.rows)]), Batch.of(*rows[len(support.rows) :]))
        problem = Problem.of(curvature, psi, *parts, None, unread=True)
        return unchecked(method, problem, theta, dict(zip(hyper, own, strict=True)))

    if curvature.traceable and not (method.watches or method.returning):
        tensors = (theta, psi, *hyper.values(), *support.rows, *query.rows)
        found: RowGradients = curvature.programs.capture(
            ("meta-gradient", method, tuple(hyper)), function, tensors, apart
        )
    else:
        found = apart()
    check(method, found)
    counts = [now - then for now, then in zip(curvature.evaluations.counts(), before, strict=True)]
    return found._replace(stats={"n_grad": counts[1], "n_hvp": counts[2], **found.stats})
