"""Families of regression tasks: sine waves, CosMixture and Alpine."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adjoint_meta.solvers import checks
from adjoint_meta.tasks import Batch, StackedTasks, TaskBatch, generator

# Streams that hash together with the seed, so that training, validation and test tasks never coincide.
TRAIN, VALIDATION, TEST = range(3)


class Family(ABC):
    """A family of functions f(x; parameters), inputs uniform on a box, parameters uniform on their ranges."""

    inputs: int
    box: tuple[float, float]

    @abstractmethod
    def parameters(self, uniform: Tensor) -> Tensor:
        """Map uniform numbers ``[tasks, k]`` in [0, 1) to parameters ``[tasks, k]``."""

    @abstractmethod
    def values(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return f ``[tasks, points, 1]`` at x ``[tasks, points, inputs]``."""

    # How many parameters a task has.
    parameter_count: int


class Sine(Family):
    """y = A sin(x − φ), A in [0.1, 5], φ in [0, π], x in [−5, 5] (Finn, Abbeel, Levine, ICML 2017, section 5.1)."""

    inputs = 1
    box = (-5.0, 5.0)
    parameter_count = 2

    def parameters(self, uniform: Tensor) -> Tensor:
        """Return (A, φ)."""
        return _scale(uniform, [(0.1, 5.0), (0.0, math.pi)])

    def values(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return A sin(x − φ)."""
        amplitude, phase = parameters[:, None, 0:1], parameters[:, None, 1:2]
        return torch.sin(x - phase) * amplitude


class CosMixture(Family):
    """f(x) = −0.1 Σ_i A cos(ω x_i + φ) − Σ_i x_i², x in [−1, 1]², A in [0.1, 1], ω in [π/2, 2π], φ in [3, 6].

    Li, Wang, Narayan, Kirby, Zhe, AISTATS 2023, section 5.1.
    """

    inputs = 2
    box = (-1.0, 1.0)
    parameter_count = 3

    def parameters(self, uniform: Tensor) -> Tensor:
        """Return (A, ω, φ)."""
        return _scale(uniform, [(0.1, 1.0), (0.5 * math.pi, 2 * math.pi), (3.0, 6.0)])

    def values(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return the mixture."""
        amplitude, frequency, phase = (parameters[:, None, i : i + 1] for i in range(3))
        waves = 0.1 * amplitude * torch.cos(frequency * x + phase)
        return -(waves + x.square()).sum(dim=-1, keepdim=True)


class Alpine(Family):
    """f(x) = Σ_i |x_i sin(x_i + φ_i) + 0.1 x_i|, x in [−10, 10]², φ_i in [−5π/12, 5π/12].

    Li, Wang, Narayan, Kirby, Zhe, AISTATS 2023, section 5.1.
    """

    inputs = 2
    box = (-10.0, 10.0)
    parameter_count = 2

    def parameters(self, uniform: Tensor) -> Tensor:
        """Return (φ_1, φ_2)."""
        bound = 5 * math.pi / 12
        return _scale(uniform, [(-bound, bound)] * 2)

    def values(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return the sum of absolute values."""
        return (x * torch.sin(x + parameters[:, None, :]) + 0.1 * x).abs().sum(dim=-1, keepdim=True)


FAMILIES: dict[str, type[Family]] = {"sine": Sine, "cosmixture": CosMixture, "alpine": Alpine}


@dataclass(frozen=True)
class Standardisation:
    """Shift and scale of inputs and targets, fitted over all tasks: y ↦ (y − mean) / deviation."""

    x_mean: Tensor
    x_deviation: Tensor
    y_mean: Tensor
    y_deviation: Tensor

    @classmethod
    def fit(cls, batches: Sequence[Batch]) -> Standardisation:
        """Fit to every point of every task."""
        x = torch.cat([batch.x.flatten(0, 1) for batch in batches])
        y = torch.cat([batch.y.flatten(0, 1) for batch in batches])
        return cls(x.mean(0), x.std(0), y.mean(0), y.std(0))

    def apply(self, batch: Batch) -> Batch:
        """Return the batch in standard units."""
        return Batch((batch.x - self.x_mean) / self.x_deviation, (batch.y - self.y_mean) / self.y_deviation)


@dataclass(frozen=True, kw_only=True)
class RegressionOptions:
    """How many tasks and points.

    Args:
        train_tasks, validation_tasks, test_tasks: how many of each.
        shots: support points of a task.
        queries: query points of a training or validation task.
        test_queries: query points of a test task.

    Raises:
        ValueError: for a count below one (validation tasks may be 0).
    """

    train_tasks: int = 100
    validation_tasks: int = 0
    test_tasks: int = 100
    shots: int = 50
    queries: int = 50
    test_queries: int = 100

    def __post_init__(self) -> None:
        for name in ("train_tasks", "test_tasks", "shots", "queries", "test_queries"):
            checks.count(name, getattr(self, name))
        checks.count("validation_tasks", self.validation_tasks, least=0)


@dataclass(frozen=True)
class RegressionTasks(RegressionOptions):
    """Training, validation and test tasks of one family, standardised over all of them.

    Args:
        family: which functions.
        seed: draws tasks and points; the counts are those of `RegressionOptions`.
    """

    family: Family
    seed: int = 0

    def build(self) -> tuple[StackedTasks, TaskBatch | None, TaskBatch, Standardisation]:
        """Return (training source, validation tasks, test tasks, the standardisation), in float64."""
        train = self.draw(TRAIN, range(self.train_tasks), self.queries)
        test = self.draw(TEST, range(self.test_tasks), self.test_queries)
        validation = None
        if self.validation_tasks:
            validation = self.draw(VALIDATION, range(self.validation_tasks), self.queries)
        parts = [train, test, *([validation] if validation else [])]
        units = Standardisation.fit([batch for tasks in parts for batch in (tasks.support, tasks.query)])

        def standard(tasks: TaskBatch) -> TaskBatch:
            return TaskBatch(units.apply(tasks.support), units.apply(tasks.query))

        return StackedTasks(standard(train)), validation and standard(validation), standard(test), units

    def scene(self, index: int, units: Standardisation) -> Scene:
        """Return a test task on a grid of 201 points (1-D) or 61 × 61 (2-D)."""
        family = self.family
        axes = [torch.linspace(*family.box, 201 if family.inputs == 1 else 61, dtype=torch.float64)] * family.inputs
        x = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(1, -1, family.inputs)
        y = family.values(family.parameters(self._uniform(TEST, index, family.parameter_count)[None]), x)
        grid = units.apply(Batch(x, y))
        support = self.draw(TEST, [index], self.test_queries).support
        return Scene(grid.x[0], grid.y[0, :, 0], axes, units.apply(support), support.x[0])

    def _uniform(self, stream: int, index: int, size: int) -> Tensor:
        """Return the task's uniform numbers: its parameters first, then its points."""
        return torch.rand(size, generator=generator(self.seed, stream, index), dtype=torch.float64)

    def draw(self, stream: int, indices: Sequence[int], queries: int) -> TaskBatch:
        """Return tasks of a stream by index, in the units of the formula."""
        family = self.family
        points = self.shots + queries
        size = family.parameter_count + points * family.inputs
        uniform = torch.stack([self._uniform(stream, index, size) for index in indices])
        low, high = family.box
        x = low + (high - low) * uniform[:, family.parameter_count :].reshape(-1, points, family.inputs)
        y = family.values(family.parameters(uniform[:, : family.parameter_count]), x)
        return TaskBatch(Batch(x[:, : self.shots], y[:, : self.shots]), Batch(x[:, self.shots :], y[:, self.shots :]))


@dataclass(frozen=True)
class Scene:
    """One test task on a regular grid, to be drawn before and after adaptation.

    Args:
        x: grid points in standard units, shape ``[points, inputs]``.
        y: the function there in standard units, shape ``[points]``.
        axes: the grid along each input, in the units of the formula.
        support: the task's support points, as a batch of one.
        support_x: where they lie, in the units of the formula, shape ``[shots, inputs]``.
    """

    x: Tensor
    y: Tensor
    axes: list[Tensor]
    support: Batch
    support_x: Tensor


def _scale(uniform: Tensor, ranges: Sequence[tuple[float, float]]) -> Tensor:
    low, high = torch.tensor(ranges, dtype=uniform.dtype).unbind(dim=1)
    return low + (high - low) * uniform
