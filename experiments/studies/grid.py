"""Trainings of several methods on several experiments: the cells of a study's table, or the panels of its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..comparison import Comparison, jobs, slug
from ..crew import work
from .study import Setting


@dataclass(frozen=True)
class Cell:
    """An experiment, and the methods compared on it.

    Args:
        experiment: by name.
        keys: configuration that the methods share.
        methods: options of each, by its label.
        own: configuration of single methods, by label, in place of what is shared.
    """

    experiment: str
    keys: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def train(setting: Setting, cells: Mapping[str, Cell], seeds: Sequence[int]) -> dict[str, Comparison]:
    """Train, or go on with, every method on every cell with every seed, and return a comparison a cell.

    Raises:
        Interrupted, MissingDataError, ValueError, RuntimeError: as `work` does.
    """
    shared = {"device": setting.device}
    planned = {
        name: jobs(cell.experiment, cell.methods, seeds, {**cell.keys, **shared}, setting.out / slug(name), cell.own)
        for name, cell in cells.items()
    }
    finished = iter(
        work(
            [job for each in planned.values() for job in each],
            processes=setting.jobs,
            data_dir=setting.data_dir,
            observe=setting.observe,
            should_stop=setting.should_stop,
        )
    )
    return {name: Comparison.of([next(finished) for _ in each]) for name, each in planned.items()}


def methods(steps: int, short: int, solver_steps: int, *, inner_lr: float = 0.01) -> dict[str, dict[str, Any]]:
    """Return the A-MAML paper's methods for an inner solve of so many steps; its MAML takes fewer of them.

    Args:
        steps: of gradient descent, for iMAML, FOMAML and Reptile; the flow's horizon is steps · α.
        short: of the paper's MAML.
        solver_steps: of rk4, for the flow; so many that h‖H‖ stays small when training has made the losses steep.
    """
    descent = {"steps": steps, "inner_lr": inner_lr}
    return {
        "A-MAML": {"name": "adjoint", "horizon": steps * inner_lr, "solver": "rk4", "steps": solver_steps},
        "iMAML": {"name": "imaml", **descent, "proximal": 1.0, "cg_steps": 5},
        "MAML": {"name": "maml", "steps": short, "inner_lr": inner_lr},
        "FOMAML": {"name": "fomaml", **descent},
        "Reptile": {"name": "reptile", **descent},
        f"MAML ({steps})": {"name": "maml", **descent},
    }
