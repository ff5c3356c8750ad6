"""The experiments by name: what each is, its default configuration, and how its tasks are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adjoint_meta.batched_model import Loss
from adjoint_meta.evaluation import Metric, rmse
from adjoint_meta.solvers import checks
from adjoint_meta.tasks import Batch, TaskBatch, TaskSource

from .collaborative import CollaborativeTasks
from .config import METHODS, RunConfig, as_options, build_dataclass, merge, validate
from .data import load_ratings
from .data.synthetic import synthetic_ratings
from .models import HalfMSELoss, mlp
from .regression import FAMILIES, RegressionOptions, RegressionTasks, Scene


@dataclass(frozen=True)
class Experiment:
    """An experiment ready to run.

    Args:
        model, loss: what is meta-learned.
        train: training tasks by index.
        validation, test: tasks held out; their queries may be masked.
        metric: name of the number reported; smaller is better.
        measure: computes it, one value a task.
        units: the same number in other units, as factors: {"stars": 4.0}.
        baselines: the metric of predictors without a network on the same test points, ``[tasks]`` each.
        facts: counts that a reader wants to see.
        scene: a test task to draw before and after adaptation.
    """

    model: nn.Module
    loss: Loss
    train: TaskSource
    validation: TaskBatch | None
    test: TaskBatch
    metric: str = "nRMSE"
    measure: Metric = rmse
    units: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, int] = field(default_factory=dict)
    scene: Scene | None = None


@dataclass(frozen=True)
class RatingsOptions:
    """Tasks of a collaborative-filtering experiment; see `CollaborativeTasks`."""

    shots: int = 10
    queries: int = 15
    test_users: int = 100
    validation_users: int = 0
    min_ratings: int = 20
    top_items: int = 100


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


def _regression(config: RunConfig, options: RegressionOptions, data_dir: Path | None) -> Experiment:
    del data_dir
    family = FAMILIES[config.experiment]()
    tasks = RegressionTasks(family, **vars(options), seed=config.seed)
    train, validation, test, units = tasks.build()
    model = _network(config, family.inputs)
    return Experiment(model, HalfMSELoss(), train, validation, test, scene=tasks.scene(0, units))


def _ratings(config: RunConfig, options: RatingsOptions, data_dir: Path | None) -> Experiment:
    embedded = config.experiment == "ratings-toy"
    ratings = synthetic_ratings(config.seed) if embedded else load_ratings(config.experiment, data_dir)
    tasks = CollaborativeTasks(ratings, **vars(options), seed=config.seed)

    def normalised_rmse(prediction: Tensor, batch: Batch) -> Tensor:
        return rmse(prediction, batch) * (tasks.scale / tasks.range)

    return Experiment(
        model=_network(config, tasks.counts["items"]),
        loss=HalfMSELoss(),
        train=tasks.train,
        validation=tasks.validation,
        test=tasks.test,
        measure=normalised_rmse,
        units={"stars" if config.experiment != "jester" else "points": tasks.range},
        baselines={name: torch.from_numpy(value) / tasks.range for name, value in tasks.baselines().items()},
        facts=tasks.counts,
    )


def _network(config: RunConfig, inputs: int) -> nn.Module:
    model = config.model
    return mlp(inputs, model.width, model.depth, 1, activation=model.activation, seed=config.seed)


def _steps_at(steps: int, inner_lr: float, maml_steps: int, solver_steps: int) -> dict[str, dict[str, Any]]:
    """Return every method's options for an inner solve of the same length, as the A-MAML paper sets them."""
    descent = {"steps": steps, "inner_lr": inner_lr}
    return {
        "adjoint": {"horizon": steps * inner_lr, "solver": "rk4", "steps": solver_steps},
        "imaml": {**descent, "proximal": 1.0, "cg_steps": 5},
        "maml": {"steps": maml_steps, "inner_lr": inner_lr},
        "fomaml": descent,
        "reptile": descent,
    }


# rk4's steps are so short that they stay stable when training has made the losses steep: 0.1 for regression.
# Networks, step sizes and counts of tasks are those of Li et al. 2023, sections 5.1 and 5.3. Meta-steps are fewer than
# the paper's 5000, so that a first run ends while one watches; `--set meta_steps=5000` is the paper's.
_SYNTHETIC: dict[str, Any] = {"meta_steps": 500, "test": {"adam_epochs": 1000}}
_RATINGS: dict[str, Any] = {"model": {"width": 40, "depth": 2}}

