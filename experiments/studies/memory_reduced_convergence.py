"""Memory-reduced meta-learning: the hypergradient's error, and the residual of all tasks and of random batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil, log
from typing import Any

import torch
from torch import Tensor

from adjoint_meta.meta_gradients import MemoryReduced, Method, aid_bio, itd_bio, stoc_bio
from adjoint_meta.tasks import TaskBatch, generator

from ..report import Report
from .memory_reduced_convergence_report import report
from .shared_regression import Exact, SharedRegression
from .study import Setting, Study

OURS, FEW = "memory-reduced", "memory-reduced, few steps"
# How often AID-BiO is asked at the same ψ before its error is taken.
ROUNDS = 10


@dataclass(frozen=True)
class Budget:
    """How much is measured.

    Args:
        problem: the tasks.
        steps: numbers of inner steps n at which the hypergradient is compared.
        products: numbers of CG steps, or products of the Neumann series, at which it is.
        meta_steps: of gradient descent on Φ.
        inner: inner steps of memory-reduced meta-learning there, and of all methods with few of them.
        batches: numbers of tasks a meta-step, drawn at random.
        seeds: of these draws.
    """

    problem: SharedRegression
    steps: tuple[int, ...] = (1, 2, 5, 10, 15, 20, 30, 40, 60)
    products: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 25, 30, 40)
    meta_steps: int = 300
    inner: tuple[int, int] = (20, 5)
    batches: tuple[int, ...] = (2, 4, 8, 16, 32)
    seeds: int = 1


BUDGETS = {
    "quick": Budget(SharedRegression()),
    "full": Budget(
        SharedRegression(tasks=256),
        steps=(1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 80),
        meta_steps=2000,
        batches=(1, 2, 4, 8, 16, 32, 64, 128),
        seeds=5,
    ),
}


@dataclass(frozen=True)
class Bench:
    """The tasks, what is known of them, and the step sizes that follow.

    Args:
        budget: how much is measured.
        tasks: all of them.
        exact: Φ by dense linear algebra.
        inner_lr: α, 1 / max ‖∇²_φL_s‖.
        outer_lr: η, 1 / ‖∇²Φ‖.
    """

    budget: Budget
    tasks: TaskBatch
    exact: Exact
    inner_lr: float
    outer_lr: float

    @classmethod
    def of(cls, budget: Budget) -> Bench:
        """Draw the tasks."""
        tasks = budget.problem.batch()
        exact = Exact.of(tasks, budget.problem.head)
        return cls(budget, tasks, exact, 1 / float(exact.spectrum.max()), 1 / exact.largest())

    def error(self, method: Method, rounds: int = 1) -> float:
        """Return ‖ĝ − ∇Φ‖ / ‖∇Φ‖ at ψ = 0, of the last of some meta-gradients there."""
        learner = self.budget.problem.learner(method)
        for _ in range(rounds):
            found = learner.meta_gradient(self.tasks).grad["shared.weight"][0]
        expected = self.exact.gradient(torch.zeros_like(found))
        return float((found - expected).norm() / expected.norm())

    def descend(self, method: Method, batches: Iterator[TaskBatch]) -> list[float]:
        """Return ‖∇Φ‖² before each step of gradient descent on the meta-gradients of these batches, from ψ = 0."""
        learner = self.budget.problem.learner(method)
        psi = torch.zeros(self.budget.problem.shared, dtype=torch.float64)
        residuals = []
        for batch in batches:
            residuals.append(float(self.exact.gradient(psi).square().sum()))
            psi = psi - self.outer_lr * learner.meta_gradient(batch).grad["shared.weight"][0]
            with torch.no_grad():
                learner.get_parameter("model.shared.weight").copy_(psi[None])
        return residuals


def by_inner_steps(bench: Bench) -> dict[str, Callable[[int], float]]:
    """Return each method's error by its number of inner steps, v being as good as they allow."""
    alpha, tasks = bench.inner_lr, len(bench.tasks)
    exactly: dict[str, Any] = {"cg_steps": bench.budget.problem.head, "cg_tol": 1e-14}
    return {
        OURS: lambda n: bench.error(MemoryReduced(n, alpha, **exactly)),
        "AID-BiO": lambda n: bench.error(replace(aid_bio(tasks, n, alpha), **exactly), ROUNDS),
        "ITD-BiO": lambda n: bench.error(itd_bio(n, alpha)),
        "stocBiO": lambda n: bench.error(stoc_bio(n, alpha, products=n)),
    }


