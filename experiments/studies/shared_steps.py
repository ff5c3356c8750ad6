"""One step size a row against one shared by the batch, on tasks of mixed stiffness: the evaluations saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adjoint_meta.adaptation import GradientFlow
from adjoint_meta.inner_solvers import stepper
from adjoint_meta.meta_gradients.base import Adapted, Pullback
from adjoint_meta.problem import Problem
from adjoint_meta.solvers import Discrete, Guard, OwnSteps, PIController, RowSteps
from adjoint_meta.solvers.spectrum import SpectralRadius
from adjoint_meta.solvers.step_size import rms
from adjoint_meta.solvers.stepper import RowField, Time
from adjoint_meta.tasks import Batch, TaskBatch

from .subject import Solve, Subject

# Precisions of the tasks' observations, in this range: ‖H‖ is in proportion.
PRECISION = (0.25, 8.0)


class PrecisionLoss(nn.Module):
    """½ w · mean((ŷ − y)²), targets ``[points, 2]`` holding y and w: Gaussian observations of precision w."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        value, precision = target.split(1, dim=-1)
        loss: Tensor = 0.5 * (precision * (prediction - value).square()).mean()
        return loss


def largest(scaled: Tensor) -> Tensor:
    """Return the largest row's norm for every row, so that all rows step, and are rejected, together."""
    size: Tensor = rms(scaled).max().expand(len(scaled))
    return size


@dataclass(frozen=True)
class SharedGuard(Guard):
    """A guard whose estimate is the stiffest row's for every row."""

    def begin(self, field: RowField, t: Time, y: Tensor, slope: Tensor) -> SpectralRadius:
        """Return the first estimate."""
        found = super().begin(field, t, y, slope)
        return SharedRadius(found.vector, found.value.max().expand(len(y)))


class SharedRadius(SpectralRadius):
    """A spectral radius that all rows share."""

    def update(self, field: RowField, t: Time, y: Tensor, due: Tensor | None = None) -> Tensor:
        """Take a step of power iteration, and keep the largest."""
        value = super().update(field, t, y, due)
        self.value = self.value.max().expand(len(y))
        return value

    def rows(self, index: Tensor) -> SpectralRadius:
        """Return the estimate of some rows."""
        return SharedRadius(self.vector[index], self.value[index])


def adaptive(solver: str, horizon: float, rtol: float, *, shared: bool) -> Solve:
    """Return an adaptive solve whose rows have their own steps, or share one step size."""
    controller = PIController(rtol, rtol / 100, norm=largest if shared else rms)
    guard = SharedGuard() if shared else Guard()
    plan = OwnSteps(RowSteps(stepper(solver, adaptive=True), 0.0, horizon, controller, guard))

    def solve(problem: Problem, theta: Tensor) -> Adapted:
        solved = Discrete().solve(plan, GradientFlow(problem, theta), theta)
        solved.raise_if_failed()

        def pullback(c: Tensor) -> Pullback:
            return Pullback(solved.pullback(c).start, theta.new_empty(0), {})

        return Adapted(solved.end, pullback, solved.stats)

    return solve


def mixed(tasks: TaskBatch) -> TaskBatch:
    """Return the tasks for `PrecisionLoss`, their precisions spread geometrically over `PRECISION`."""
    low, high = PRECISION
    share = torch.linspace(0, 1, len(tasks), dtype=torch.float64)
    precision = (low * (high / low) ** share)[:, None, None]

    def weighted(batch: Batch) -> Batch:
        return Batch(batch.x, torch.cat([batch.y, precision.to(batch.y).expand_as(batch.y)], dim=-1))

    return TaskBatch(weighted(tasks.support), weighted(tasks.query))


def compare(
    model: nn.Module, tasks: TaskBatch, horizon: float, solvers: Sequence[str], rtol: float = 1e-3
) -> list[dict[str, Any]]:
    """Return what own and shared steps take on `mixed` tasks, and how far each task's gradient is off.

    A shared step is as short as the stiffest task needs, and every task takes it.

    Returns:
        For each solver its name, the range of ‖H‖, evaluations a task and batched, seconds, and the median and largest
        error of the tasks' gradients, for both; ``saved`` is the share of evaluations that own steps save.
    """
    subject = Subject(model, PrecisionLoss(), mixed(tasks))
    reference = subject.measure(adaptive("tsit5", horizon, 1e-7, shared=False), each=True)
    radius = reference.stats["radius"]
    found = []
    for solver in solvers:
        entry: dict[str, Any] = {"solver": solver, "rtol": rtol, "tasks": len(tasks), "horizon": horizon}
        entry["radius"] = [float(radius.min()), float(radius.max())]
        for name, shared in (("own", False), ("shared", True)):
            outcome = subject.measure(adaptive(solver, horizon, rtol, shared=shared), each=True)
            errors = (outcome.gradient - reference.gradient).norm(dim=1) / reference.gradient.norm(dim=1)
            entry[name] = {
                "evaluations_a_task": outcome.row_evaluations / len(tasks),
                "evaluations": outcome.evaluations.n_grad + outcome.evaluations.n_hvp,
                "seconds": outcome.seconds,
                "gradient_error": {"median": float(errors.median()), "largest": float(errors.max())},
            }
        entry["saved"] = 1 - entry["own"]["evaluations_a_task"] / entry["shared"]["evaluations_a_task"]
        found.append(entry)
    return found
