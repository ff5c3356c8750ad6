"""Backbones with heads of their own for every task, and tasks whose heads can come to rest."""

from __future__ import annotations

import torch
from problems import drawn, regression
from torch import nn

from adjoint_meta import Batch, TaskBatch

mse, cross_entropy = nn.functional.mse_loss, nn.functional.cross_entropy


def classes(generator: torch.Generator, points: int = 12, tasks: int = 3) -> tuple[nn.Sequential, TaskBatch]:
    """A small backbone with a softmax head of three classes, and tasks that no head separates."""
    model = drawn(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3)), generator)

    def batch() -> Batch:
        y = torch.randint(3, (tasks, points), generator=generator)
        return Batch(torch.randn(tasks, points, 2, generator=generator), y)

    return model, TaskBatch(batch(), batch())


def settling(kind: str, generator: torch.Generator):
    """A model whose heads come to rest in 600 steps, its loss, tasks, and the size of the steps.

    ‖H‖ is below 3 for the mean square and 0.5 for the softmax; the least curvature that is not zero is 0.3 and 0.016.
    """
    softmax = kind == "softmax"
    body, head = nn.Linear(2, 2, bias=False), nn.Linear(2, 3 if softmax else 1, bias=False)
    model = nn.Sequential(drawn(body, generator, 2.0), nn.Tanh(), drawn(head, generator))
    if softmax:
        return model, cross_entropy, classes(generator, points=20)[1], 3.0
    return model, mse, regression(generator, points=20), 0.5
