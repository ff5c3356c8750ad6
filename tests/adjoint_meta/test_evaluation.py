"""Meta-evaluation against NumPy and against single tasks adapted one by one with plain torch."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from adjoint_meta import MAML, Batch, MetaLearner, TaskBatch
from adjoint_meta.evaluation import Evaluation, adam_curve, evaluate, rmse
from adjoint_meta.solvers import SolverError

TASKS, SHOTS, POINTS = 4, 5, 7


@pytest.fixture
def tasks(generator):
    def batch(points):
        x = torch.randn(TASKS, points, 2, generator=generator)
        return Batch(x, torch.sin(2 * x).sum(-1, keepdim=True) + torch.randn(TASKS, 1, 1, generator=generator))

    return TaskBatch(batch(SHOTS), batch(POINTS))


@pytest.fixture
def learner(generator):
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return MetaLearner(model, nn.MSELoss(), MAML(steps=8, inner_lr=0.05))


def masked(tasks, generator):
    """Some query points of each task do not count, and hold nonsense."""
    mask = torch.rand(TASKS, POINTS, generator=generator) < 0.6
    mask[:, 0] = True
    y = torch.where(mask[:, :, None], tasks.query.y, math.nan)
    return TaskBatch(tasks.support, Batch(tasks.query.x, y, mask))


# The metric


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3)])
@pytest.mark.parametrize("with_mask", [False, True])
def test_rmse_is_numpys_over_the_points_that_count(generator, shape, with_mask):
    y = torch.randn(TASKS, POINTS, *shape, generator=generator)
    prediction = torch.randn(TASKS, POINTS, *shape, generator=generator)
    mask = None
    if with_mask:
        mask = torch.rand(TASKS, POINTS, generator=generator) < 0.5
        mask[:, 1] = True
        y[~mask] = math.inf
        prediction[~mask] = math.nan
    found = rmse(prediction, Batch(torch.zeros(TASKS, POINTS, 1), y, mask))
    for task in range(TASKS):
        counts = np.ones(POINTS, bool) if mask is None else mask[task].numpy()
        error = (prediction[task].numpy() - y[task].numpy())[counts]
        assert float(found[task]) == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-12)


def test_rmse_of_targets_without_a_trailing_axis(generator):
    y, prediction = torch.randn(2, TASKS, POINTS, generator=generator)
    found = rmse(prediction, Batch(torch.zeros(TASKS, POINTS, 1), y))
    assert found.tolist() == pytest.approx(np.sqrt(((prediction - y).numpy() ** 2).mean(axis=1)).tolist())


@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_summary_is_numpys(generator, count):
    before, after = torch.randn(2, count, generator=generator)
    found = Evaluation(before, after).summary()
    values = after.numpy()
    std = values.std(ddof=1) if count > 1 else 0.0
    assert found["before"] == pytest.approx(before.numpy().mean(), rel=1e-12)
    assert found["after"] == pytest.approx(values.mean(), rel=1e-12)
    assert found["std"] == pytest.approx(std, rel=1e-12)
    assert found["ci95"] == pytest.approx(1.96 * std / np.sqrt(count), rel=1e-12)
    assert found["tasks"] == count
    assert all(type(value) in (int, float) for value in found.values())


# The method's own inner solve


def adapted_alone(learner, tasks, task, steps=8, lr=0.05):
    """The model after gradient descent on one task, by torch's own optimiser."""
    model = copy.deepcopy(learner.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(tasks.support.x[task]), tasks.support.y[task]).backward()
        optimizer.step()
    return model


def error_of(model, batch, task):
    with torch.no_grad():
        error = (model(batch.x[task]) - batch.y[task]).numpy()
    return np.sqrt(np.mean(error[slice(None) if batch.mask is None else batch.mask[task].numpy()] ** 2))


@pytest.mark.parametrize("with_mask", [False, True])
def test_before_and_after_are_those_of_single_tasks(learner, tasks, generator, with_mask):
    judged = masked(tasks, generator) if with_mask else tasks
    found = evaluate(learner, judged)
    for task in range(TASKS):
        assert float(found.before[task]) == pytest.approx(error_of(learner.model, judged.query, task), rel=1e-10)
        alone = adapted_alone(learner, judged, task)
        assert float(found.after[task]) == pytest.approx(error_of(alone, judged.query, task), rel=1e-10)
    assert not found.before.requires_grad and not found.after.requires_grad
    assert (found.after < found.before).any() or (found.after > found.before).any()


