from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, replace

import pytest
import torch
from problems import half_squares, mlp, quadratic, regression
from references import relative
from torch import nn

from adjoint_meta import FOMAML, MAML, AdjointMAML, ImplicitMAML, MetaLearner, Method, Reptile, SolverError

mse = nn.functional.mse_loss

METHODS = [
    MAML(steps=3, inner_lr=0.1),
    MAML(steps=3, inner_lr=0.1, adjoint="checkpointed", snapshots=2, learn=("rates",)),
    FOMAML(steps=3, inner_lr=0.1),
    Reptile(steps=3, inner_lr=0.1),
    ImplicitMAML(proximal=2.0, steps=3, inner_lr=0.1),
    AdjointMAML(horizon=0.3, solver="heun", steps=3, learn=("horizon",)),
]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


@every_method
def test_methods_are_frozen_data(method):
    assert isinstance(method, Method)
    with pytest.raises(FrozenInstanceError):
        method.steps = 7
    assert type(method)(**asdict(method)) == method
    assert hash(method) == hash(replace(method))
    assert replace(method, steps=9).steps == 9


@every_method
def test_methods_print_themselves(method):
    assert eval(repr(method)) == method


def test_learn_may_be_any_sequence_of_names():
    assert AdjointMAML(learn=["horizon", "rates"]).learn == ("horizon", "rates")


@every_method
def test_losses_are_per_task_and_gradients_of_their_mean(method, generator):
    model, tasks = mlp(generator), regression(generator)
    found = MetaLearner(model, mse, method).meta_gradient(tasks)
    alone = [MetaLearner(model, mse, method).meta_gradient(tasks[i : i + 1]) for i in range(3)]
    assert relative(found.loss, torch.cat([one.loss for one in alone])) < 1e-13
    for name, gradient in found.grad.items():
        assert relative(gradient, sum(one.grad[name] for one in alone) / 3) < 1e-12
    for name, gradient in found.hyper.items():
        assert relative(gradient, sum(one.hyper[name] for one in alone) / 3) < 1e-12
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert {name: gradient.shape for name, gradient in found.grad.items()} == shapes
    assert not any(tensor.requires_grad for tensor in (found.loss, *found.grad.values(), *found.hyper.values()))


@every_method
def test_a_diverging_solve_is_an_error_with_advice(method, generator):
    tasks = quadratic(generator, low=1e60, high=1e61)
    many = replace(method, steps=30)
    with pytest.raises(SolverError, match=r"(shorter horizon|smaller steps)"):
        MetaLearner(tasks.model, half_squares, many).meta_gradient(tasks.tasks)


def test_an_amplified_costate_is_an_error(generator):
    # φ stays finite, 1e+150 times its start; the query loss, its square, and the cotangent do not.
    tasks = quadratic(generator, low=1e15, high=1.1e15)
    with pytest.raises(SolverError, match="meta-gradient is not finite although the inner solve was"):
        MetaLearner(tasks.model, half_squares, MAML(steps=13, inner_lr=1.0)).meta_gradient(tasks.tasks)


def test_a_shared_gradient_that_is_not_finite_is_an_error(generator):
    # √|ψ| has no derivative at zero, and neither the losses nor the gradient in φ show it.
    class Rooted(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 1)
            self.root = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.head(x) + self.root.abs().sqrt()

    with pytest.raises(SolverError, match="not finite"):
        MetaLearner(Rooted(), mse, MAML(steps=2), adapt="head.*").meta_gradient(regression(generator))
