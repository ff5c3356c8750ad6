"""The direction of largest curvature, kept from one meta-gradient to the next and with the learner's state."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from flow_references import quadratic_flow
from problems import half_squares, mlp, quadratic, regression
from references import relative
from torch import nn

from adjoint_meta import MAML, AdjointMAML, Batch, MetaLearner, StackedTasks, TaskBatch
from adjoint_meta.solvers import Guard
from adjoint_meta.training import Trainer, TrainingPlan

mse = nn.functional.mse_loss

WATCHING = {
    "dopri5": AdjointMAML(horizon=0.5, solver="dopri5", rtol=1e-3),
    "rkc": AdjointMAML(horizon=0.5, solver="rkc", rtol=1e-2),
    "auto": AdjointMAML(horizon=2.0, solver="auto"),
    "steady": AdjointMAML(horizon=float("inf"), solver="bosh3", proximal=3.0),
    "learned": AdjointMAML(horizon=0.5, solver="tsit5", learn=("horizon", "rates")),
}
every_method = pytest.mark.parametrize("name", WATCHING)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@every_method
def test_the_second_meta_gradient_takes_fewer_products(name, generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, WATCHING[name])
    assert torch.equal(learner.steepest, torch.zeros(17))
    first, second = learner.meta_gradient(tasks), learner.meta_gradient(tasks)
    assert second.stats["n_hvp"] < first.stats["n_hvp"]
    if name in ("dopri5", "rkc", "learned"):
        # One product instead of those of the first estimate; the steps stay about the same.
        assert first.stats["n_hvp"] - second.stats["n_hvp"] >= Guard().lanczos - 2
    assert "vector" not in first.stats
    assert relative(second.loss, first.loss) < 1e-2


def test_it_is_the_steepest_direction(generator):
    tasks = quadratic(generator, tasks=1, size=6)
    eigenvalues, basis = torch.linalg.eigh(tasks.a)
    eigenvalues[:, -1] = 20.0
    tasks = tasks._replace(a=basis @ (eigenvalues[:, :, None] * basis.mT))
    learner = MetaLearner(tasks.model, half_squares, AdjointMAML(horizon=1.0, solver="dopri5"))
    learner.meta_gradient(tasks.tasks)
    assert float(learner.steepest.norm()) == pytest.approx(1.0)
    assert float((learner.steepest @ basis[0, :, -1]).abs()) == pytest.approx(1.0, abs=1e-6)


def test_directions_of_opposite_sign_are_one(generator):
    # Two copies of a task: whatever the signs that the eigenvectors come with, their mean is the vector itself.
    learner = MetaLearner(mlp(generator), mse, WATCHING["dopri5"])
    v = torch.nn.functional.normalize(torch.randn(17, generator=generator), dim=0)
    for _ in range(2):  # the first direction, and one that follows another
        learner._remember(torch.stack([v, -v, v, -v, -v]))
        assert relative(learner.steepest.abs(), v.abs()) < 1e-14
    learner._remember(torch.zeros(3, 17))
    assert torch.isfinite(learner.steepest).all()


@every_method
def test_only_meta_gradients_change_it(name, generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, WATCHING[name])
    for call in (learner.adapt, lambda support: learner.query_losses(TaskBatch(support, tasks.query))):
        call(tasks.support)
        assert torch.equal(learner.steepest, torch.zeros(17))
    learner.meta_gradient(tasks)
    before = learner.steepest.clone()
    assert 0.1 < float(before.norm()) < 1 + 1e-12  # the mean of unit vectors
    learner.adapt(tasks.support)
    learner.query_losses(tasks)
    with torch.no_grad():
        learner(tasks)
    assert torch.equal(learner.steepest, before)
    learner(regression(generator)).backward()
    assert not torch.equal(learner.steepest, before)


@every_method
def test_loading_a_state_repeats_the_run_bit_for_bit(name, generator):
    model, batches = mlp(generator), [regression(generator) for _ in range(4)]
    learner = MetaLearner(model, mse, WATCHING[name])
    learner.meta_gradient(batches[0])
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert "steepest" in state and state["steepest"].shape == (17,)
    other = MetaLearner(mlp(generator), mse, WATCHING[name])
    other.load_state_dict(state)
    copied = copy.deepcopy(learner)
    for batch in batches[1:]:
        expected = learner.meta_gradient(batch)
        for again in (other, copied):
            found = again.meta_gradient(batch)
            assert torch.equal(found.loss, expected.loss)
            assert same(found.grad, expected.grad) and same(found.hyper, expected.hyper)
            assert (found.stats["n_grad"], found.stats["n_hvp"]) == (expected.stats["n_grad"], expected.stats["n_hvp"])


@pytest.mark.parametrize("name", ["rkc", "learned"])
def test_an_interrupted_training_repeats_bit_for_bit(name, generator):
    x = torch.randn(8, 6, 2, generator=generator)
    source = StackedTasks(TaskBatch(Batch(x, x.sum(-1, keepdim=True).sin()), Batch(x + 0.1, x.prod(-1, keepdim=True))))
    start = MetaLearner(mlp(generator), mse, WATCHING[name])

    def trainer(learner: MetaLearner, steps: int) -> Trainer:
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
        return Trainer(learner, optimizer, lambda step: source.meta_batch(step, 3, seed=1), TrainingPlan(steps))

    whole, half, rest = (copy.deepcopy(start) for _ in range(3))
    trainer(whole, 6).run()
    interrupted = trainer(half, 3)
    interrupted.run()
    continued = trainer(rest, 6)
    continued.load_state_dict(copy.deepcopy(interrupted.state_dict()))
    continued.run()
    assert same(rest.state_dict(), whole.state_dict())


def test_other_methods_keep_nothing(generator):
    for method in (MAML(), AdjointMAML(), AdjointMAML(solver="implicit_euler"), AdjointMAML(solver="dopri5", steps=3)):
        learner = MetaLearner(mlp(generator), mse, method)
        assert not hasattr(learner, "steepest") and "steepest" not in learner.state_dict()


def test_it_moves_with_the_learner(generator):
    learner, tasks = MetaLearner(mlp(generator), mse, WATCHING["dopri5"]), regression(generator)
    learner.meta_gradient(tasks)
    learner.float()
    assert learner.steepest.dtype == torch.float32
    learner.meta_gradient(tasks.to(dtype=torch.float32))
    assert learner.steepest.dtype == torch.float32
    assert learner.to("meta").steepest.device.type == "meta"


def test_only_what_adapts_counts(generator):
    learner, tasks = MetaLearner(mlp(generator), mse, WATCHING["dopri5"], adapt="2.*"), regression(generator)
    learner.meta_gradient(tasks)
    assert learner.steepest.shape == (5,)


def unlike(generator: torch.Generator, tasks: int = 25, size: int = 30, top: float = 50.0):
    """Quadratic tasks that curve most in directions that have nothing to do with each other."""
    found = quadratic(generator, tasks=tasks, size=size)
    eigenvalues, basis = torch.linalg.eigh(found.a)
    eigenvalues[:, -1] = top
    return found._replace(a=basis @ (eigenvalues[:, :, None] * basis.mT))


@pytest.mark.parametrize("solver", ["dopri5", "rkc", "auto"])
def test_a_direction_that_fits_no_task_does_no_harm(solver, generator):
    tasks = unlike(generator)
    expected = quadratic_flow(tasks, 1.0).theta
    learner = MetaLearner(tasks.model, half_squares, AdjointMAML(horizon=1.0, solver=solver, rtol=1e-2))
    for _ in range(3):
        found = learner.meta_gradient(tasks.tasks)
        assert relative(found.grad["phi"], expected) < 2e-2
        assert bool((found.stats["stability"] <= 1).all())


@pytest.mark.filterwarnings("ignore:the inner steps left the stability interval")
def test_nor_where_nothing_controls_the_error(generator):
    tasks = unlike(generator)
    expected = quadratic_flow(tasks, 1.0).theta
    learner = MetaLearner(tasks.model, half_squares, AdjointMAML(horizon=1.0, solver="rkc", steps=10))
    errors = [relative(learner.meta_gradient(tasks.tasks).grad["phi"], expected) for _ in range(3)]
    assert errors[0] < 0.1
    assert max(errors) < 2 * errors[0]


@pytest.mark.parametrize("sizes", [(1, 3), (2, 2), (1, 1, 2)])
def test_means_over_parts_make_the_mean_over_all(sizes, generator):
    learner = MetaLearner(mlp(generator), mse, WATCHING["dopri5"])
    for _ in range(2):  # without a direction to start with, and with one
        before = learner.steepest.clone()
        vectors = nn.functional.normalize(torch.randn(4, 17, generator=generator), dim=1)
        parts = []
        for part in vectors.split(sizes):
            learner.steepest.copy_(before)
            learner._remember(part)
            parts.append(len(part) * learner.steepest)
        learner.steepest.copy_(before)
        learner._remember(vectors)
        assert relative(sum(parts) / 4, learner.steepest) < 1e-14
