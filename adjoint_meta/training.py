"""The meta-training loop: nothing in it knows an experiment, a file format or a terminal."""

from __future__ import annotations

import inspect
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from adjoint_meta.solvers import SolverError, checks

from .checkpoint import load_module
from .distributed import ALONE, World
from .learner import MetaLearner
from .mean_gradient import mean_gradient
from .tasks import TaskBatch

# step → the tasks of that meta-step; a function of the step alone, so that any step can be replayed.
TaskSchedule = Callable[[int], TaskBatch]


# The keys of `Trainer.state_dict`.
STATE = {"model", "best_model", "kinds", "optimizer", "scheduler", "progress", "rng"}


class TrainingFailed(RuntimeError):
    """Meta-training cannot go on; the message says why and what to change."""


@dataclass(frozen=True)
class TrainingPlan:
    """How long to train, and what to watch.

    Args:
        meta_steps: number of meta-steps.
        clip_norm: largest norm of the meta-gradient, beyond which it is scaled down; ``None`` leaves it.
        validate_every: meta-steps between validations; 0 never validates.
        patience: validations without improvement after which training stops; ``None`` never stops early.
        max_skipped: consecutive meta-steps without a finite meta-gradient after which the run fails.
        larger_is_better: of the validation value.

    Raises:
        ValueError, TypeError: for an argument out of range.
    """

    meta_steps: int
    clip_norm: float | None = None
    validate_every: int = 0
    patience: int | None = None
    max_skipped: int = 10
    larger_is_better: bool = False

    def __post_init__(self) -> None:
        checks.count("meta_steps", self.meta_steps)
        checks.count("validate_every", self.validate_every, least=0)
        checks.count("max_skipped", self.max_skipped)
        if self.clip_norm is not None:
            checks.positive("clip_norm", self.clip_norm)
        if self.patience is not None:
            checks.count("patience", self.patience)
            if not self.validate_every:
                raise ValueError("patience needs validations; set validate_every too")


