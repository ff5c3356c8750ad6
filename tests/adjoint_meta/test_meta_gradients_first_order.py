from __future__ import annotations

import pytest
import torch
from problems import half_squares, mlp, quadratic, regression
from references import Split, derivatives, relative, rows_times
from torch import nn
from torch.func import grad

from adjoint_meta import FOMAML, MAML, AdjointMAML, MetaLearner, Reptile

mse = nn.functional.mse_loss


def descended(model, tasks, steps: int, lr: float, adapt: str | None = None) -> torch.Tensor:
    """φ_n of every task, by a loop."""
    split, found = Split(model, adapt), []
    for i in range(len(tasks)):
        phi = split.theta
        for _ in range(steps):
            phi = phi - lr * derivatives(split, mse, phi, tasks.support.x[i], tasks.support.y[i]).gradient
        found.append(phi)
    return torch.stack(found)


@pytest.mark.parametrize("adapt", [None, "2.*"])
def test_fomaml_is_the_query_gradient_at_the_adapted_parameters(adapt, generator):
    model, tasks = mlp(generator), regression(generator)
    split, phi = Split(model, adapt), descended(model, tasks, 6, 0.1, adapt)

    def query(phi, psi, i):
        return mse(split.predict(phi, psi, tasks.query.x[i]), tasks.query.y[i])

    theta = sum(grad(query)(phi[i], split.psi, i) for i in range(3)) / 3
    psi = sum(grad(query, 1)(phi[i], split.psi, i) for i in range(3)) / 3
    found = MetaLearner(model, mse, FOMAML(steps=6, inner_lr=0.1), adapt=adapt).meta_gradient(tasks)
    assert relative(found.loss, torch.stack([query(phi[i], split.psi, i) for i in range(3)])) < 1e-12
    for name, gradient in split.named(theta, psi).items():
        assert relative(found.grad[name], gradient) < 1e-12
    assert (found.stats["n_grad"], found.stats["n_hvp"]) == (7, 0)


def test_reptile_is_the_way_back(generator):
    model, tasks = mlp(generator), regression(generator)
    phi = descended(model, tasks, 6, 0.1)
    split = Split(model)
    found = MetaLearner(model, mse, Reptile(steps=6, inner_lr=0.1)).meta_gradient(tasks)
    expected = split.named((split.theta - phi).mean(dim=0), split.psi)
    for name, direction in expected.items():
        assert relative(found.grad[name], direction) < 1e-12
    assert (found.stats["n_grad"], found.stats["n_hvp"]) == (7, 0)


def test_reptile_has_nothing_for_shared_parameters(generator):
    with pytest.raises(ValueError, match=r"Reptile has no gradient for shared parameters.*requires_grad_\(False\)"):
        MetaLearner(mlp(generator), mse, Reptile(), adapt="2.*")
    model = mlp(generator)
    model[0].requires_grad_(False)
    assert set(MetaLearner(model, mse, Reptile()).meta_gradient(regression(generator)).grad) == {"2.weight", "2.bias"}


def test_closed_forms_on_quadratic_tasks(generator):
    tasks = quadratic(generator)
    shrink = torch.linalg.matrix_power(torch.eye(4) - 0.2 * tasks.a, 12)
    phi = tasks.b + rows_times(shrink, tasks.theta - tasks.b)
    first = MetaLearner(tasks.model, half_squares, FOMAML(steps=12, inner_lr=0.2)).meta_gradient(tasks.tasks)
    assert relative(first.grad["phi"], tasks.cotangent(phi).mean(dim=0)) < 1e-10
    reptile = MetaLearner(tasks.model, half_squares, Reptile(steps=12, inner_lr=0.2)).meta_gradient(tasks.tasks)
    assert relative(reptile.grad["phi"], (tasks.theta - phi).mean(dim=0)) < 1e-10


def test_all_descents_take_the_same_steps(generator):
    model, tasks = mlp(generator), regression(generator)
    phi = descended(model, tasks, 6, 0.1)
    for method in (
        FOMAML(steps=6, inner_lr=0.1),
        Reptile(steps=6, inner_lr=0.1),
        MAML(steps=6, inner_lr=0.1),
        AdjointMAML(horizon=0.6, solver="euler", steps=6),
    ):
        assert relative(MetaLearner(model, mse, method).adapt(tasks.support), phi) < 1e-12


@pytest.mark.parametrize("method", [FOMAML, Reptile])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"steps": 1.5}, TypeError, "steps must be a whole number"),
        ({"inner_lr": 0}, ValueError, "inner_lr must be positive"),
        ({"learn": ("inner_lr",)}, TypeError, "learn"),
    ],
)
def test_wrong_arguments_are_refused(method, arguments, error, message):
    with pytest.raises(error, match=message):
        method(**arguments)
