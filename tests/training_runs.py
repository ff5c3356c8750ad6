"""What meta-training is tested with: tasks that diverge at chosen steps, optimisers, schedulers, equal weights."""

from __future__ import annotations

import torch
from torch.optim import lr_scheduler

from adjoint_meta import Batch, TaskBatch

HUGE = 1e200


def schedule(source, diverging=()):
    """Three tasks a meta-step; at the steps named, their targets are so large that the inner solve overflows."""

    def tasks(step):
        drawn = source.meta_batch(step, 3, seed=1)
        if step in diverging:
            return TaskBatch(Batch(drawn.support.x, drawn.support.y * HUGE), drawn.query)
        return drawn

    return tasks


def weights(learner):
    return {name: value.clone() for name, value in learner.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}
SCHEDULERS = {
    "none": lambda o: None,
    "step": lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.3),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=9),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=10, cycle_momentum=False),
}
