"""The outer optimiser and its schedule, from their names and options in a configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from adjoint_meta.solvers import checks

from .config import RunConfig


def build_outer(config: RunConfig, parameters: list[nn.Parameter]) -> tuple[Optimizer, LRScheduler | None]:
    """Return optimiser and scheduler of these parameters."""
    options = {"lr": config.optimizer.lr, **config.optimizer.options}
    optimizer = _from_torch(torch.optim, Optimizer, config.optimizer.name)(parameters, **options)
    if config.scheduler.name is None:
        return optimizer, None
    kind = _from_torch(torch.optim.lr_scheduler, LRScheduler, config.scheduler.name)
    return optimizer, kind(optimizer, **config.scheduler.options)


def _from_torch(module: Any, base: type[Any], name: str) -> type[Any]:
    kinds = {
        key: kind
        for key, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base and key[0] != "_"
    }
    return kinds[checks.one_of(base.__name__, name, kinds)]


def check_outer(config: RunConfig) -> None:
    """Take a step with a throw-away parameter: torch looks at some options only when it first uses them.

    Raises:
        ValueError: if optimiser or scheduler cannot be built or cannot step.
    """
    if "lr" in config.optimizer.options:
        raise ValueError("set optimizer.lr, not optimizer.options.lr")
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    _from_torch(torch.optim, Optimizer, config.optimizer.name)
    _from_torch(torch.optim.lr_scheduler, LRScheduler, config.scheduler.name or "StepLR")
    try:
        optimizer, scheduler = build_outer(config, [parameter])
        optimizer.step(lambda: 0.0)
        if scheduler is not None and not isinstance(scheduler, ReduceLROnPlateau):
            for _ in range(config.meta_steps):  # some schedules end, and say so only then
                scheduler.step()
    except Exception as error:
        raise ValueError(
            f"optimizer {config.optimizer.name} {config.optimizer.options} or scheduler {config.scheduler.name} "
            f"{config.scheduler.options} cannot work: {error or type(error).__name__}"
        ) from error
