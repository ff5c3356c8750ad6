"""A meta-step whose meta-gradient is not finite is skipped, counted and changes nothing; too many fail the run."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from training_runs import HUGE, OPTIMIZERS, same, schedule, weights

from adjoint_meta import Batch, MetaLearner, TaskBatch
from adjoint_meta.meta_gradients import FOMAML
from adjoint_meta.solvers import SolverError
from adjoint_meta.training import Trainer, TrainingFailed, TrainingPlan


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_a_diverging_step_is_skipped_counted_and_changes_nothing(learner, source, optimizer):
    opt = OPTIMIZERS[optimizer](learner.parameters())
    trainer = Trainer(learner, opt, schedule(source, {2, 4, 5}), TrainingPlan(9, max_skipped=3))
    for step in range(9):
        before, state = weights(learner), copy.deepcopy(opt.state_dict()["state"])
        record = trainer.meta_step()
        assert record["step"] == trainer.progress.step == step + 1
        if step in (2, 4, 5):
            assert record["loss"] is None and record["grad_norm"] is None
            assert "inner solve failed" in record["skipped"]
            assert same(before, weights(learner))
            after = opt.state_dict()["state"]
            assert all(torch.equal(state[p][k], after[p][k]) for p in state for k in state[p])
        else:
            assert "skipped" not in record and not same(before, weights(learner))
    assert trainer.progress.skipped == 3 and trainer.progress.skipped_in_a_row == 0


def test_skipped_steps_leave_the_others_as_if_they_had_not_been(learner, source):
    plain = copy.deepcopy(learner)
    opt = torch.optim.Adam(learner.parameters(), lr=0.01)
    Trainer(learner, opt, schedule(source, {1, 3}), TrainingPlan(6)).run()
    opt = torch.optim.Adam(plain.parameters(), lr=0.01)
    for step in (0, 2, 4, 5):
        opt.zero_grad()
        plain(source.meta_batch(step, 3, 1)).backward()
        opt.step()
    assert same(weights(learner), weights(plain))


def test_the_learning_rate_is_a_function_of_the_step_even_when_the_first_ones_are_skipped(learner, source):
    opt = torch.optim.SGD(learner.parameters(), lr=1.0)
    trainer = Trainer(
        learner,
        opt,
        schedule(source, {0, 1}),
        TrainingPlan(5),
        scheduler=lr_scheduler.ExponentialLR(opt, 0.5),
    )
    rates = [trainer.meta_step()["lr"] for _ in range(5)]
    assert rates == pytest.approx([1.0, 0.5, 0.25, 0.125, 0.0625])


def test_a_gradient_whose_norm_overflows_is_skipped(generator):
    """Every entry is finite, but the sum of squares is not."""

    def mean_product(prediction, target):
        return (prediction * target).mean()

    def batch(scale):
        x = torch.ones(2, 3, 1)
        return Batch(x, scale * torch.ones(2, 3, 1))

    learner = MetaLearner(nn.Linear(1, 1), mean_product, FOMAML(steps=1, inner_lr=0.1))
    tasks = TaskBatch(batch(1.0), batch(HUGE))
    found = learner.meta_gradient(tasks)
    assert all(torch.isfinite(g).all() for g in found.grad.values())
    before = weights(learner)
    opt = torch.optim.SGD(learner.parameters(), lr=0.1)
    record = Trainer(learner, opt, lambda step: tasks, TrainingPlan(1, clip_norm=1.0)).meta_step()
    assert record["loss"] is None and "norm" in record["skipped"]
    assert same(before, weights(learner))


def test_too_many_in_a_row_fail_the_run_with_the_reason(learner, source):
    opt = torch.optim.SGD(learner.parameters(), lr=0.1)
    trainer = Trainer(learner, opt, schedule(source, {1, 3, 4, 5, 6}), TrainingPlan(9, max_skipped=3))
    trainer.run(lambda: trainer.progress.step == 3)
    before = weights(learner)
    with pytest.raises(
        TrainingFailed, match=r"3 meta-steps in a row .* inner solve failed .* take more steps"
    ) as caught:
        trainer.run()
    assert isinstance(caught.value, RuntimeError) and isinstance(caught.value.__cause__, SolverError)
    assert trainer.progress.skipped == 4 and same(before, weights(learner))


def test_a_failed_run_that_goes_on_with_a_larger_limit_counts_no_step_twice(learner, source, tmp_path):
    def trainer(limit):
        opt = torch.optim.SGD(learner.parameters(), lr=0.1)
        return Trainer(learner, opt, schedule(source, {2, 3, 4}), TrainingPlan(7, max_skipped=limit))

    first = trainer(2)
    with pytest.raises(TrainingFailed):
        first.run()
    second = trainer(5)
    second.load_state_dict(first.state_dict())
    second.run()
    assert second.progress.step == 7 and second.progress.skipped == 3


def test_nan_in_the_data_is_an_error_and_not_a_skip(learner, source):
    def tasks(step):
        drawn = source.meta_batch(step, 3, 1)
        if step == 1:
            drawn.query.y[0, 0] = math.nan
        return drawn

    opt = torch.optim.SGD(learner.parameters(), lr=0.1)
    trainer = Trainer(learner, opt, tasks, TrainingPlan(3))
    with pytest.raises(ValueError, match=r"query\.y holds 1 value that is NaN"):
        trainer.run()
    assert trainer.progress.step == 1 and trainer.progress.skipped == 0
