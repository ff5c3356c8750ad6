"""The meta-gradient over the tasks of all processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .distributed import World
from .learner import MetaLearner
from .tasks import TaskBatch


def mean_gradient(learner: MetaLearner, tasks: Callable[[], TaskBatch], world: World) -> Tensor:
    """Fill ``.grad`` with the gradient of the mean loss over the tasks of all processes, and return that loss, ``[]``.

    What each process finds for its tasks is weighted by their number, which need not be equal. One all-reduce carries
    the gradient, the learner's `steepest` where it keeps one, the loss and the number of tasks.

    Args:
        tasks: returns this process's share of the tasks.

    Raises:
        SolverError: on every process, if the inner solve failed on one; neither gradient nor learner is changed then.
    """
    if world.size == 1:
        alone: Tensor = learner(tasks())
        alone.backward()
        return alone.detach()
    parameters = [p for p in learner.parameters() if p.requires_grad]
    watched = [learner.steepest] if learner.method.watches else []
    held = [buffer.clone() for buffer in watched]
    sizes = [part.numel() for part in (*parameters, *watched)]
    # Half precision has no room for a count of tasks.
    kind = torch.promote_types(parameters[0].dtype, torch.float32)

    def weighted() -> Tensor:
        batch = tasks()
        loss = learner(batch)
        gradients = torch.autograd.grad(loss, parameters)
        parts = (*gradients, *watched, loss.detach(), torch.ones_like(loss))
        return len(batch) * torch.cat([part.reshape(-1).to(kind) for part in parts])

    try:
        total = world.sum(weighted, parameters[0].new_zeros(sum(sizes) + 2, dtype=kind))
    except Exception:
        for buffer, before in zip(watched, held, strict=True):
            buffer.copy_(before)
        raise
    means = (total[:-2] / total[-1]).split(sizes)
    for parameter, mean in zip(parameters, means, strict=False):
        parameter.grad = mean.view_as(parameter).to(parameter.dtype, copy=True)
    for buffer, mean in zip(watched, means[len(parameters) :], strict=True):
        buffer.copy_(mean)
    mean_loss: Tensor = total[-2] / total[-1]
    return mean_loss
