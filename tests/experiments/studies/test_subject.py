"""What a study counts is what was evaluated, and what it measures is the learner's meta-gradient."""

import pytest
import torch
from references import relative

import adjoint_meta as am
from adjoint_meta.experiments.models import HalfMSELoss
from adjoint_meta.experiments.studies.subject import Subject, TooExpensive, by_method


def rk4(steps):
    return by_method(am.AdjointMAML(horizon=1.0, solver="rk4", steps=steps))


@pytest.mark.parametrize("steps", [1, 3])
def test_rk4_takes_four_gradients_and_four_products_a_step(subject, steps):
    outcome = subject.measure(rk4(steps))
    assert (outcome.evaluations.n_grad, outcome.evaluations.n_hvp) == (4 * steps, 4 * steps)
    assert outcome.row_evaluations == 8 * steps * len(subject.tasks)


def test_rkc_with_its_estimate_of_the_radius(subject):
    """Fixed steps of s stages: s gradients, and one for the slope at the start; six Lanczos products besides."""
    outcome = subject.measure(by_method(am.AdjointMAML(horizon=0.1, solver="rkc", steps=1)))
    assert (outcome.evaluations.n_grad, outcome.evaluations.n_hvp) == (1 + 2, 6 + 2)


@pytest.mark.parametrize("solver", ["bosh3", "tsit5"])
def test_tasks_that_are_done_cost_nothing(model, tasks, solver):
    """The evaluations of the rows of a batch are those of the tasks solved one by one."""
    method = by_method(am.AdjointMAML(horizon=8.0, solver=solver, rtol=1e-3))
    together = Subject(model, HalfMSELoss(), tasks).measure(method)
    apart = [Subject(model, HalfMSELoss(), tasks[i : i + 1]).measure(method) for i in range(len(tasks))]
    assert together.row_evaluations == sum(outcome.row_evaluations for outcome in apart)
    for outcome in apart:
        assert outcome.row_evaluations == outcome.evaluations.n_grad + outcome.evaluations.n_hvp
    batched = together.evaluations.n_grad + together.evaluations.n_hvp
    assert together.row_evaluations < len(tasks) * batched


@pytest.mark.parametrize("method", [
    am.AdjointMAML(horizon=1.0, solver="rk4", steps=4),
    am.AdjointMAML(horizon=1.0, solver="tsit5", rtol=1e-5),
    am.AdjointMAML(horizon=1.0, solver="implicit_euler", steps=2),
])  # fmt: skip
def test_the_gradient_is_the_learners(model, tasks, subject, method):
    learner = am.MetaLearner(model, HalfMSELoss(), method)
    found = torch.cat([part.flatten() for part in learner.meta_gradient(tasks).grad.values()])
    outcome = subject.measure(by_method(method))
    assert relative(outcome.gradient, found) < 1e-13
    assert relative(outcome.phi, learner.adapt(tasks.support)) < 1e-13


def test_gradients_of_each_task_average_to_that_of_all(subject):
    each = subject.measure(rk4(3), each=True).gradient
    assert relative(each.mean(0), subject.measure(rk4(3)).gradient) < 1e-13


def test_rows_may_start_apart(model, tasks, generator):
    theta = torch.randn(len(tasks), sum(p.numel() for p in model.parameters()), generator=generator)
    together = Subject(model, HalfMSELoss(), tasks, theta).measure(rk4(3), each=True)
    for row in range(len(tasks)):
        alone = Subject(model, HalfMSELoss(), tasks[row : row + 1], theta[row : row + 1]).measure(rk4(3), each=True)
        assert relative(together.gradient[row], alone.gradient[0]) < 1e-13


def test_a_limit_stops_the_solve(subject):
    assert subject.measure(rk4(5), limit=40).evaluations.n_hvp == 20
    with pytest.raises(TooExpensive, match="more than 39 evaluations"):
        subject.measure(rk4(5), limit=39)


def test_stability_is_reported_and_no_warning_escapes(subject):
    inside, outside = (subject.measure(by_method(am.AdjointMAML(horizon=8.0, steps=n))) for n in (64, 2))
    assert inside.stability < 1 < outside.stability
