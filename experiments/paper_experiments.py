"""The regression and collaborative-filtering experiments: default configurations, and how tasks are built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adjoint_meta.evaluation import rmse
from adjoint_meta.tasks import Batch

from .collaborative import CollaborativeTasks
from .config import RunConfig, merge
from .data import load_ratings
from .data.synthetic import synthetic_ratings
from .experiment import Entry, Experiment
from .models import HalfMSELoss
from .regression import FAMILIES, RegressionOptions, RegressionTasks


@dataclass(frozen=True)
class RatingsOptions:
    """Tasks of a collaborative-filtering experiment; see `CollaborativeTasks`."""

    shots: int = 10
    queries: int = 15
    test_users: int = 100
    validation_users: int = 0
    min_ratings: int = 20
    top_items: int = 100


def _regression(config: RunConfig, options: RegressionOptions, data_dir: Path | None) -> Experiment:
    del data_dir
    family = FAMILIES[config.experiment]()
    tasks = RegressionTasks(family, **vars(options), seed=config.seed)
    train, validation, test, units = tasks.build()
    model = config.build_network().build([family.inputs], 1, config.seed)
    return Experiment(model, HalfMSELoss(), train, validation, test, scene=tasks.scene(0, units))


def _ratings(config: RunConfig, options: RatingsOptions, data_dir: Path | None) -> Experiment:
    embedded = config.experiment == "ratings-toy"
    ratings = synthetic_ratings(config.seed) if embedded else load_ratings(config.experiment, data_dir)
    tasks = CollaborativeTasks(ratings, **vars(options), seed=config.seed)

    def normalised_rmse(prediction: Tensor, batch: Batch) -> Tensor:
        return rmse(prediction, batch) * (tasks.scale / tasks.range)

    return Experiment(
        model=config.build_network().build([tasks.counts["items"]], 1, config.seed),
        loss=HalfMSELoss(),
        train=tasks.train,
        validation=tasks.validation,
        test=tasks.test,
        measure=normalised_rmse,
        units={"stars" if config.experiment != "jester" else "points": tasks.range},
        baselines={name: torch.from_numpy(value) / tasks.range for name, value in tasks.baselines().items()},
        facts=tasks.counts,
    )


def _steps_at(steps: int, inner_lr: float, maml_steps: int, solver_steps: int) -> dict[str, dict[str, Any]]:
    """Return every method's options for an inner solve of the same length, as the A-MAML paper sets them."""
    descent = {"steps": steps, "inner_lr": inner_lr}
    return {
        "adjoint": {"horizon": steps * inner_lr, "solver": "rk4", "steps": solver_steps},
        "imaml": {**descent, "proximal": 1.0, "cg_steps": 5},
        "maml": {"steps": maml_steps, "inner_lr": inner_lr},
        "anil": {"steps": maml_steps, "inner_lr": inner_lr},
        "memory-reduced": {"steps": 20, "inner_lr": 0.05, "cg_steps": 20, "damping": 0.1},
        "fomaml": descent,
        "reptile": descent,
    }


# rk4's steps are so short that they stay stable when training has made the losses steep: 0.1 for regression.
# Networks, step sizes and counts of tasks are those of Li et al. 2023, sections 5.1 and 5.3. Meta-steps are fewer than
# the paper's 5000, so that a first run ends while one watches; `--set meta_steps=5000` is the paper's.
_SYNTHETIC: dict[str, Any] = {"meta_steps": 500, "model": {"name": "mlp"}, "test": {"adam_epochs": 1000}}
_RATINGS: dict[str, Any] = {"model": {"name": "mlp", "width": 40, "depth": 2}}

PAPER_EXPERIMENTS: dict[str, Entry] = {
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
