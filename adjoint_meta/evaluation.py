"""Meta-evaluation: what adaptation does to test tasks, by the method's own inner solve or by Adam."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adjoint_meta.solvers import SolverError, checks

from .batched_model import twice_differentiable
from .distributed import ALONE, World
from .learner import MetaLearner
from .tasks import Batch, TaskBatch, TaskSource

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


def evaluate(
    learner: MetaLearner,
    tasks: TaskBatch | TaskSource,
    metric: Metric = rmse,
    world: World = ALONE,
    *,
    at_once: int | None = None,
    place: Callable[[TaskBatch], TaskBatch] = lambda tasks: tasks,
) -> Evaluation:
    """Adapt to each task's support by the method's own inner solve, and judge before and after on its query.

    Args:
        tasks: all that there are, or a limited source of them.
        world: the processes that share the tasks; all get the whole result.
        at_once: tasks that are taken from there, and held, at a time; ``None`` takes all.
        place: moves them to the learner's device and dtype.

    Raises:
        SolverError: if the inner solve failed, or its result is too large for the metric to be finite.
    """
    size = at_once or len(tasks)
    rows = [
        world.rows(place(tasks[start : start + size]), lambda part: _before_and_after(learner, part, metric))
        for start in range(0, len(tasks), size)
    ]
    return Evaluation(*torch.cat(rows).unbind(dim=1))


def _before_and_after(learner: MetaLearner, tasks: TaskBatch, metric: Metric) -> Tensor:
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
    return torch.stack([before, after], dim=1)


def adam_curve(
    learner: MetaLearner,
    tasks: TaskBatch,
    metric: Metric = rmse,
    *,
    epochs: int = 1000,
    every: int = 10,
    lr: float = 1e-3,
    weight_decay: float = 1e-6,
    world: World = ALONE,
) -> list[tuple[int, Tensor]]:
    """Adapt by full-batch Adam from θ instead, and return (epochs done, metric ``[tasks]``) every so often.

    Adam works entry by entry, so one optimiser over the rows is one optimiser a task. With its defaults this is the
    protocol behind Fig. 2 of Li et al. 2023. The processes of a world share the tasks.
    """
    checks.count("epochs", epochs)
    checks.count("every", every)

    def curve(part: TaskBatch) -> Tensor:
        phi = learner.initial(len(part)).requires_grad_()
        problem = learner.support_problem(part.support)
        optimizer = torch.optim.Adam([phi], lr=lr, weight_decay=weight_decay)
        values = []
        for epoch in range(epochs + 1):
            if epoch % every == 0:
                with torch.no_grad():
                    values.append(metric(learner.predict(phi, part.query.x), part.query))
            if epoch < epochs:
                with twice_differentiable():
                    phi.grad = problem.curvature.fit(lambda: problem.gradient(phi), part.support)
                optimizer.step()
        return torch.stack(values, dim=1)

    return list(zip(range(0, epochs + 1, every), world.rows(tasks, curve).unbind(dim=1), strict=True))
