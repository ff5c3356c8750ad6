"""The few-shot experiments: their default configurations, and how their episodes are built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adjoint_meta.solvers import checks
from adjoint_meta.tasks import Batch, FirstTasks, TaskSource

from .augmentation import CropAndFlip
from .config import RunConfig
from .data.image_catalogue import image_set
from .data.image_loading import load_images
from .experiment import Entry, Experiment
from .few_shot import Episodes

# Test episodes start here, validation ones at zero: those of training are drawn from other classes.
TEST_EPISODES = 2**31
# Their order is drawn anew for each pass over them.
MOST_TASKS = 10**7


@dataclass(frozen=True)
class FewShotOptions:
    """Episodes of a few-shot experiment; see `Episodes`.

    Args:
        ways: classes of an episode.
        shots, queries: images of each class in support and query.
        train_tasks: how many episodes return all the time; 0 is episodes without end.
        test_tasks, validation_tasks: fixed episodes of the test and the validation classes.
        rotations: whether classes turned by 90, 180 and 270 degrees count as further ones.
        augment: random crops while training, of photographs mirror images, too.
        size: height and width of images; ``None`` is the usual one of the set.
        split: which division into classes, where there are several; ``None`` is the usual one.
    """

    ways: int = 5
    shots: int = 1
    queries: int = 15
    train_tasks: int = 0
    test_tasks: int = 600
    validation_tasks: int = 0
    rotations: bool = False
    augment: bool = False
    size: int | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        checks.count("test_tasks", self.test_tasks)
        checks.count("train_tasks", self.train_tasks, least=0)
        if self.train_tasks > MOST_TASKS:
            raise ValueError(f"train_tasks must be at most {MOST_TASKS}, or 0 for no end, got {self.train_tasks}")
        checks.count("validation_tasks", self.validation_tasks, least=0)


def accuracy(prediction: Tensor, batch: Batch) -> Tensor:
    """Return the share of query images ``[tasks]`` whose largest score ``[tasks, points, ways]`` is their class's.

    It is NaN for a task with a score that is: the largest of these would be some class, and the share one of chance.
    """
    right = (prediction.argmax(dim=2) == batch.y).to(prediction.dtype).mean(dim=1)
    return right.masked_fill(prediction.isnan().flatten(1).any(dim=1), math.nan)


def _changes(shape: tuple[int, int, int]) -> CropAndFlip:
    """Return the usual changes to images: moved by 8 pixels of 84 or 4 of 32, mirrored if they are no characters."""
    channels, height, _ = shape
    return CropAndFlip(padding=max(4, height // 10), flip=channels > 1)


def _few_shot(config: RunConfig, options: FewShotOptions, data_dir: Path | None) -> Experiment:
    images = load_images(config.experiment, data_dir, size=options.size, split=options.split)
    usual = image_set(config.experiment)

    def episodes(split: str, queries: int, **others: Any) -> Episodes:
        return Episodes(
            images[split],
            options.ways,
            options.shots,
            queries,
            seed=config.seed,
            rotations=options.rotations,
            mean=usual.mean,
            std=usual.std,
            **others,
        )

    augment = _changes(images["train"].shape) if options.augment else None
    train: TaskSource = episodes("train", options.queries, augment=augment)
    if options.train_tasks:
        train = FirstTasks(train, options.train_tasks)
    count = options.validation_tasks
    test = FirstTasks(episodes("test", options.queries, first=TEST_EPISODES), options.test_tasks)
    return Experiment(
        model=config.build_network().build(images["train"].shape, options.ways, config.seed),
        loss=nn.CrossEntropyLoss(),
        train=train,
        validation=FirstTasks(episodes("validation", options.queries), count) if count else None,
        test=test,
        at_once=config.tasks_per_step,  # as many as training has to hold
        metric="accuracy",
        larger_is_better=True,
        measure=accuracy,
        facts={f"{split}_classes": len(classes) for split, classes in images.items()},
        scene=test[:1],
    )


def _methods(
    descent: dict[str, Any], maml: dict[str, Any], reptile: dict[str, Any], proximal: float, head_lr: float
) -> dict[str, dict[str, Any]]:
    return {
        # So that h‖H‖ stays inside the stability interval while training makes the losses steep: with 6 steps it did
        # not after 100 meta-steps on Omniglot, and the meta-gradient was 40 % from that of the flow, with 10 it is 3 %.
        "adjoint": {"horizon": 0.5, "solver": "heun", "steps": 10},
        "imaml": {**descent, "proximal": proximal, "cg_steps": 5},
        "maml": maml,
        "fomaml": maml,
        "reptile": reptile,
        "anil": {"steps": 5, "inner_lr": head_lr},
        "memory-reduced": {"steps": 20, "inner_lr": 0.05, "cg_steps": 20, "damping": 0.1},
    }


_DESCENT: dict[str, Any] = {"steps": 16, "inner_lr": 0.1}
# 5 ways. Rajeswaran et al. 2019: 16 steps of 0.1, λ = 2; Finn et al. 2017: one step of 0.4; Li et al. 2023: T = 0.5.
_CHARACTERS = _methods(_DESCENT, {"steps": 1, "inner_lr": 0.4}, _DESCENT, proximal=2.0, head_lr=0.4)
# Finn et al. 2017: 5 steps of 0.01; Nichol et al. 2018: 8 steps (of Adam; plain ones of 0.05 here); Rajeswaran et al.
# 2019: 10 steps and λ = 0.5, the rate of 0.1 second-hand; Ji et al. 2021: ANIL's 0.05.
_PHOTOGRAPHS = _methods(
    {"steps": 10, "inner_lr": 0.1},
    {"steps": 5, "inner_lr": 0.01},
    {"steps": 8, "inner_lr": 0.05},
    proximal=0.5,
    head_lr=0.05,
)

_SMALL: dict[str, Any] = {
    "model": {"name": "conv4", "filters": 64, "downsample": "stride"},
    "task": {"rotations": True, "queries": 5},
    "meta_steps": 300,
    "tasks_per_step": 16,
    "optimizer": {"lr": 0.003},  # so that a first run, of 300 meta-steps, gets far
}
_TINY: dict[str, Any] = {
    **_SMALL,
    "model": {"name": "conv4", "filters": 32, "downsample": "stride"},
    "task": {"queries": 5},
    "tasks_per_step": 8,
}
_LARGE: dict[str, Any] = {
    "model": {"name": "conv4", "filters": 32, "downsample": "pool"},
    "task": {"augment": True},
    "meta_steps": 1000,
    "tasks_per_step": 4,
    "clip_norm": 10.0,
}


def _entry(summary: str, defaults: dict[str, Any], methods: dict[str, dict[str, Any]]) -> Entry:
    return Entry(f"few-shot classification of {summary}", FewShotOptions, _few_shot, defaults, methods)


IMAGE_EXPERIMENTS: dict[str, Entry] = {
    "omniglot": _entry("handwritten characters, 28×28; Vinyals' classes with rotations", _SMALL, _CHARACTERS),
    "glyphs": _entry("drawn glyphs, 28×28 (embedded)", _TINY, _CHARACTERS),
    "mini-imagenet": _entry("photographs, 84×84; Ravi and Larochelle's classes", _LARGE, _PHOTOGRAPHS),
    "tiered-imagenet": _entry("photographs, 84×84, classes divided by what they are kinds of", _LARGE, _PHOTOGRAPHS),
    "cifar-fs": _entry("CIFAR-100's photographs, 32×32, classes divided at random", _LARGE, _PHOTOGRAPHS),
    "fc100": _entry("CIFAR-100's photographs, 32×32, classes divided by superclass", _LARGE, _PHOTOGRAPHS),
}
