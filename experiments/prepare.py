"""A configuration made ready: experiment and learner on their device, in their dtype."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from adjoint_meta.distributed import ALONE, World
from adjoint_meta.evaluation import Evaluation, evaluate
from adjoint_meta.learner import MetaLearner
from adjoint_meta.solvers import checks
from adjoint_meta.tasks import TaskBatch, TaskSource

from .config import RunConfig
from .experiment import Experiment
from .models import head
from .registry import build


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, on its device and in its dtype."""

    config: RunConfig
    experiment: Experiment
    learner: MetaLearner
    device: torch.device
    dtype: torch.dtype
    world: World = ALONE

    def place(self, tasks: TaskBatch) -> TaskBatch:
        """Move tasks to the run's device and dtype."""
        return tasks.to(self.device, self.dtype)

    def evaluate(self, tasks: TaskBatch | TaskSource) -> Evaluation:
        """Judge the learner on tasks held out, a part of them at a time; the processes share them."""
        experiment = self.experiment
        return evaluate(
            self.learner, tasks, experiment.measure, self.world, at_once=experiment.at_once, place=self.place
        )


def prepare(config: RunConfig, data_dir: Path | None = None, world: World = ALONE) -> Prepared:
    """Build the experiment and the learner; nothing is written.

    Raises:
        ValueError, TypeError: if the configuration cannot work.
        MissingDataError: if the data set is not here.
    """
    device = choose_device(config.device, world)
    dtype = getattr(torch, config.dtype)
    experiment = build(config, data_dir)
    method = config.build_method()
    learner = MetaLearner(
        experiment.model.to(device, dtype),
        experiment.loss,
        method,
        adapt=head(experiment.model) if method.partial and config.adapt is None else config.adapt,
        mode=config.mode,
        chunk_size=config.chunk_size,
        point_chunk=config.point_chunk,
        autocast=None if config.autocast is None else getattr(torch, config.autocast),
        backend=config.backend,
        remat=config.remat,
    )
    for source in (experiment.train, experiment.validation, experiment.test):
        if isinstance(source, TaskSource):
            source.to(device)
    return Prepared(config, experiment, learner, device, dtype, world)


def choose_device(name: str, world: World = ALONE) -> torch.device:
    """Return the device: ``auto`` is CUDA where there is one. Each of several processes has a GPU of its own.

    Raises:
        ValueError: for another name, if CUDA is asked for and there is none, or not one for each process.
    """
    checks.one_of("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device was found; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if world.size == 1:
        return torch.device("cuda")
    if world.local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"this machine has {torch.cuda.device_count()} CUDA devices, too few for process {world.local_rank} of "
            "those started here; start one process for each device, or use --device cpu"
        )
    torch.cuda.set_device(world.local_rank)  # NCCL and allocations without a device go to the current one
    return torch.device("cuda", world.local_rank)
