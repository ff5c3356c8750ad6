"""The meta-training loop against loops written by hand, and what it does when steps fail or stop."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from adjoint_meta import MAML, Batch, MetaLearner, StackedTasks, TaskBatch
from adjoint_meta import checkpoint as checkpoints
from adjoint_meta.meta_gradients import FOMAML
from adjoint_meta.solvers import SolverError
from adjoint_meta.training import Trainer, TrainingFailed, TrainingPlan

HUGE = 1e200


@pytest.fixture
def source(generator):
    """Eight tasks of six support and six query points."""

    def batch():
        x = torch.randn(8, 6, 2, generator=generator)
        return Batch(x, torch.sin(x.sum(-1, keepdim=True)) + torch.randn(8, 1, 1, generator=generator))

    return StackedTasks(TaskBatch(batch(), batch()))


@pytest.fixture
def learner(generator):
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return MetaLearner(model, nn.MSELoss(), MAML(steps=2, inner_lr=0.05))


def schedule(source, diverging=()):
    """Three tasks a meta-step; at the steps named, their targets are so large that the inner solve overflows."""

    def tasks(step):
        drawn = source.meta_batch(step, 3, seed=1)
        if step in diverging:
            return TaskBatch(Batch(drawn.support.x, drawn.support.y * HUGE), drawn.query)
        return drawn

    return tasks


def weights(learner):
    return {name: value.clone() for name, value in learner.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}
SCHEDULERS = {
    "none": lambda o: None,
    "step": lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.3),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=9),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=10, cycle_momentum=False),
}


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


# Meta-validation


def validated(learner, source, values, meta_steps=40, every=2, patience=3):
    """Train with scripted validation values; returns the trainer and the weights at each validation."""
    seen, values = [], iter(values)

    def validate():
        seen.append(weights(learner))
        value = next(values)
        if value is None:
            raise SolverError("scripted")
        return value

    records = []
    trainer = Trainer(
        learner,
        torch.optim.SGD(learner.parameters(), lr=0.01),
        schedule(source),
        TrainingPlan(meta_steps, validate_every=every, patience=patience),
        validate=validate,
        observe=records.append,
    )
    trainer.run()
    return trainer, seen, records


def test_early_stopping_keeps_the_best_state(learner, source):
    trainer, seen, records = validated(learner, source, [5.0, 3.0, 4.0, 2.0, 2.5, 2.0, 2.1, 0.0])
    # three validations in a row were not better than the fourth, taken after meta-step 8
    assert trainer.done and trainer.progress.step == 14 and len(seen) == 7
    assert (trainer.progress.best, trainer.progress.best_step, trainer.progress.stale) == (2.0, 8, 3)
    assert same(trainer.best_state, seen[3]) and not same(seen[3], weights(learner))
    assert [r["step"] for r in records if "validation" in r] == [2, 4, 6, 8, 10, 12, 14]
    assert [r["validation"] for r in records if "validation" in r] == [5.0, 3.0, 4.0, 2.0, 2.5, 2.0, 2.1]


def test_without_patience_validation_only_watches(learner, source):
    trainer, seen, _ = validated(learner, source, [1.0, 2.0, 3.0, 4.0], meta_steps=8, patience=None)
    assert trainer.progress.step == 8 and same(trainer.best_state, seen[0])


def test_a_validation_whose_solve_fails_is_not_an_improvement(learner, source):
    trainer, seen, _ = validated(learner, source, [2.0, None, None, None])
    assert trainer.progress.step == 8 and trainer.progress.best == 2.0 and same(trainer.best_state, seen[0])


@pytest.mark.parametrize("first", [math.nan, None])
def test_a_first_validation_that_is_not_finite_does_not_stay_the_best(learner, source, first):
    trainer, seen, _ = validated(learner, source, [first, 2.0, 1.0, 3.0], meta_steps=8)
    assert trainer.progress.best == 1.0 and same(trainer.best_state, seen[2])


# Meta-gradients that are not finite


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


# Stopping and going on


def test_should_stop_is_asked_between_meta_steps(learner, source):
    opt = torch.optim.SGD(learner.parameters(), lr=0.1)
    trainer = Trainer(learner, opt, schedule(source), TrainingPlan(9))
    answers = iter([False, False, False, True])
    trainer.run(lambda: next(answers))
    assert trainer.progress.step == 3 and not trainer.done


@pytest.mark.parametrize("stop", [1, 5, 8])
@pytest.mark.parametrize(("optimizer", "scheduler"), [("adam", "cosine"), ("momentum", "step"), ("adam", "one-cycle")])
def test_a_saved_state_continues_bit_for_bit(learner, source, tmp_path, optimizer, scheduler, stop):
    def trainer(learner, records):
        def noisy(step):  # the global generator belongs to the state too
            tasks = schedule(source, {3})(step)
            return TaskBatch(tasks.support, Batch(tasks.query.x, tasks.query.y + 0.1 * torch.randn(3, 6, 1)))

        def validate():
            return float(learner.query_losses(source[0:8]).mean())

        opt = OPTIMIZERS[optimizer](learner.parameters())
        plan = TrainingPlan(10, clip_norm=0.5, validate_every=2)
        return Trainer(
            learner,
            opt,
            noisy,
            plan,
            scheduler=SCHEDULERS[scheduler](opt),
            validate=validate,
            observe=lambda record: records.append({k: v for k, v in record.items() if k != "seconds"}),
        )

    start = copy.deepcopy(learner)
    torch.manual_seed(7)
    whole = trainer(learner, expected := [])
    whole.run()

    torch.manual_seed(7)
    first = trainer(copy.deepcopy(start), records := [])
    first.run(lambda: first.progress.step == stop)
    checkpoints.save(tmp_path / "state.pt", first.state_dict())
    torch.manual_seed(99)
    second = trainer(copy.deepcopy(start), records)
    second.load_state_dict(checkpoints.load(tmp_path / "state.pt"))
    assert second.progress.step == stop
    second.run()

    assert records == expected
    assert same(weights(second.learner), weights(learner)) and same(second.best_state, whole.best_state)
    one, other = vars(second.progress).copy(), vars(whole.progress).copy()
    assert one.pop("seconds") > 0 and other.pop("seconds") > 0
    assert one == other
    assert torch.equal(second.state_dict()["rng"], whole.state_dict()["rng"])


def other_learner(width):
    return MetaLearner(
        nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)), nn.MSELoss(), MAML(steps=2, inner_lr=0.05)
    )


def trained(learner, source, optimizer):
    trainer = Trainer(learner, optimizer, schedule(source), TrainingPlan(4))
    trainer.run(lambda: trainer.progress.step == 2)
    return trainer


def test_the_state_of_another_model_is_refused(learner, source):
    state = trained(learner, source, torch.optim.Adam(learner.parameters())).state_dict()
    wide = other_learner(5)
    before = weights(wide)
    trainer = Trainer(wide, torch.optim.Adam(wide.parameters()), schedule(source), TrainingPlan(4))
    with pytest.raises(ValueError, match=r"file\.pt holds 'model\.0\.\w+' of shape \[4.*the model has \[5"):
        trainer.load_state_dict(state, "file.pt")
    assert same(before, weights(wide)) and trainer.progress.step == 0


def test_the_state_of_another_optimizer_is_refused(learner, source):
    state = trained(learner, source, torch.optim.Adam(learner.parameters())).state_dict()
    fresh = other_learner(4)
    before = weights(fresh)
    trainer = Trainer(fresh, torch.optim.SGD(fresh.parameters(), lr=0.1), schedule(source), TrainingPlan(4))
    with pytest.raises(ValueError, match=r"file\.pt was written with another optimiser"):
        trainer.load_state_dict(state, "file.pt")
    assert same(before, weights(fresh))


def test_the_state_of_a_run_without_scheduler_is_refused_by_one_with(learner, source):
    state = trained(learner, source, torch.optim.Adam(learner.parameters())).state_dict()
    fresh = other_learner(4)
    opt = torch.optim.Adam(fresh.parameters())
    trainer = Trainer(
        fresh, opt, schedule(source), TrainingPlan(4), scheduler=lr_scheduler.CosineAnnealingLR(opt, T_max=4)
    )
    with pytest.raises(ValueError, match="another optimiser or scheduler"):
        trainer.load_state_dict(state)


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
