"""A configuration made ready: experiment and learner on their device, in their dtype."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from adjoint_meta.learner import MetaLearner
from adjoint_meta.tasks import TaskBatch

from .config import RunConfig
from .registry import Experiment, build


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, on its device and in its dtype."""

    config: RunConfig
    experiment: Experiment
    learner: MetaLearner
    device: torch.device
    dtype: torch.dtype

    def place(self, tasks: TaskBatch) -> TaskBatch:
        """Move tasks to the run's device and dtype."""
        return tasks.to(self.device, self.dtype)


def prepare(config: RunConfig, data_dir: Path | None = None) -> Prepared:
    """Build the experiment and the learner; nothing is written.

    Raises:
        ValueError, TypeError: if the configuration cannot work.
        MissingDataError: if the data set is not here.
    """
    device = choose_device(config.device)
    dtype = getattr(torch, config.dtype)
    experiment = build(config, data_dir)
    learner = MetaLearner(
        experiment.model.to(device, dtype),
        experiment.loss,
        config.build_method(),
        adapt=config.adapt,
        mode=config.mode,
        chunk_size=config.chunk_size,
        backend=config.backend,
    )
    return Prepared(config, experiment, learner, device, dtype)


def choose_device(name: str) -> torch.device:
    """Return the device: ``auto`` is CUDA where there is one.

    Raises:
        ValueError: if CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device was found; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
