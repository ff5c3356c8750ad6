"""The meta-training loop is the loop written by hand, and refuses plans that cannot be."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from training_runs import OPTIMIZERS, SCHEDULERS, same, schedule, weights

from adjoint_meta import MAML, MetaLearner
from adjoint_meta.training import Trainer, TrainingPlan

# Against a loop by hand


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [*((name, "none") for name in OPTIMIZERS), *(("adam", name) for name in SCHEDULERS), ("momentum", "cosine")],
)
def test_training_is_a_plain_torch_loop_bit_for_bit(learner, source, optimizer, scheduler, clip):
    plain = copy.deepcopy(learner)
    opt = OPTIMIZERS[optimizer](learner.parameters())
    records = []
    trainer = Trainer(
        learner,
        opt,
        schedule(source),
        TrainingPlan(9, clip_norm=clip),
        scheduler=SCHEDULERS[scheduler](opt),
        observe=records.append,
    )
    trainer.run()

    opt = OPTIMIZERS[optimizer](plain.parameters())
    sched = SCHEDULERS[scheduler](opt)
    losses, norms, rates = [], [], []
    for step in range(9):
        found = plain.meta_gradient(source.meta_batch(step, 3, seed=1))
        for name, parameter in plain.model.named_parameters():
            parameter.grad = found.grad[name].clone()
        norms.append(float(torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()))
        if clip is not None:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        if sched is not None:
            sched.step()
        losses.append(float(found.loss.mean()))

    assert same(weights(learner), weights(plain))
    assert [r["step"] for r in records] == list(range(1, 10))
    assert [r["loss"] for r in records] == losses
    assert [r["lr"] for r in records] == rates
    assert [r["grad_norm"] for r in records] == pytest.approx(norms, rel=1e-12)
    assert (clip is None) or max(norms) > clip


def test_an_optimizer_that_wants_a_closure_works_or_is_refused_before_training(learner, source):
    plain = copy.deepcopy(learner)
    try:
        trainer = Trainer(learner, torch.optim.LBFGS(learner.parameters()), schedule(source), TrainingPlan(2))
    except ValueError as refusal:
        assert "LBFGS" in str(refusal)
        return
    trainer.run()
    opt = torch.optim.LBFGS(plain.parameters())
    for step in range(2):
        tasks = source.meta_batch(step, 3, seed=1)

        def closure(tasks=tasks):
            opt.zero_grad()
            loss = plain(tasks)
            loss.backward()
            return loss

        opt.step(closure)
    assert same(weights(learner), weights(plain))


def test_a_scheduler_that_wants_a_metric_works_or_is_refused_before_training(learner, source):
    opt = torch.optim.SGD(learner.parameters(), lr=0.1)
    plateau = lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=0)
    plan = TrainingPlan(4, validate_every=1)
    try:
        trainer = Trainer(learner, opt, schedule(source), plan, scheduler=plateau, validate=lambda: 1.0)
    except (TypeError, ValueError) as refusal:
        assert "ReduceLROnPlateau" in str(refusal)
        return
    trainer.run()
    assert opt.param_groups[0]["lr"] < 0.1  # the value never improved


def test_learned_hyperparameters_are_trained_with_the_weights(source, generator):
    learner = MetaLearner(nn.Linear(2, 1), nn.MSELoss(), MAML(steps=2, inner_lr=0.05, learn=("inner_lr",)))
    (log_rate,) = learner.log_hyper.values()
    gradient = float(learner.meta_gradient(source.meta_batch(0, 3, 1)).hyper["inner_lr"])
    opt = torch.optim.SGD(learner.parameters(), lr=0.1)
    Trainer(learner, opt, schedule(source), TrainingPlan(1)).run()
    # d/d log τ = τ d/dτ
    assert float(log_rate.detach()) == pytest.approx(math.log(0.05) - 0.1 * 0.05 * gradient, rel=1e-9)


def test_evaluations_are_those_of_the_meta_gradients_alone(learner, source):
    costs = [learner.meta_gradient(source.meta_batch(step, 3, 1)).stats for step in range(4)]

    def validate():
        learner.query_losses(source[0:8])
        return 1.0

    opt = torch.optim.SGD(learner.parameters(), lr=0.1)
    trainer = Trainer(learner, opt, schedule(source), TrainingPlan(4, validate_every=1), validate=validate)
    trainer.run()
    assert trainer.progress.n_grad == sum(cost["n_grad"] for cost in costs)
    assert trainer.progress.n_hvp == sum(cost["n_hvp"] for cost in costs) == 4 * 2
    assert trainer.progress.seconds > 0


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"meta_steps": 0}, "meta_steps must be at least 1"),
        ({"meta_steps": 2.0}, "meta_steps must be a whole number"),
        ({"meta_steps": True}, "meta_steps must be a whole number"),
        ({"meta_steps": 1, "clip_norm": 0.0}, "clip_norm must be positive"),
        ({"meta_steps": 1, "clip_norm": math.inf}, "clip_norm must be positive and finite"),
        ({"meta_steps": 1, "validate_every": -1}, "validate_every must be at least 0"),
        ({"meta_steps": 1, "patience": 2}, "patience needs validations"),
        ({"meta_steps": 1, "validate_every": 1, "patience": 0}, "patience must be at least 1"),
        ({"meta_steps": 1, "max_skipped": 0}, "max_skipped must be at least 1"),
    ],
)
def test_a_plan_out_of_range_is_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        TrainingPlan(**options)


def test_validations_need_something_to_validate_with(learner, source):
    opt = torch.optim.SGD(learner.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="pass validate="):
        Trainer(learner, opt, schedule(source), TrainingPlan(3, validate_every=1))