def test_evaluation_changes_neither_weights_nor_gradients(learner, tasks):
    before = copy.deepcopy(learner.state_dict())
    evaluate(learner, tasks)
    adam_curve(learner, tasks, epochs=2, every=1)
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_any_metric_can_judge(learner, tasks):
    def worst(prediction, batch):
        return (prediction - batch.y).abs().amax(dim=(1, 2))

    found = evaluate(learner, tasks, worst)
    expected = (learner.model(tasks.query.x) - tasks.query.y).detach().abs().amax(dim=(1, 2))
    assert torch.allclose(found.before, expected, rtol=1e-12)


def test_a_failed_inner_solve_is_a_solver_error(learner, tasks):
    with pytest.raises(SolverError, match="inner solve failed"):
        evaluate(learner, TaskBatch(Batch(tasks.support.x, tasks.support.y * 1e200), tasks.query))


def test_a_masked_support_is_refused(learner, tasks):
    support = Batch(tasks.support.x, tasks.support.y, torch.ones(TASKS, SHOTS, dtype=torch.bool))
    with pytest.raises(ValueError, match="support has a mask"):
        evaluate(learner, TaskBatch(support, tasks.query))


# Adam


@pytest.mark.parametrize("with_mask", [False, True])
def test_the_adam_curve_is_plain_adam_on_every_task(learner, tasks, generator, with_mask):
    judged = masked(tasks, generator) if with_mask else tasks
    curve = adam_curve(learner, judged, epochs=25, every=5, lr=0.02, weight_decay=0.01)
    assert [epoch for epoch, _ in curve] == [0, 5, 10, 15, 20, 25]
    for task in range(TASKS):
        model = copy.deepcopy(learner.model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=0.01)
        expected = [error_of(model, judged.query, task)]
        for epoch in range(1, 26):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(judged.support.x[task]), judged.support.y[task]).backward()
            optimizer.step()
            if epoch % 5 == 0:
                expected.append(error_of(model, judged.query, task))
        # Adam divides by its running second moment, which blows the summation order up; measured 1e-12 at most
        assert [float(values[task]) for _, values in curve] == pytest.approx(expected, rel=1e-9)


def test_the_defaults_are_those_of_the_paper(learner, tasks, monkeypatch):
    """Adam 1e-3 with weight decay 1e-6, 1000 epochs, a point every 10 (Li et al. 2023, Fig. 2 and its code)."""
    used = {}
    real = torch.optim.Adam

    def adam(parameters, **options):
        used.update(options)
        return real(parameters, **options)

    monkeypatch.setattr(torch.optim, "Adam", adam)
    curve = adam_curve(learner, tasks[:1])
    assert used == {"lr": 1e-3, "weight_decay": 1e-6}
    assert [epoch for epoch, _ in curve] == list(range(0, 1001, 10))


@pytest.mark.parametrize("options", [{"epochs": 0}, {"every": 0}, {"epochs": 2.5}, {"every": True}])
def test_counts_of_epochs_are_checked(learner, tasks, options):
    (name,) = options
    with pytest.raises((ValueError, TypeError), match=f"{name} must be"):
        adam_curve(learner, tasks, **options)


def test_a_metric_that_overflows_is_an_error_and_no_infinity():
    # The adapted parameters are finite, and so large that the predictions are not.
    points = Batch(torch.full((2, 3, 1), 1e3, dtype=torch.float32), torch.ones(2, 3, 1, dtype=torch.float32))
    query = Batch(1e15 * points.x, points.y)
    learner = MetaLearner(nn.Linear(1, 1).float(), nn.MSELoss(), MAML(steps=1, inner_lr=1e25))
    assert torch.isfinite(learner.adapt(points)).all()
    with pytest.raises(SolverError, match="metric after adaptation is not finite for 2 of 2 tasks"):
        evaluate(learner, TaskBatch(points, query))
