"""MAML, and every explicit solver of A-MAML: the meta-gradient is autograd's through all steps of all tasks."""

from __future__ import annotations

import pytest
import torch
from problems import CASES, Quadratic, case, half_squares, mlp, quadratic, regression
from references import central_difference, difference_quotient, relative, rows_times, through_every_step
from torch import nn

from adjoint_meta import MAML, AdjointMAML, Batch, MetaLearner, TaskBatch
from adjoint_meta.solvers import TABLEAUS

mse = nn.functional.mse_loss


def same(found, expected, tolerance: float) -> None:
    """Losses and gradients of the same parameters agree."""
    assert relative(found.loss, expected.losses) < tolerance
    assert set(found.grad) == set(expected.grad)
    for name, gradient in expected.grad.items():
        assert relative(found.grad[name], gradient) < tolerance, name


def with_query(name: str, generator: torch.Generator):
    """A case of `problems` with a query of its own."""
    found = case(name, generator)
    return found.model, found.loss, TaskBatch(found.points, case(name, generator, points=6).points)


# Identity 1: the discrete adjoint of Euler with h = α is MAML is one graph through all steps


@pytest.mark.parametrize("adapt", [None, "2.*", "*.bias"])
@pytest.mark.parametrize("steps", [1, 2, 13])
def test_maml_and_euler_are_one_graph_through_all_steps(adapt, steps, generator):
    model, tasks, lr = mlp(generator), regression(generator), 0.15
    expected = through_every_step(model, mse, tasks, horizon=steps * lr, steps=steps, adapt=adapt)
    for method in (
        MAML(steps=steps, inner_lr=lr),
        MAML(steps=steps, inner_lr=lr, adjoint="checkpointed"),
        AdjointMAML(horizon=steps * lr, solver="euler", steps=steps),
        AdjointMAML(horizon=steps * lr, solver="euler", steps=steps, adjoint="checkpointed", snapshots=2),
    ):
        same(MetaLearner(model, mse, method, adapt=adapt).meta_gradient(tasks), expected, 1e-12)


@pytest.mark.parametrize("mode", ["reverse_over_reverse", "forward_over_reverse"])
@pytest.mark.parametrize("name", CASES)
def test_maml_of_every_kind_of_module(name, mode, generator):
    model, loss, tasks = with_query(name, generator)
    expected = through_every_step(model, loss, tasks, horizon=0.3, steps=3)
    same(MetaLearner(model, loss, MAML(steps=3, inner_lr=0.1), mode=mode).meta_gradient(tasks), expected, 1e-11)


@pytest.mark.parametrize("solver", TABLEAUS)
@pytest.mark.parametrize(("adapt", "proximal"), [(None, 0.0), ("2.*", 0.8)])
def test_every_solver_is_one_graph_through_all_stages(solver, adapt, proximal, generator):
    model, tasks = mlp(generator), regression(generator)
    method = AdjointMAML(horizon=1.1, solver=solver, steps=4, proximal=proximal)
    expected = through_every_step(
        model, mse, tasks, tableau=TABLEAUS[solver], horizon=1.1, steps=4, adapt=adapt, proximal=proximal
    )
    same(MetaLearner(model, mse, method, adapt=adapt).meta_gradient(tasks), expected, 1e-12)


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_chunks_of_tasks_change_nothing(chunk_size, generator):
    model, tasks = mlp(generator), regression(generator)
    method = AdjointMAML(horizon=1.0, solver="heun", steps=4)
    expected = through_every_step(model, mse, tasks, tableau=TABLEAUS["heun"], horizon=1.0, steps=4, adapt="2.*")
    learner = MetaLearner(model, mse, method, adapt="2.*", chunk_size=chunk_size)
    same(learner.meta_gradient(tasks), expected, 1e-12)


# Closed form


