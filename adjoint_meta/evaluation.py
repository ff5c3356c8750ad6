"""Meta-evaluation: what adaptation does to test tasks, by the method's own inner solve or by Adam."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adjoint_meta.solvers import SolverError, checks

from .batched_model import twice_differentiable
from .learner import MetaLearner
from .tasks import Batch, TaskBatch

# (predictions, the batch they answer) → one value a task.
Metric = Callable[[Tensor, Batch], Tensor]


def rmse(prediction: Tensor, batch: Batch) -> Tensor:
    """Return the root mean squared error of each task over its (unmasked) points, shape ``[tasks]``."""
    squares = (prediction - batch.y).square()
    squares = squares.reshape(*squares.shape[:2], -1).mean(dim=2)
    if batch.mask is None:
        return squares.mean(dim=1).sqrt()
    return (torch.where(batch.mask, squares, 0.0).sum(dim=1) / batch.mask.sum(dim=1)).sqrt()


@dataclass(frozen=True)
class Evaluation:
    """A metric on each test task before and after adaptation, shapes ``[tasks]``."""

    before: Tensor
    after: Tensor

    def summary(self) -> dict[str, float | int]:
        """Return means, the standard deviation over tasks and the half-width of the 95 % interval of the mean."""
        tasks = len(self.after)
        std = float(self.after.std()) if tasks > 1 else 0.0
        return {
            "before": float(self.before.mean()),
            "after": float(self.after.mean()),
            "std": std,
            "ci95": 1.96 * std / math.sqrt(tasks),
            "tasks": tasks,
        }


def evaluate(learner: MetaLearner, tasks: TaskBatch, metric: Metric = rmse) -> Evaluation:
    """Adapt to each task's support by the method's own inner solve, and judge before and after on its query.

    Raises:
        SolverError: if the inner solve failed, or its result is too large for the metric to be finite.
    """
    phi = learner.adapt(tasks.support)
    with torch.no_grad():
        before = metric(learner.predict(learner.initial(len(tasks)), tasks.query.x), tasks.query)
        after = metric(learner.predict(phi, tasks.query.x), tasks.query)
    for when, values in (("before", before), ("after", after)):
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise SolverError(
                f"the metric {when} adaptation is not finite for {bad} of {len(values)} tasks: predictions overflow or "
                "the query holds values that are not finite. Check the data, and take more inner steps or a shorter "
                "horizon"
            )
    return Evaluation(before, after)


def adam_curve(
    learner: MetaLearner,
    tasks: TaskBatch,
    metric: Metric = rmse,
    *,
    epochs: int = 1000,
    every: int = 10,
    lr: float = 1e-3,
    weight_decay: float = 1e-6,
) -> list[tuple[int, Tensor]]:
    """Adapt by full-batch Adam from θ instead, and return (epochs done, metric ``[tasks]``) every so often.

    Adam works entry by entry, so one optimiser over the rows is one optimiser a task. With its defaults this is the
    protocol behind Fig. 2 of Li et al. 2023.
    """
    checks.count("epochs", epochs)
    checks.count("every", every)
    phi = learner.initial(len(tasks)).requires_grad_()
    problem = learner.support_problem(tasks.support)
    optimizer = torch.optim.Adam([phi], lr=lr, weight_decay=weight_decay)
    curve = []
    for epoch in range(epochs + 1):
        if epoch % every == 0:
            with torch.no_grad():
                curve.append((epoch, metric(learner.predict(phi, tasks.query.x), tasks.query)))
        if epoch < epochs:
            with twice_differentiable():
                phi.grad = problem.gradient(phi)
            optimizer.step()
    return curve
