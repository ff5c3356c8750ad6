"""A configuration made ready: experiment and learner on their device, in their dtype."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from adjoint_meta.distributed import ALONE, World
from adjoint_meta.evaluation import Evaluation, evaluate
from adjoint_meta.learner import MetaLearner
from adjoint_meta.meta_gradients import Method
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

    def meta_batch(self, step: int) -> TaskBatch:
        """Return this process's tasks of a meta-step, in place; where tasks return, all of them in the same order."""
        count, train = self.config.tasks_per_step, self.experiment.train
        share = self.world.share(count)
        if self.learner.method.returning:
            return self.place(train[share])
        return self.place(train.meta_batch(step, count, self.config.seed, share))

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
    _check_returning(method, experiment.train, config.tasks_per_step)
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
    _move(experiment.train, device)  # tasks held out are few, and moved when they are there
    return Prepared(config, experiment, learner, device, dtype, world)


def _move(train: TaskSource, device: torch.device) -> None:
    """Let training tasks be made on the device, if what they are made of fits there."""
    try:
        train.to(device)
    except torch.OutOfMemoryError:
        warnings.warn(
            f"what the training tasks are made of does not fit into the memory of {device}: they are made on the CPU, "
            "and moved one meta-step at a time",
            RuntimeWarning,
            stacklevel=3,
        )


def _check_returning(method: Method, train: TaskSource, tasks: int) -> None:
    """Refuse to go on from where other tasks ended."""
    if method.returning and not (method.returning == train.size == tasks):
        supply = "tasks without end" if train.size is None else f"{train.size} tasks"
        raise ValueError(
            f"method.warm_start={method.returning} asks for the same {method.returning} tasks at each meta-step, but "
            f"training has {supply} and takes {tasks} at a time; set tasks_per_step and the number of training tasks "
            "(task.train_tasks) to it, or warm_start=0"
        )


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