def maml_of_a_quadratic(tasks: Quadratic, steps: int, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
    """φ_n and (I − αA)ⁿ c of each task."""
    shrink = torch.linalg.matrix_power(torch.eye(4) - lr * tasks.a, steps)
    phi = tasks.b + rows_times(shrink, tasks.theta - tasks.b)
    return phi, rows_times(shrink.mT, tasks.cotangent(phi))


@pytest.mark.parametrize("steps", [1, 10, 100])
def test_maml_on_quadratic_tasks(steps, generator):
    tasks = quadratic(generator)
    learner = MetaLearner(tasks.model, half_squares, MAML(steps=steps, inner_lr=0.2))
    phi, pulled = maml_of_a_quadratic(tasks, steps, 0.2)
    assert relative(learner.adapt(tasks.tasks.support), phi) < 1e-10
    assert relative(learner.meta_gradient(tasks.tasks).grad["phi"], pulled.mean(dim=0)) < 1e-10


# Learning rates


@pytest.mark.parametrize("rates", [None, "learned"])
def test_gradients_of_learning_rates(rates, generator):
    model, tasks, lr, steps = mlp(generator), regression(generator), 0.15, 5
    learner = MetaLearner(model, mse, MAML(steps=steps, inner_lr=lr, learn=("inner_lr", "rates")))
    drawn = None
    if rates:
        with torch.no_grad():
            learner.log_hyper["rates"].copy_(0.3 * torch.randn(17, generator=generator))
        drawn = learner.hyper["rates"]
    expected = through_every_step(model, mse, tasks, horizon=steps * lr, steps=steps, rates=drawn)
    found = learner.meta_gradient(tasks)
    same(found, expected, 1e-12)
    assert set(found.hyper) == {"inner_lr", "rates"}
    assert found.hyper["inner_lr"].shape == () and found.hyper["rates"].shape == (17,)
    assert relative(found.hyper["inner_lr"], steps * expected.hyper["horizon"]) < 1e-12
    assert relative(found.hyper["rates"], expected.hyper["rates"]) < 1e-12


def test_learning_rates_against_finite_differences(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, MAML(steps=5, inner_lr=0.15, learn=("inner_lr", "rates")), adapt="2.*")
    learner(tasks).backward()
    parameters = list(learner.parameters())
    assert len(parameters) == 4 + 2
    for parameter, expected in zip(parameters, difference_quotient(learner, tasks, parameters), strict=True):
        # Central differences of step 1e-5: an error of the size h² + ε/h, 1e-10.
        assert relative(parameter.grad, expected) < 1e-7


def test_the_learning_rate_against_a_method_with_another_one(generator):
    model, tasks = mlp(generator), regression(generator)

    def loss(lr: torch.Tensor) -> float:
        with torch.no_grad():
            return float(MetaLearner(model, mse, MAML(steps=5, inner_lr=float(lr)))(tasks))

    learner = MetaLearner(model, mse, MAML(steps=5, inner_lr=0.15, learn=("inner_lr",)))
    expected = central_difference(loss, torch.tensor([0.15]))
    assert relative(learner.meta_gradient(tasks).hyper["inner_lr"][None], expected) < 1e-7


# Counting


@pytest.mark.parametrize("adjoint", ["discrete", "checkpointed"])
def test_cost_of_maml(adjoint, generator):
    learner = MetaLearner(mlp(generator), mse, MAML(steps=6, inner_lr=0.1, adjoint=adjoint))
    stats = learner.meta_gradient(regression(generator)).stats
    assert stats["n_hvp"] == 6
    # One gradient a step, and the query's; the checkpointed adjoint repeats no step more than twice.
    assert stats["n_grad"] == 7 if adjoint == "discrete" else 7 < stats["n_grad"] <= 7 + 2 * 6


@pytest.mark.parametrize("offload", [False, True])
def test_maml_keeps_as_many_snapshots_as_its_memory_holds(offload, generator):
    model, tasks = mlp(generator), regression(generator)
    size = 3 * sum(p.numel() for p in model.parameters()) * 8  # of a state of three tasks, in float64
    exact, expected, found = (
        MetaLearner(model, mse, MAML(9, 0.1, **options)).meta_gradient(tasks)
        for options in (
            {},
            {"adjoint": "checkpointed", "snapshots": 2},
            {"adjoint": "checkpointed", "memory": 3 * size - 1, "offload": offload},
        )
    )
    assert found.stats["n_grad"] == expected.stats["n_grad"] > exact.stats["n_grad"]
    for name, value in exact.grad.items():
        assert torch.equal(found.grad[name], expected.grad[name])
        assert relative(found.grad[name], value) < 1e-14
    with pytest.raises(ValueError, match=f"memory={size - 1} bytes hold no snapshot"):
        MetaLearner(model, mse, MAML(9, 0.1, adjoint="checkpointed", memory=size - 1)).meta_gradient(tasks)


@pytest.mark.parametrize("solver", TABLEAUS)
def test_cost_of_every_solver(solver, generator):
    learner = MetaLearner(mlp(generator), mse, AdjointMAML(horizon=1.0, solver=solver, steps=4))
    stats = learner.meta_gradient(regression(generator)).stats
    stages = TABLEAUS[solver].solution_stages
    assert (stats["n_grad"], stats["n_hvp"]) == (4 * stages + 1, 4 * stages)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 2.0}, TypeError, r"steps must be a whole number, got 2\.0"),
        ({"inner_lr": 0.0}, ValueError, "inner_lr must be positive"),
        ({"inner_lr": float("nan")}, ValueError, "inner_lr must be positive and finite"),
        ({"inner_lr": "0.1"}, TypeError, "inner_lr must be a number"),
        ({"adjoint": "discreet"}, ValueError, "unknown adjoint 'discreet'; did you mean 'discrete'"),
        ({"snapshots": 3}, ValueError, "snapshots=3 has no use with adjoint='discrete'; say adjoint='checkpointed'"),
        ({"adjoint": "checkpointed", "snapshots": 0}, ValueError, "snapshots must be at least 1"),
        ({"memory": 10}, ValueError, "memory=10 has no use with adjoint='discrete'; say adjoint='checkpointed'"),
        ({"offload": True}, ValueError, "offload=True has no use with adjoint='discrete'"),
        ({"adjoint": "checkpointed", "snapshots": 2, "memory": 10}, ValueError, "give snapshots or memory, not both"),
        ({"learn": "rates"}, TypeError, r"learn must be a tuple of names such as \('inner_lr',\), got a string"),
        ({"learn": ("rate",)}, ValueError, "unknown learnable hyperparameter 'rate'; did you mean 'rates'"),
        ({"learn": ("horizon",)}, ValueError, "unknown learnable hyperparameter 'horizon'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        MAML(**arguments)


def test_tasks_of_one_point_work(generator):
    model = mlp(generator)
    tasks = regression(generator, tasks=1, points=1)
    expected = through_every_step(model, mse, tasks, horizon=0.3, steps=3)
    same(MetaLearner(model, mse, MAML(steps=3, inner_lr=0.1)).meta_gradient(tasks), expected, 1e-12)


def test_support_and_query_of_different_size(generator):
    model, support, query = mlp(generator), regression(generator, points=3), regression(generator, points=9)
    tasks = TaskBatch(support.support, Batch(query.query.x, query.query.y))
    expected = through_every_step(model, mse, tasks, horizon=0.3, steps=3)
    same(MetaLearner(model, mse, MAML(steps=3, inner_lr=0.1)).meta_gradient(tasks), expected, 1e-12)
