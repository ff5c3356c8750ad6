"""Meta-validation keeps the best state and stops early, whatever its values."""

import math

import pytest
import torch
from training_runs import same, schedule, weights

from adjoint_meta.solvers import SolverError
from adjoint_meta.training import Trainer, TrainingPlan


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
