"""A meta-gradient as one function of tensors, so that a CUDA graph can replay the whole of it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from adjoint_meta.curvature import Curvature
from adjoint_meta.problem import Problem
from adjoint_meta.tasks import Batch

from .base import Hyper, Method, RowGradients, check, unchecked, with_counts


class Given(NamedTuple):
    """What a meta-gradient is taken of.

    Args:
        theta, psi: adapted and shared parameters, ``[P]`` and ``[Q]``.
        support, query: the points of the tasks; no query where they are only adapted.
        steepest, warm: as in a `Problem`.
    """

    theta: Tensor
    psi: Tensor
    support: Batch
    query: Batch | None
    steepest: Tensor | None = None
    warm: Tensor | None = None


def whole_meta_gradient(method: Method, curvature: Curvature, given: Given, hyper: Hyper) -> RowGradients:
    """Return `meta_gradient`, by one replay where the engine captures and the method reads nothing back.

    Explicit inner steps of a fixed number do not. Adaptive steps, implicit ones and conjugate gradients, which ask when
    to stop, are captured piece by piece, and so are tasks or points that are taken in parts.

    Raises:
        ValueError: if there are no query points.
        SolverError: if the inner solve failed or the meta-gradient is not finite.
    """
    before, support, query = curvature.evaluations.counts(), given.support, given.query
    if query is None:
        raise ValueError("a meta-gradient needs query points; pass a TaskBatch of support and query")

    def apart() -> RowGradients:
        problem = Problem.of(curvature, given.psi, support, query, given.steepest, given.warm)
        return unchecked(method, problem, given.theta, hyper)

    def function(theta: Tensor, psi: Tensor, *others: Tensor) -> RowGradients:
        own, rows = others[: len(hyper)], others[len(hyper) :]
        points = (Batch.of(*rows[: len(support.rows)]), Batch.of(*rows[len(support.rows) :]))
        problem = Problem.of(curvature, psi, *points, None, unread=True)
        return unchecked(method, problem, theta, dict(zip(hyper, own, strict=True)))

    if curvature.traceable and not (method.watches or method.returning):
        tensors = (given.theta, given.psi, *hyper.values(), *support.rows, *query.rows)
        name = ("meta-gradient", type(method), repr(method), tuple(hyper))
        found: RowGradients = curvature.programs.whole(name, function, tensors, apart)
    else:
        found = apart()
    check(method, found)
    return with_counts(found, curvature.evaluations, before)
