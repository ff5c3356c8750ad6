"""One run: build, train, test, draw and sum up, in a directory from which it can be continued and repeated."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from adjoint_meta import checkpoint
from adjoint_meta.distributed import ALONE, World
from adjoint_meta.evaluation import Evaluation, adam_curve
from adjoint_meta.tasks import FirstTasks, TaskBatch
from adjoint_meta.training import Trainer, TrainingFailed, TrainingPlan

from . import plots
from .config import RunConfig
from .episode_plot import episode
from .events import events_writer
from .measure import peak_memory_bytes
from .outer import build_outer, check_outer
from .prepare import Prepared, prepare
from .run_directory import MetricsLog, RunDirectory, read_metrics, write_atomically
from .summary import figures, outcomes, title, verdict

Observer = Callable[[dict[str, Any]], None]


class Interrupted(Exception):
    """Training was asked to stop; everything is saved.

    Args:
        step: meta-steps done.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after meta-step {step}")
        self.step = step


@dataclass(frozen=True)
class Fitted:
    """A run that is trained, and not yet tested."""

    prepared: Prepared
    trainer: Trainer
    directory: RunDirectory


def train(
    config: RunConfig,
    directory: RunDirectory,
    *,
    data_dir: Path | None = None,
    resume: bool = False,
    observe: Observer = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train, test and draw, and return the summary that ``summary.json`` holds: `fit`, then `finish`."""
    return finish(fit(config, directory, data_dir=data_dir, resume=resume, observe=observe, should_stop=should_stop))


def fit(
    config: RunConfig,
    directory: RunDirectory,
    *,
    data_dir: Path | None = None,
    resume: bool = False,
    observe: Observer = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> Fitted:
    """Take the meta-steps, with metrics and checkpoints in the directory.

    Args:
        resume: continue from the directory's checkpoint, bit for bit, if it has one.
        observe: sees the record of every meta-step, on the process that leads.
        should_stop: asked between meta-steps.
        world: the processes that share the tasks; the one that leads reads and writes the directory.

    Raises:
        Interrupted: if ``should_stop`` said so; the checkpoint is written.
        ValueError, TypeError: if the configuration or the directory cannot work.
        RuntimeError: if the run failed.
    """
    with world.together():
        prepared = prepare(config, data_dir, world)
        trainer = _trainer(prepared)
        if not resume and world.leads:
            directory.check_free()
    log_bytes = 0
    with torch.random.fork_rng(devices=[prepared.device] if prepared.device.type == "cuda" else []):
        torch.manual_seed(config.seed)  # nothing of ours draws from it, but a user's module or optimiser may
        state = world.first(lambda: directory.read_checkpoint() if resume and directory.checkpoint.exists() else None)
        if state is not None:
            trainer.load_state_dict(state["trainer"], str(directory.checkpoint))
            log_bytes = state["metrics_bytes"]
        if trainer.progress.step > config.meta_steps:
            raise ValueError(f"{trainer.progress.step} meta-steps are done already, more than {config.meta_steps}")
        world.first(lambda: directory.create(config))
        if world.leads:
            _take_meta_steps(trainer, directory, config, log_bytes, observe, should_stop)
        else:
            trainer.run(should_stop)
    if not trainer.done:
        raise Interrupted(trainer.progress.step)
    return Fitted(prepared, trainer, directory)


def _take_meta_steps(
    trainer: Trainer,
    directory: RunDirectory,
    config: RunConfig,
    log_bytes: int,
    observe: Observer,
    should_stop: Callable[[], bool],
) -> None:
    with (
        MetricsLog(directory.metrics, log_bytes) as log,
        events_writer(directory.events, trainer.progress.step) as events,
    ):

        def save() -> None:
            checkpoint.save(directory.checkpoint, {"trainer": trainer.state_dict(), "metrics_bytes": log.flush()})

        def record(entry: dict[str, Any]) -> None:
            log.append(entry)
            events(entry)
            observe(entry)
            if entry["step"] % config.checkpoint_every == 0:
                save()

        trainer.observe = record
        try:
            trainer.run(should_stop)
        except TrainingFailed:
            save()
            raise
        save()  # not after other exceptions: they may strike in the middle of a meta-step


def _trainer(prepared: Prepared) -> Trainer:
    config, experiment, learner, world = prepared.config, prepared.experiment, prepared.learner, prepared.world
    if config.tasks_per_step < world.size:
        raise ValueError(
            f"{world.size} processes cannot share {config.tasks_per_step} tasks a meta-step: each needs one; set "
            f"tasks_per_step={world.size} or more, or start fewer processes"
        )
    check_outer(config)
    optimizer, scheduler = build_outer(config, list(learner.parameters()))
    if isinstance(scheduler, ReduceLROnPlateau) and experiment.larger_is_better and scheduler.mode == "min":
        raise ValueError(f"{experiment.metric} is to grow; set scheduler.options.mode=max")
    if config.validation.patience and not config.validation.every:
        raise ValueError("validation.patience counts validations; set validation.every too")
    if config.validation.every and experiment.validation is None:
        raise ValueError(
            "validation.every is set but there are no validation tasks; set task.validation_tasks (regression) or "
            "task.validation_users (ratings)"
        )

    def validate() -> float:
        if experiment.validation is None:
            raise ValueError("there are no validation tasks")
        return float(prepared.evaluate(experiment.validation).after.mean())

    plan = TrainingPlan(
        config.meta_steps,
        config.clip_norm,
        config.validation.every,
        config.validation.patience,
        config.max_skipped,
        experiment.larger_is_better,
    )
    return Trainer(learner, optimizer, prepared.meta_batch, plan, scheduler=scheduler, validate=validate, world=world)


def finish(fitted: Fitted) -> dict[str, Any]:
    """Test the best state that validation saw, or the last one, leave summary and pictures behind, return the summary.

    Raises:
        SolverError: if a test task cannot be adapted to.
    """
    prepared, trainer, directory, world = fitted.prepared, fitted.trainer, fitted.directory, fitted.prepared.world
    if trainer.best_state is not None:
        checkpoint.load_module(trainer.learner, trainer.best_state, "the best checkpoint")
    experiment = prepared.experiment
    result = prepared.evaluate(experiment.test)
    adam = _adam(prepared)
    progress, config = trainer.progress, prepared.config
    summary = {
        "experiment": config.experiment,
        "method": config.method["name"],
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "device": str(prepared.device),
        "dtype": config.dtype,
        "processes": world.size,
        "meta_steps": progress.step,
        "seconds": progress.seconds,
        "seconds_per_meta_step": progress.seconds / progress.step,
        "compile_seconds": prepared.learner.engine.compile_seconds,
        "peak_memory_bytes": max(world.gather(lambda: peak_memory_bytes(prepared.device))),
        "n_grad_per_meta_step": progress.n_grad / progress.step,
        "n_hvp_per_meta_step": progress.n_hvp / progress.step,
        "skipped_meta_steps": progress.skipped,
        "hyperparameters": {name: _plain(value) for name, value in prepared.learner.hyper.items()},
        "validation": {"best": progress.best, "step": progress.best_step} if progress.best is not None else None,
        "test": figures(experiment, result),
        "test_adam": {
            str(epoch): _finite(values.mean()) for epoch, values in adam if epoch % 100 == 0 or epoch == adam[-1][0]
        },
        "verdict": verdict(experiment, result),
        "facts": dict(experiment.facts),
        "torch": torch.__version__,
        "run_dir": str(directory.path),
    }
    if world.leads:
        _leave(fitted, summary, result, adam)
    return summary


def _leave(fitted: Fitted, summary: Mapping[str, Any], result: Evaluation, adam: Sequence[tuple[int, Tensor]]) -> None:
    """Write what came out for each task, pictures and, last, the summary: a run that has one is finished."""
    prepared, experiment, directory = fitted.prepared, fitted.prepared.experiment, fitted.directory
    write_atomically(directory.outcomes, json.dumps(outcomes(experiment, result, adam), allow_nan=False) + "\n")
    records = read_metrics(directory.metrics)
    scene, named = experiment.scene, title(prepared.config)
    plots.save(plots.curves(records, experiment, result, adam, title=named), directory.curves)
    if isinstance(scene, TaskBatch):
        plots.save(episode(prepared, scene, title=named), directory.adaptation)
    elif scene is not None:
        plots.save(plots.adaptation(prepared, scene, title=named), directory.adaptation)
    write_atomically(directory.summary, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def _adam(prepared: Prepared) -> list[tuple[int, Tensor]]:
    epochs = prepared.config.test.adam_epochs
    if not epochs:
        return []
    test = prepared.place(prepared.experiment.test[:])
    return adam_curve(prepared.learner, test, prepared.experiment.measure, epochs=epochs, world=prepared.world)


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(torch.isfinite(value)) else None  # JSON has no infinity


def _plain(value: Tensor) -> float | dict[str, float]:
    if value.numel() == 1:
        return float(value)
    return {"min": float(value.min()), "mean": float(value.mean()), "max": float(value.max())}


def evaluate_run(
    directory: RunDirectory,
    *,
    data_dir: Path | None = None,
    tasks: int | None = None,
    method: Mapping[str, Any] | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Test a trained run again and return its summary with the new figures.

    Args:
        directory: of the run.
        data_dir: where data sets lie.
        tasks: only so many of the test tasks.
        method: options that take the place of the run's own, such as more inner steps.
        world: the processes that share the tasks.

    Raises:
        ValueError, TypeError: if the directory holds no readable run, there are fewer test tasks, or an option is
            unknown, out of range or was learned.
    """
    config = world.first(directory.read_config)
    config = config.model_copy(update={"method": {**config.method, **(method or {})}})
    if not world.first(directory.checkpoint.is_file):
        raise ValueError(f"{directory.path} has no checkpoint yet; train it first")
    with world.together():
        prepared = prepare(config, data_dir, world)
    if learned := set(method or {}) & set(prepared.learner.method.learned):
        raise ValueError(f"{', '.join(sorted(learned))} was learned, and is part of the run; leave it as it is")
    state: Mapping[str, Any] = world.first(directory.read_checkpoint)["trainer"]
    best = state["best_model"] or state["model"]
    checkpoint.load_module(prepared.learner, best, str(directory.checkpoint))
    test = prepared.experiment.test
    available = len(test)
    if tasks is not None and not 1 <= tasks <= available:
        raise ValueError(f"--tasks should be between 1 and {available}, the test tasks of this run, got {tasks}")
    count = tasks or available
    result = prepared.evaluate(test[:count] if isinstance(test, TaskBatch) else FirstTasks(test, count))
    return {
        "experiment": config.experiment,
        "method": config.method["name"],
        "seed": config.seed,
        "device": str(prepared.device),
        "dtype": config.dtype,
        "meta_steps": state["progress"]["step"],
        "peak_memory_bytes": max(world.gather(lambda: peak_memory_bytes(prepared.device))),
        "test": figures(prepared.experiment, result),
        "verdict": verdict(prepared.experiment, result),
        "changed": dict(method or {}),
        "run_dir": str(directory.path),
    }