def by_products(bench: Bench) -> dict[str, Callable[[int], float]]:
    """Return the error by the number of products that v takes, at heads that have come to rest."""
    alpha = bench.inner_lr
    rest = ceil(log(1e-16) / log(1 - alpha * float(bench.exact.spectrum.min())))
    return {
        "CG": lambda k: bench.error(MemoryReduced(rest, alpha, cg_steps=k, cg_tol=1e-14)),
        "Neumann series": lambda k: bench.error(stoc_bio(rest, alpha, products=k)),
    }


def optimisers(bench: Bench) -> dict[str, Method]:
    """Return what descends on Φ with all tasks."""
    alpha, (many, few) = bench.inner_lr, bench.budget.inner
    return {
        OURS: MemoryReduced(many, alpha),
        FEW: MemoryReduced(few, alpha),
        "AID-BiO": aid_bio(len(bench.tasks), few, alpha, cg_steps=few),
        "ITD-BiO": itd_bio(few, alpha),
        "stocBiO": stoc_bio(few, alpha, products=few),
    }


def run(setting: Setting) -> Report:
    """Measure, and report."""
    budget = BUDGETS[setting.budget]
    bench = Bench.of(budget)
    work: dict[str, Callable[[], Any]] = {}
    for part, curves, places in (
        ("steps", by_inner_steps(bench), budget.steps),
        ("products", by_products(bench), budget.products),
    ):
        for name, error in curves.items():
            work[f"{part}/{name}"] = partial(_curve, error, places)
    for name, method in optimisers(bench).items():
        work[f"all/{name}"] = partial(_all_tasks, bench, method)
    for size in budget.batches:
        for seed in range(budget.seeds):
            work[f"random/{size}/{seed}"] = partial(_random_tasks, bench, size, seed)
    found = {}
    for done, (key, compute) in enumerate(work.items()):
        setting.observe(done, len(work), key.replace("/", ", "))
        found[key] = setting.cell("".join(c if c.isalnum() else "-" for c in key), compute)
    setting.observe(len(work), len(work), "report")
    known = {
        "inner_lr": bench.inner_lr,
        "outer_lr": bench.outer_lr,
        "least_curvature": float(bench.exact.spectrum.min()),
        "outer_curvature": torch.linalg.eigvalsh(bench.exact.curvature.mean(dim=0)).tolist(),
        "predicted": {size: bench.exact.residual_of(bench.outer_lr, size) for size in budget.batches},
    }
    return report(found, budget, known, {"budget": setting.budget, "device": "cpu", **asdict(budget)})


def _curve(error: Callable[[int], float], places: tuple[int, ...]) -> list[float]:
    return [error(place) for place in places]


def _all_tasks(bench: Bench, method: Method) -> list[float]:
    return bench.descend(method, (bench.tasks for _ in range(bench.budget.meta_steps)))


def _random_tasks(bench: Bench, size: int, seed: int) -> list[float]:
    """Descend on random batches, with the few inner steps whose bias lies far below what the batches do."""

    def draw() -> Iterator[TaskBatch]:
        for step in range(bench.budget.meta_steps):
            which = _which(seed, step, size, len(bench.tasks))
            yield TaskBatch(bench.tasks.support.take(which), bench.tasks.query.take(which))

    many, few = bench.budget.inner
    return bench.descend(MemoryReduced((many + few) // 2, bench.inner_lr), draw())


def _which(seed: int, step: int, size: int, tasks: int) -> Tensor:
    """Return the numbers of the tasks of a meta-step, drawn with replacement."""
    return torch.randint(tasks, (size,), generator=generator(seed, 400, step))


CONVERGENCE = Study(
    "Memory-reduced meta-learning: error of the hypergradient, residual against meta-steps", run, BUDGETS
)
