"""Few-shot photographs: A-MAML's mini-ImageNet column, and the memory-reduced paper's four data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..report import Report
from .few_shot_table import Account, Column, episode, study
from .grid import Cell
from .omniglot_table import HEAD
from .published_images import MEMORY_REDUCED, MINI_IMAGENET
from .study import Setting, Study

TITLES = {
    "cifar-fs": "CIFAR-FS",
    "fc100": "FC100",
    "mini-imagenet": "mini-ImageNet",
    "tiered-imagenet": "tieredImageNet",
}


@dataclass(frozen=True)
class Budget:
    """How long a study takes.

    Args:
        meta_steps: of every method.
        tasks: of a meta-step.
        filters: of each of the four convolutions; the papers take 32.
        test_tasks: episodes of the test.
        size: height and width of images; ``None`` is the data set's own.
        backend: of the engine; compiling takes longer than a short run.
    """

    meta_steps: int
    tasks: int
    filters: int = 32
    test_tasks: int = 600
    size: int | None = None
    backend: str = "auto"

    def keys(self, shots: int, queries: int, **others: Any) -> dict[str, Any]:
        """Return the configuration that the methods share, with 5 ways."""
        task = {"ways": 5, "shots": shots, "queries": queries, "test_tasks": self.test_tasks, "size": self.size}
        return {
            "meta_steps": self.meta_steps,
            "tasks_per_step": self.tasks,
            "model": {"filters": self.filters},
            "backend": self.backend,
            "task": {**task, "augment": False},
            **others,
        }

    def line(self, full: Budget, theirs: str) -> str:
        """Say how long the training was, and that it was short."""
        size = f"{self.meta_steps} meta-steps of {self.tasks} tasks, {self.filters} filters"
        if self.meta_steps >= full.meta_steps:
            return f"Every method took {size}."
        return (
            f"A short run: every method took {size}, where the papers take {theirs} and {full.filters} filters. It "
            "shows how fast the methods learn, not where they end."
        )

    def setting(self, lr: str) -> dict[str, Any]:
        """Return the facts of a report."""
        network = (
            f"four convolutions of {self.filters} filters with max pooling, batch norm with the batch's statistics"
        )
        return {"meta-steps": self.meta_steps, "outer": f"Adam {lr}, {self.tasks} tasks", "network": network}


MINI = {
    "quick": Budget(30, 4, filters=16, test_tasks=100, backend="eager"),
    "full": Budget(60_000, 4),
}
REDUCED = {
    "quick": Budget(40, 4, filters=16, test_tasks=200, backend="eager"),
    "full": Budget(4000, 32, test_tasks=640),
}


def mini_methods() -> dict[str, dict[str, Any]]:
    """Return every method's options on mini-ImageNet where they differ from the experiment's."""
    return {
        "MAML": {"name": "maml"},
        "FOMAML": {"name": "fomaml"},
        "Reptile": {"name": "reptile"},
        "iMAML-GD": {"name": "imaml"},
        "iMAML-HF": {"name": "imaml", "inner": "newton-cg", "steps": 3},
        "A-MAML (T = 0.5)": {"name": "adjoint"},
        "A-MAML (T = 1)": {"name": "adjoint", "horizon": 1.0, "steps": 20},
        "ANIL": {"name": "anil"},
        "A-MAML (head)": {"name": "adjoint", "horizon": 1.0, "solver": "auto", "learn": ["horizon"]},
    }


def mini_columns(budget: Budget) -> dict[str, Column]:
    """Return the one column: 5 ways, 1 shot."""
    keys = budget.keys(1, 15, clip_norm=10.0, optimizer={"lr": 1e-3})
    cell = Cell("mini-imagenet", keys, mini_methods(), {"A-MAML (head)": HEAD})
    return {f"mini-ImageNet, {episode(5, 1)}": Column(cell, 5, MINI_IMAGENET[5, 1])}


def mini_run(setting: Setting) -> Report:
    """Train all methods on mini-ImageNet, and compare with the papers' numbers."""
    budget = MINI[setting.budget]
    account = Account(
        title="Few-shot classification of mini-ImageNet: Table 3 of A-MAML",
        question=(
            "An episode shows one photograph of each of five classes that were not trained on; adapted to them, the "
            "network classifies others. Larger is better."
        ),
        size=budget.line(MINI["full"], "60,000 meta-steps (MAML's)"),
        departures=[
            "Steps and rates: MAML's 5 steps of 0.01; iMAML's λ = 0.5, 10 steps and 5 CG steps, the rate of 0.1 "
            "second-hand; three Newton steps of iMAML-HF, Heun's steps of 1/20 of A-MAML, Reptile's plain steps and "
            "ANIL's 5 steps are ours, since the papers print none or take another inner optimiser.",
            "The test takes the same inner solve as training; MAML's authors take 10 steps there.",
            "Beside A-MAML on the head, which learns its horizon, stands COMLN's accuracy: the same flow, trained by "
            "SGD.",
            "Images are not augmented. The norm of the meta-gradient is clipped at 10; MAML's code clips each number.",
        ],
        setting=budget.setting("1e-3, clipped at 10"),
    )
    return study(setting, mini_columns(budget), account)


