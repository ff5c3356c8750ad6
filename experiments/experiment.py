"""What an experiment is, and what the registry knows of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adjoint_meta.batched_model import Loss
from adjoint_meta.evaluation import Metric, rmse
from adjoint_meta.tasks import TaskBatch, TaskSource

from .config import RunConfig
from .regression import Scene


@dataclass(frozen=True)
class Experiment:
    """An experiment ready to run.

    Args:
        model, loss: what is meta-learned.
        train: training tasks by index.
        validation, test: tasks held out, a batch or a limited source; their queries may be masked.
        at_once: tasks held out that are taken at a time; ``None`` takes all.
        metric: name of the number reported.
        larger_is_better: of the metric.
        measure: computes it, one value a task.
        units: the same number in other units, as factors: {"stars": 4.0}.
        baselines: the metric of predictors without a network on the same test points, ``[tasks]`` each.
        facts: counts that a reader wants to see.
        scene: a test task to draw before and after adaptation: a function, or an episode of images.
    """

    model: nn.Module
    loss: Loss
    train: TaskSource
    validation: TaskBatch | TaskSource | None
    test: TaskBatch | TaskSource
    at_once: int | None = None
    metric: str = "nRMSE"
    larger_is_better: bool = False
    measure: Metric = rmse
    units: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, int] = field(default_factory=dict)
    scene: Scene | TaskBatch | None = None


@dataclass(frozen=True)
class Entry:
    """What the registry knows of an experiment.

    Args:
        summary: one line for the list.
        options: dataclass of the ``task`` section.
        build: makes the experiment from its configuration, options and the data directory.
        defaults: configuration where it differs from `RunConfig`'s own.
        methods: default options of each method.
    """

    summary: str
    options: type[Any]
    build: Callable[[RunConfig, Any, Path | None], Experiment]
    defaults: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
