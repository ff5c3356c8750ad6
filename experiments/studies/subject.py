"""What a study measures on: one θ, a batch of tasks, and every evaluation that a solve takes, counted."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adjoint_meta.batched_model import BatchedModel, Loss, twice_differentiable
from adjoint_meta.curvature import ChunkedLinearisation, Curvature
from adjoint_meta.evaluations import Evaluations
from adjoint_meta.linearisation import Gradients, Products
from adjoint_meta.meta_gradients import Method
from adjoint_meta.meta_gradients.base import Adapted
from adjoint_meta.parameters import ParameterRows
from adjoint_meta.problem import Problem
from adjoint_meta.solvers import SolverError
from adjoint_meta.tasks import Batch, TaskBatch

# An inner solve from θ as rows [tasks, P], with its pullback.
Solve = Callable[[Problem, Tensor], Adapted]


class TooExpensive(RuntimeError):
    """A solve took more evaluations than it was allowed."""


class CountingCurvature(Curvature):
    """A `Curvature` that also counts the evaluations of each row, and stops a solve that takes too many.

    Args:
        model: as in `Curvature`.
        limit: most batched gradients and HVPs together; ``None`` allows any number.
    """

    def __init__(self, model: BatchedModel, limit: int | None = None) -> None:
        super().__init__(model)
        self.limit = limit
        self.row_evaluations = 0

    @property
    def total(self) -> int:
        """Batched gradients and HVPs so far."""
        return self.evaluations.n_grad + self.evaluations.n_hvp

    def count(self, rows: int) -> None:
        """Note an evaluation of this many rows.

        Raises:
            TooExpensive: beyond the limit.
        """
        self.row_evaluations += rows
        if self.limit is not None and self.total >= self.limit:
            raise TooExpensive(f"it took more than {self.limit} evaluations")

    def gradients(self, phi: Tensor, psi: Tensor, batch: Batch, *, shared: bool = False) -> Gradients:
        """Return losses and gradients."""
        self.count(len(phi))
        return super().gradients(phi, psi, batch, shared=shared)

    def linearise(self, phi: Tensor, psi: Tensor, batch: Batch) -> ChunkedLinearisation:
        """Return the gradient at φ ready for curvature products."""
        return _CountedLinearisation(super().linearise(phi, psi, batch), self, len(phi))


class _CountedLinearisation(ChunkedLinearisation):
    def __init__(self, inner: ChunkedLinearisation, curvature: CountingCurvature, rows: int) -> None:
        self._inner, self._curvature, self._rows = inner, curvature, rows

    @property
    def gradient(self) -> Tensor:
        self._curvature.count(self._rows)
        return self._inner.gradient

    def product(self, v: Tensor, keep: bool = False) -> tuple[Tensor, Products]:
        self._curvature.count(self._rows)
        return self._inner.product(v, keep)


@dataclass(frozen=True)
class Outcome:
    """One inner solve and its meta-gradient.

    Args:
        phi: φ(T), shape ``[tasks, P]``.
        gradient: of the mean query loss in θ, shape ``[P]``; or of each task, ``[tasks, P]``.
        evaluations: batched ones; the gradient of the query loss is not among them.
        row_evaluations: gradients and HVPs summed over tasks; a task that has left the batch costs nothing.
        seconds: of the solve and the pullback.
        stability: the largest share of the stability interval that a task used; ``None`` if the solver does not say.
        stats: whatever else the solve reports.
    """

    phi: Tensor
    gradient: Tensor
    evaluations: Evaluations
    row_evaluations: int
    seconds: float
    stability: float | None
    stats: Mapping[str, Any] = field(repr=False, default_factory=dict)


class Subject:
    """One θ and a batch of tasks, in float64, on which solves are measured.

    Args:
        model: holds θ.
        loss: of one task.
        tasks: support and query.
        theta: rows ``[tasks, P]`` in place of the model's one θ for all.
    """

    def __init__(self, model: nn.Module, loss: Loss, tasks: TaskBatch, theta: Tensor | None = None) -> None:
        rows = ParameterRows(model)
        shared, self._psi = rows.read(model)
        self.theta = shared.repeat(len(tasks), 1) if theta is None else theta
        self.tasks = tasks
        self._batched = BatchedModel(model, loss, rows)

    def problem(self, limit: int | None = None) -> Problem:
        """Return the support losses, with counters at zero."""
        return Problem(CountingCurvature(self._batched, limit), self._psi, self.tasks.support)

    def measure(self, solve: Solve, limit: int | None = None, *, each: bool = False) -> Outcome:
        """Solve, take the meta-gradient, and say what it took.

        Args:
            limit: most batched evaluations.
            each: return the gradient of each task's own query loss.

        Raises:
            SolverError: if the solve failed or the meta-gradient is not finite.
            TooExpensive: beyond the limit.
        """
        curvature = CountingCurvature(self._batched, limit)
        problem = Problem(curvature, self._psi, self.tasks.support)
        with twice_differentiable(), warnings.catch_warnings():
            # Outside the stability interval the methods warn; here it goes into the result.
            warnings.simplefilter("ignore", RuntimeWarning)
            started = time.perf_counter()
            adapted = solve(problem, self.theta)
            cotangent = self._cotangent(adapted.phi)
            pulled = adapted.pullback(cotangent if each else cotangent / len(self.tasks)).theta.detach()
            seconds = time.perf_counter() - started
        gradient = pulled if each else pulled.sum(dim=0)
        if not bool(torch.isfinite(gradient).all()):
            raise SolverError("the meta-gradient is not finite")
        stability = adapted.stats.get("stability")
        return Outcome(
            phi=adapted.phi.detach(),
            gradient=gradient,
            evaluations=curvature.evaluations,
            row_evaluations=curvature.row_evaluations,
            seconds=seconds,
            stability=None if stability is None else float(stability.max()),
            stats=adapted.stats,
        )

    def query_losses(self, phi: Tensor) -> Tensor:
        """Return each task's query loss at φ ``[tasks, P]``, which no counter sees."""
        return Curvature(self._batched).losses(phi, self._psi, self.tasks.query)

    def _cotangent(self, phi: Tensor) -> Tensor:
        """Return ∇L_q of each task at φ, ``[tasks, P]``, which no counter sees."""
        problem = Problem(Curvature(self._batched), self._psi, self.tasks.support, self.tasks.query)
        return problem.query_gradients(phi.detach()).phi


def by_method(method: Method) -> Solve:
    """Return the inner solve of a method."""
    return lambda problem, theta: method.solve(problem, theta, {})