# Of the authors' code where it differs from the experiments: 20 steps on the head for the last two.
REDUCED_METHODS: dict[str, dict[str, Any]] = {
    "MAML": {"name": "maml", "steps": 3, "inner_lr": 0.5},
    "ANIL": {"name": "anil", "steps": 5, "inner_lr": 0.1},
    "ITD-BiO": {"name": "anil", "steps": 20},
    "memory-reduced": {"name": "memory-reduced"},
}
# Outer learning rates, of the same code.
RATES = {"MAML": 5e-3, "ANIL": 1e-3, "ITD-BiO": 1e-4, "memory-reduced": 1e-3}


def reduced_columns(budget: Budget) -> dict[str, Column]:
    """Return the four data sets: 5 ways, 5 shots."""
    own: Mapping[str, Mapping[str, Any]] = {name: {"optimizer": {"lr": rate}} for name, rate in RATES.items()}
    keys = budget.keys(5, 5, clip_norm=None)
    return {
        title: Column(Cell(name, keys, REDUCED_METHODS, own), 5, MEMORY_REDUCED[name]) for name, title in TITLES.items()
    }


def reduced_run(setting: Setting) -> Report:
    """Train the four methods on the data sets that are here, and compare with the paper's numbers."""
    budget = REDUCED[setting.budget]
    account = Account(
        title="Memory-reduced meta-learning: accuracy on four data sets",
        question=(
            "An episode shows five photographs of each of five classes that were not trained on, and is judged by "
            "five others of each. MAML adapts all layers, the others the last one. Larger is better."
        ),
        size=budget.line(REDUCED["full"], "4000 meta-steps of 32 tasks"),
        departures=[
            "The printed numbers are second-hand, from an author's notes, and may differ from the paper's tables.",
            "Steps and rates are those of the authors' code for mini-ImageNet; what they took for the other data sets "
            "is not known.",
            "memory-reduced has a damping of 0.1, as the Hessian of a head with more features than images is singular; "
            "their code has none.",
            "ITD-BiO learns the start of the heads too, and has no weight regulariser; in their code the start is "
            "fixed, and 1e-4 times the weights' norms are added.",
            "Training draws episodes without end; their code draws from 20,000.",
        ],
        setting=budget.setting("at each method's rate"),
    )
    return study(setting, reduced_columns(budget), account)


MINI_IMAGENET_TABLE = Study(
    "Table 3 of A-MAML: mini-ImageNet, 5 ways, 1 shot, all methods", mini_run, MINI, side_by_side=True, on_gpu=True
)
MEMORY_REDUCED_TABLE = Study(
    "Accuracies of the memory-reduced paper: MAML, ANIL, ITD-BiO and its own on four data sets",
    reduced_run,
    REDUCED,
    side_by_side=True,
    on_gpu=True,
)
