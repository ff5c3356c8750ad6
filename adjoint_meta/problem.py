"""A task batch as functions of the adapted parameters φ: all that a method ever sees of model and data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .curvature import ChunkedLinearisation, Curvature, Extended
from .evaluations import Evaluations
from .linearisation import Gradients
from .tasks import Batch


@dataclass(frozen=True)
class Problem:
    """Support and query losses of one task batch, at fixed shared parameters.

    Args:
        curvature: the engine that evaluates them.
        psi: shared parameters that the support losses read, shape ``[Q]``.
        support: the points L_s is taken on.
        query: the points L_q is taken on; ``None`` when the tasks are only adapted.
        steepest: the direction in which earlier batches curved most, shape ``[P]``, where power iteration may start.
        warm: where the adapted parameters and what the method solves for ended when these tasks were last here, shape
            ``[2, tasks, P]``.
        extended: what support and query losses read, where ψ is extended by features that do not depend on φ.
        unread: whether how a solve ended is looked at later, so that nothing is read back from the device before.
    """

    curvature: Curvature
    psi: Tensor
    support: Batch
    query: Batch | None = None
    steepest: Tensor | None = None
    warm: Tensor | None = None
    extended: tuple[Extended, Extended | None] | None = None
    unread: bool = False

    @classmethod
    def of(
        cls,
        curvature: Curvature,
        psi: Tensor,
        support: Batch,
        query: Batch | None,
        steepest: Tensor | None,
        warm: Tensor | None = None,
        *,
        unread: bool = False,
    ) -> Problem:
        """Return the problem with all that does not depend on φ evaluated."""
        inner = curvature.extend(psi, support)
        outer = None if query is None else curvature.extend(psi, query)
        return cls(curvature, inner.psi, inner.batch, outer and outer.batch, steepest, warm, (inner, outer), unread)

    def shared_gradient(self, support: Tensor, query: Tensor) -> Tensor:
        """Return the gradient in all shared parameters ``[Q]`` from those that came through either loss."""
        if self.extended is None:
            return query + support
        total = support.new_zeros(self.curvature.model.rows.psi.size)
        for part, gradient in zip(self.extended, (support, query), strict=True):
            if part is not None:
                part.pull(gradient, total)
        return total

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(self.support)

    @property
    def evaluations(self) -> Evaluations:
        """The counters of everything evaluated so far."""
        return self.curvature.evaluations

    def rows(self, tasks: Tensor) -> Problem:
        """Return the support losses of the tasks with these numbers, shape ``[n]``."""
        return Problem(self.curvature, self.psi, self.support.take(tasks))

    def support_losses(self, phi: Tensor) -> Tensor:
        """Return L_s, shape ``[tasks]``."""
        return self.curvature.losses(phi, self.psi, self.support)

    def gradient(self, phi: Tensor) -> Tensor:
        """Return ∇_φ L_s, shape ``[tasks, P]``."""
        return self.curvature.gradients(phi, self.psi, self.support).phi

    def linearise(self, phi: Tensor) -> ChunkedLinearisation:
        """Return ∇_φ L_s at φ, ready for curvature products."""
        return self.curvature.linearise(phi, self.psi, self.support)

    def gauss_newton(self, phi: Tensor, v: Tensor) -> Tensor:
        """Return the Gauss-Newton product of L_s at φ with v, shape ``[tasks, P]``."""
        return self.curvature.gauss_newton(phi, self.psi, self.support, v)

    def query_gradients(self, phi: Tensor) -> Gradients:
        """Return L_q ``[tasks]`` and its gradients in φ and ψ, in one evaluation."""
        return self.curvature.gradients(phi, self._query_psi(), self._query(), shared=True)

    def query_losses(self, phi: Tensor) -> Tensor:
        """Return L_q, shape ``[tasks]``."""
        return self.curvature.losses(phi, self._query_psi(), self._query())

    def _query_psi(self) -> Tensor:
        outer = self.extended[1] if self.extended else None
        return self.psi if outer is None else outer.psi

    def _query(self) -> Batch:
        if self.query is None:
            raise ValueError("this problem has no query points; build it from a TaskBatch")
        return self.query
