"""The problem that the benchmarks share: regression tasks, the 2 × 32 network, and plain unrolling as the reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, vmap

import adjoint_meta as am
from adjoint_meta.experiments.models import HalfMSELoss, mlp
from adjoint_meta.experiments.regression import CosMixture, RegressionTasks

INNER_LR = 0.01


def tasks(count: int, points: int) -> am.TaskBatch:
    """Return CosMixture tasks with this many support and query points, float32."""
    options = RegressionTasks(CosMixture(), train_tasks=count, test_tasks=1, shots=points, queries=points)
    return options.build()[0].tasks.to(dtype=torch.float32)


def methods(steps: int) -> dict[str, am.Method]:
    """Return the methods with inner solves of the same length and the same number of steps."""
    return {
        "maml": am.MAML(steps, INNER_LR),
        "maml checkpointed": am.MAML(steps, INNER_LR, adjoint="checkpointed"),
        "adjoint heun": am.AdjointMAML(horizon=steps * INNER_LR, solver="heun", steps=steps),
        "adjoint heun checkpointed": am.AdjointMAML(
            horizon=steps * INNER_LR, solver="heun", steps=steps, adjoint="checkpointed"
        ),
        "imaml": am.ImplicitMAML(steps=steps, inner_lr=INNER_LR),
        "fomaml": am.FOMAML(steps, INNER_LR),
        "reptile": am.Reptile(steps, INNER_LR),
    }


def learner(method: am.Method) -> am.MetaLearner:
    """Return the network as a learner."""
    return am.MetaLearner(mlp(2, 32, 2, 1), HalfMSELoss(), method)


def unrolled(steps: int, batch: am.TaskBatch) -> Tensor:
    """Return the mean query loss of MAML with the graph of every step, as autograd alone does it."""
    model, loss = mlp(2, 32, 2, 1), HalfMSELoss()
    losses = vmap(lambda weights, x, y: loss(functional_call(model, weights, (x,)), y))
    phi = {name: p.expand(len(batch), *p.shape) for name, p in model.named_parameters()}
    for _ in range(steps):
        total = losses(phi, batch.support.x, batch.support.y).sum()
        gradients = torch.autograd.grad(total, list(phi.values()), create_graph=True)
        phi = {name: p - INNER_LR * g for (name, p), g in zip(phi.items(), gradients, strict=True)}
    return losses(phi, batch.query.x, batch.query.y).mean()