EXPERIMENTS: dict[str, Entry] = {
    "cosmixture": Entry(
        "regression on mixtures of cosines and a paraboloid in 2-D (embedded; the default)",
        RegressionOptions,
        _regression,
        _SYNTHETIC,
        _steps_at(200, 0.01, maml_steps=20, solver_steps=20),
    ),
    "alpine": Entry(
        "regression on Alpine functions in 2-D (embedded)",
        RegressionOptions,
        _regression,
        _SYNTHETIC,
        _steps_at(200, 0.01, maml_steps=20, solver_steps=20),
    ),
    "sine": Entry(
        "regression on sine waves in 1-D (embedded)",
        RegressionOptions,
        _regression,
        merge(_SYNTHETIC, {"task": {"shots": 10, "queries": 10, "train_tasks": 1000}, "model": {"width": 40}}),
        _steps_at(200, 0.01, maml_steps=20, solver_steps=20),
    ),
    "ratings-toy": Entry(
        "collaborative filtering on synthetic ratings with user and item structure (embedded)",
        RatingsOptions,
        _ratings,
        merge(_RATINGS, {"meta_steps": 300}),
        _steps_at(50, 0.01, maml_steps=5, solver_steps=5),
    ),
    "movielens-100k": Entry(
        "collaborative filtering on MovieLens-100K: one user is one task",
        RatingsOptions,
        _ratings,
        _RATINGS,
        _steps_at(50, 0.01, maml_steps=5, solver_steps=5),
    ),
    "movielens-1m": Entry(
        "collaborative filtering on MovieLens-1M: one user is one task",
        RatingsOptions,
        _ratings,
        _RATINGS,
        _steps_at(50, 0.01, maml_steps=5, solver_steps=5),
    ),
    "jester": Entry(
        "collaborative filtering on Jester-1, ratings of jokes: one user is one task",
        RatingsOptions,
        _ratings,
        _RATINGS,
        _steps_at(50, 0.01, maml_steps=5, solver_steps=5),
    ),
}


def resolve(overrides: Mapping[str, Any], experiment: str | None = None, method: str | None = None) -> RunConfig:
    """Return the full configuration: the experiment's defaults, then ``overrides``, then the two names if given.

    Raises:
        ValueError: for an unknown name or key, with its neighbours, or a value that does not fit.
    """
    name = checks.one_of("experiment", str(experiment or overrides.get("experiment") or "cosmixture"), EXPERIMENTS)
    entry = EXPERIMENTS[name]
    wanted = overrides.get("method", {})
    if isinstance(wanted, str):  # `method: maml` is short for `method: {name: maml}`
        wanted = {"name": wanted}
    if not isinstance(wanted, Mapping):
        raise ValueError(f"method should be a name or a mapping such as {{name: maml, steps: 20}}, got {wanted!r}")
    chosen = checks.one_of("method", str(method or wanted.get("name") or "adjoint"), METHODS)
    if wanted.get("name", chosen) != chosen:  # options of another method do not carry over
        wanted = {}
    raw = merge(merge(entry.defaults, overrides), {"experiment": name})
    kept = dict(entry.methods[chosen])
    # Steps are counted for the default solver: another solver has its own default, and a tolerance replaces them.
    if wanted.get("solver", kept.get("solver")) != kept.get("solver") or wanted.get("rtol") is not None:
        kept.pop("steps", None)
    raw["method"] = {**kept, **wanted, "name": chosen}
    config = validate(raw)
    options = build_dataclass(entry.options, config.task, "task")
    full = {"name": chosen, **as_options(config.build_method())}
    return config.model_copy(update={"method": full, "task": as_options(options)})


def build(config: RunConfig, data_dir: Path | None = None) -> Experiment:
    """Return the experiment of a configuration.

    Raises:
        MissingDataError: if its data set is not here; the message says how to get it.
        ValueError: if the data or the configuration are bad.
    """
    entry = EXPERIMENTS[config.experiment]
    return entry.build(config, build_dataclass(entry.options, config.task, "task"), data_dir)
