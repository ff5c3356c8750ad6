"""Heads and linear systems go on from where the last meta-gradient left them, also after a save and a copy."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from memory_reduced_problems import mse, settling
from problems import mlp, regression
from references import relative

from adjoint_meta import Batch, MemoryReduced, MetaLearner, SolverError, TaskBatch
from adjoint_meta.meta_gradients import aid_bio
from adjoint_meta.training import Trainer, TrainingPlan


def test_heads_go_on_from_where_they_were(generator):
    model, tasks = mlp(generator), regression(generator, points=12)
    warm = MetaLearner(model, mse, MemoryReduced(7, 0.1, cg_steps=60, cg_tol=1e-14, warm_start=3), adapt="2.*")
    for taken in (7, 14, 21):
        cold = MetaLearner(model, mse, MemoryReduced(taken, 0.1, cg_steps=60, cg_tol=1e-14), adapt="2.*")
        found, expected = warm.meta_gradient(tasks), cold.meta_gradient(tasks)
        assert relative(found.loss, expected.loss) < 1e-12
        assert "warm" not in found.stats
        for name in ("0.weight", "0.bias"):
            assert relative(found.grad[name], expected.grad[name]) < 1e-9


def test_aid_bio_goes_on_with_its_linear_systems(generator):
    # While the heads come to rest, two CG steps at a time solve the same systems ever better.
    model, loss, tasks, lr = settling("softmax", generator)
    learner = MetaLearner(model, loss, aid_bio(3, 100, lr, cg_steps=2), adapt="2.*")
    residuals = [float(learner.meta_gradient(tasks).stats["cg_residual"].max()) for _ in range(12)]
    assert residuals[-1] < 1e-3 * residuals[0]
    exact = MetaLearner(model, loss, MemoryReduced(800, lr), adapt="2.*").meta_gradient(tasks)
    assert relative(learner.meta_gradient(tasks).grad["0.weight"], exact.grad["0.weight"]) < 1e-3


def test_heads_and_linear_systems_go_on_by_themselves(generator):
    # Heads at rest after their steps, so that the systems are those of before: two CG steps more each time solve them.
    model, loss, tasks, lr = settling("softmax", generator)
    alone = MetaLearner(model, loss, MemoryReduced(800, lr, cg_steps=2, warm_start=3, warm="v"), adapt="2.*")
    residuals = [float(alone.meta_gradient(tasks).stats["cg_residual"].max()) for _ in range(12)]
    assert residuals[-1] < 1e-3 * residuals[0]
    # Heads of two meta-gradients are those of twice the steps; v of two CG steps knows nothing of what was before.
    heads = MetaLearner(model, loss, MemoryReduced(5, lr, cg_steps=2, warm_start=3, warm="heads"), adapt="2.*")
    cold = MetaLearner(model, loss, MemoryReduced(10, lr, cg_steps=2), adapt="2.*")
    heads.meta_gradient(tasks)
    found, expected = heads.meta_gradient(tasks), cold.meta_gradient(tasks)
    assert relative(found.grad["0.weight"], expected.grad["0.weight"]) < 1e-10
    assert torch.equal(found.stats["cg_iterations"], expected.stats["cg_iterations"])


def test_the_state_repeats_a_run_bit_for_bit(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, aid_bio(3, 5, 0.1, cg_steps=2), adapt="2.*")
    learner.meta_gradient(tasks)
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    other = MetaLearner(mlp(generator), mse, aid_bio(3, 5, 0.1, cg_steps=2), adapt="2.*")
    other.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(learner)
    expected = learner.meta_gradient(tasks)
    for again in (other, copied):
        found = again.meta_gradient(tasks)
        assert all(torch.equal(found.grad[name], value) for name, value in expected.grad.items())
        assert torch.equal(again.warm, learner.warm)


def test_an_interrupted_training_repeats_bit_for_bit(generator):
    tasks = regression(generator)
    start = MetaLearner(mlp(generator), mse, aid_bio(3, 5, 0.1, cg_steps=2), adapt="2.*")

    def trainer(learner: MetaLearner, steps: int) -> Trainer:
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
        return Trainer(learner, optimizer, lambda step: tasks, TrainingPlan(steps))

    whole, half, rest = (copy.deepcopy(start) for _ in range(3))
    trainer(whole, 6).run()
    interrupted = trainer(half, 3)
    interrupted.run()
    continued = trainer(rest, 6)
    continued.load_state_dict(copy.deepcopy(interrupted.state_dict()))
    continued.run()
    state, expected = rest.state_dict(), whole.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)
    assert not torch.equal(expected["warm"], half.warm)


def test_only_meta_gradients_go_on(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, MemoryReduced(5, 0.1, warm_start=3), adapt="2.*")
    cold = MetaLearner(model, mse, MemoryReduced(5, 0.1), adapt="2.*")
    learner.meta_gradient(tasks)
    before = learner.warm.clone()
    assert torch.equal(learner.adapt(tasks.support), cold.adapt(tasks.support))
    assert torch.equal(learner.query_losses(tasks[:2]), cold.query_losses(tasks[:2]))
    assert torch.equal(learner.warm, before)
    assert not hasattr(cold, "warm") and "warm" not in cold.state_dict()
    with pytest.raises(ValueError, match=r"warm_start=3 .* got 2; train on all of them"):
        learner.meta_gradient(tasks[:2])
    broken = TaskBatch(tasks.support, Batch(tasks.query.x, tasks.query.y * float("inf")))
    with pytest.raises((SolverError, ValueError)):
        learner.meta_gradient(broken)
    assert torch.equal(learner.warm, before)