@dataclass
class Progress:
    """Where training stands; together with model and optimiser states it is all that a resumed run needs.

    Args:
        step: meta-steps done.
        skipped: meta-steps whose gradient was not finite, in all and in a row.
        n_grad, n_hvp: batched evaluations so far, of this process.
        seconds: time spent in meta-steps so far.
        best: best validation value, and its meta-step.
        stale: validations since then.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    n_grad: int = 0
    n_hvp: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    stale: int = 0


class Trainer:
    """Takes meta-steps with a torch optimiser until the plan is done.

    Args:
        learner: what is meta-learned.
        optimizer: any torch optimiser over ``learner.parameters()``.
        schedule: the tasks of each meta-step; of several processes, each one's share (`TaskSource.meta_batch`).
        plan: how long, and what to watch.
        scheduler: any torch scheduler, stepped once a meta-step.
        validate: returns the value that early stopping watches, the same on every process.
        observe: called with a record after each meta-step: step, loss, grad_norm, and validation where there was one.
        world: the processes that train together; their meta-steps are those that one would take with all the tasks.
    """

    def __init__(
        self,
        learner: MetaLearner,
        optimizer: Optimizer,
        schedule: TaskSchedule,
        plan: TrainingPlan,
        *,
        scheduler: LRScheduler | None = None,
        validate: Callable[[], float] | None = None,
        observe: Callable[[dict[str, Any]], None] | None = None,
        world: World = ALONE,
    ) -> None:
        if plan.validate_every and validate is None:
            raise ValueError("validate_every is set but there is nothing to validate with; pass validate=")
        if isinstance(scheduler, ReduceLROnPlateau) and not plan.validate_every:
            raise ValueError("ReduceLROnPlateau follows the validation; set validate_every too")
        self.learner = learner
        self.optimizer = optimizer
        self.schedule = schedule
        self.plan = plan
        self.scheduler = scheduler
        self.validate = validate
        self.observe = observe
        self.world = world
        self.progress = Progress()
        self.best_state: dict[str, Tensor] | None = None
        self._failure: SolverError | None = None

    @property
    def done(self) -> bool:
        """Whether the plan is fulfilled or patience has run out."""
        return self.progress.step >= self.plan.meta_steps or (
            self.plan.patience is not None and self.progress.stale >= self.plan.patience
        )

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Take meta-steps until done, or until ``should_stop`` says so between two of them, on any process.

        Raises:
            TrainingFailed: after ``max_skipped`` meta-steps in a row without a finite meta-gradient.
        """
        self.world.spread(self.learner.state_dict().values())
        while not self.done and not self.world.stops(should_stop):
            record = self.meta_step()
            if self.plan.validate_every and self.progress.step % self.plan.validate_every == 0:
                record["validation"] = self._validate()
            if self.observe is not None:
                self.observe(record)
            if self.progress.skipped_in_a_row >= self.plan.max_skipped:
                raise TrainingFailed(
                    f"{self.progress.skipped_in_a_row} meta-steps in a row had no finite meta-gradient; the last "
                    f"reason: {record.get('skipped')}"
                ) from self._failure

    def meta_step(self) -> dict[str, Any]:
        """Take one meta-step and return its record; one without a finite meta-gradient changes no parameter."""
        progress = self.progress
        started = time.perf_counter()
        counts = self.learner.evaluations
        before = (counts.n_grad, counts.n_hvp)
        record: dict[str, Any] = {"step": progress.step + 1, "lr": self.optimizer.param_groups[0]["lr"]}
        try:
            record |= self._update(cache(lambda: self.schedule(progress.step)))
            progress.skipped_in_a_row = 0
        except SolverError as error:
            self.optimizer.zero_grad(set_to_none=True)
            self._failure = error
            progress.skipped += 1
            progress.skipped_in_a_row += 1
            record |= {"loss": None, "grad_norm": None, "skipped": str(error)}
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self._step_scheduler()
        progress.step += 1
        progress.n_grad += counts.n_grad - before[0]
        progress.n_hvp += counts.n_hvp - before[1]
        elapsed = time.perf_counter() - started
        progress.seconds += elapsed
        return record | {"seconds": elapsed}

    def _update(self, tasks: Callable[[], TaskBatch]) -> dict[str, float]:
        loss, norm = self._gradient(tasks)
        if not _wants_closure(self.optimizer):
            self.optimizer.step()
            return {"loss": loss, "grad_norm": norm}
        known = [loss]  # the optimiser's first evaluation has been made already
        self.optimizer.step(lambda: known.pop() if known else self._gradient(tasks)[0])
        return {"loss": loss, "grad_norm": norm}

    def _gradient(self, tasks: Callable[[], TaskBatch]) -> tuple[float, float]:
        """Fill the gradients, clip them, and return the loss and the norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = mean_gradient(self.learner, tasks, self.world)
        limit = math.inf if self.plan.clip_norm is None else self.plan.clip_norm
        norm = float(torch.nn.utils.clip_grad_norm_(self.learner.parameters(), limit))
        if not math.isfinite(norm):
            raise SolverError("the norm of the meta-gradient is not finite: the transposed steps overflow")
        return float(loss), norm

    def _step_scheduler(self, *value: float) -> None:
        if self.scheduler is None:
            return
        with warnings.catch_warnings():
            # The rate is a function of the step; torch cannot know that the optimiser's first ones were skipped.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
            step: Callable[..., None] = self.scheduler.step  # a plateau scheduler takes the value
            step(*value)

    def _validate(self) -> float:
        if self.validate is None:
            raise ValueError("there is nothing to validate with; pass validate=")
        progress, worst = self.progress, -math.inf if self.plan.larger_is_better else math.inf
        try:
            value = self.validate()
        except SolverError:
            value = worst
        value = value if math.isfinite(value) else worst
        best = worst if progress.best is None else progress.best
        if (value > best) if self.plan.larger_is_better else (value < best):
            progress.best, progress.best_step, progress.stale = value, progress.step, 0
            self.best_state = {name: tensor.clone() for name, tensor in self.learner.state_dict().items()}
        else:
            progress.stale += 1
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self._step_scheduler(value)
        return value

    def state_dict(self) -> dict[str, Any]:
        """Return everything that continuing bit for bit needs."""
        return {
            "model": self.learner.state_dict(),
            "best_model": self.best_state,
            "kinds": self._kinds,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "progress": vars(self.progress).copy(),
            "rng": torch.get_rng_state(),
            "engine": self.learner.engine.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any], source: str = "the checkpoint") -> None:
        """Continue from a state that `state_dict` returned.

        Raises:
            ValueError: if it belongs to another model or optimiser.
        """
        if state["kinds"] != self._kinds:
            raise ValueError(
                f"{source} was written with another optimiser or scheduler: {' and '.join(state['kinds'])}, "
                f"not {' and '.join(self._kinds)}"
            )
        load_module(self.learner, state["model"], source)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{source} was written with another optimiser or scheduler: {error}") from error
        self.best_state = state["best_model"]
        self.progress = Progress(**state["progress"])
        self.learner.engine.load(state.get("engine", {}))
        torch.set_rng_state(state["rng"].cpu())

    @property
    def _kinds(self) -> list[str]:
        return [type(part).__name__ for part in (self.optimizer, self.scheduler) if part is not None]


def _wants_closure(optimizer: Optimizer) -> bool:
    """Whether the optimiser evaluates the loss itself, as LBFGS does."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
