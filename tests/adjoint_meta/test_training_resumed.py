"""Training that is stopped and goes on from its saved state ends bit for bit where it would have."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from training_runs import OPTIMIZERS, SCHEDULERS, same, schedule, weights

from adjoint_meta import MAML, Batch, MetaLearner, TaskBatch
from adjoint_meta import checkpoint as checkpoints
from adjoint_meta.training import Trainer, TrainingPlan


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
