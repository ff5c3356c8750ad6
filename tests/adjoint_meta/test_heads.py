"""A head adapts: what lies below it is evaluated once, whatever the method and however many its steps."""

from __future__ import annotations

import pytest
import torch
from problems import drawn
from references import central_difference, relative, runge_kutta
from torch import nn

from adjoint_meta import FOMAML, MAML, AdjointMAML, Batch, ImplicitMAML, MemoryReduced, MetaLearner, TaskBatch
from adjoint_meta.solvers import TABLEAUS

cross_entropy = nn.functional.cross_entropy

METHODS = {
    "A-MAML": lambda n: AdjointMAML(0.5, "rk4", n),
    "A-MAML, own steps": lambda n: AdjointMAML(0.5, "bosh3", rtol=10.0**-n),
    "learnable horizon": lambda n: AdjointMAML(0.5, "rk4", n, learn=("horizon",)),
    "implicit steps": lambda n: AdjointMAML(0.5, "implicit_euler", n),
    "checkpointed": lambda n: MAML(n, 0.1, adjoint="checkpointed", snapshots=1),
    "MAML": lambda n: MAML(n, 0.1),
    "FOMAML": lambda n: FOMAML(n, 0.1),
    "memory-reduced": lambda n: MemoryReduced(n, 0.1, cg_steps=n, damping=0.1),
    "Neumann": lambda n: MemoryReduced(n, 0.1, inverse="neumann", cg_steps=n),
    "iMAML": lambda n: ImplicitMAML(1.0, n, 0.1, cg_steps=n),
    "iMAML, Gauss-Newton": lambda n: ImplicitMAML(1.0, n, 0.1, cg_steps=n, curvature="ggn"),
    "iMAML, Hessian-free": lambda n: ImplicitMAML(1.0, n, cg_steps=n, inner="newton-cg"),
}


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.times = inner, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.times += 1
        return self.inner(x)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(3, track_running_stats=False)
        self.body = Counting(nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()))
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def images(generator: torch.Generator, tasks: int = 3, points: int = 6) -> TaskBatch:
    def batch() -> Batch:
        y = torch.arange(3).repeat(tasks, points // 3)
        return Batch(torch.randn(tasks, points, 1, 6, 6, generator=generator), y)

    return TaskBatch(batch(), batch())


@pytest.mark.parametrize("name", METHODS)
def test_the_body_is_evaluated_once_and_differentiated_once(name, generator):
    tasks = images(generator)
    for steps in (1, 7):
        model = drawn(Network(), generator, 0.3)
        learner = MetaLearner(model, cross_entropy, METHODS[name](steps), adapt="head.*")
        learner.meta_gradient(tasks)  # once for these shapes a task is tried, too
        model.body.times = 0
        learner.meta_gradient(tasks)
        # Support and query, each once for the features and once for their vector-Jacobian product.
        assert model.body.times == 4
        model.body.times = 0
        learner.adapt(tasks.support)
        assert model.body.times == 1


def test_the_horizon_of_a_head_against_finite_differences(generator):
    """The reference follows the flow of each task's softmax head on fixed features by small steps of its own."""
    model, tasks = drawn(Network(), generator, 0.3), images(generator)
    method = AdjointMAML(1.5, "rk4", 20, learn=("horizon",))
    found = MetaLearner(model, cross_entropy, method, adapt="head.*").meta_gradient(tasks)
    start = torch.cat([model.head.weight.detach(), model.head.bias.detach()[:, None]], dim=1)

    def features(x):
        z = model.body(x).detach()
        return torch.cat([z, torch.ones(len(z), 1)], dim=1)

    def outer(horizon: torch.Tensor) -> float:
        losses = []
        for i in range(len(tasks)):
            z, y = features(tasks.support.x[i]), torch.eye(3)[tasks.support.y[i]]

            def field(_t, w, z=z, y=y):
                return -((z @ w.T).softmax(dim=1) - y).T @ z / len(z)

            w = runge_kutta(TABLEAUS["rk4"], field, 0.0, float(horizon), 200, start)
            losses.append(cross_entropy(features(tasks.query.x[i]) @ w.T, tasks.query.y[i]))
        return float(torch.stack(losses).mean())

    expected = central_difference(outer, torch.tensor([1.5]))
    # 20 steps of order 4 and the quotient leave errors of 1e-7 at most.
    assert relative(found.hyper["horizon"][None], expected) < 1e-6
    learner = MetaLearner(model, cross_entropy, method, adapt="head.*")
    learner(tasks).backward()
    assert relative(learner.log_hyper["horizon"].grad[None], 1.5 * expected) < 1e-6
