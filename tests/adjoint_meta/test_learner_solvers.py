"""The learner with every kind of inner solver: backward, precision, no loop over tasks, failures that are explained."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from problems import Forwards, mlp, regression
from references import relative
from torch import nn

from adjoint_meta import AdjointMAML, Batch, MetaLearner, SolverError, TaskBatch, inner_solvers

mse = nn.functional.mse_loss

METHODS = {
    "dopri5": AdjointMAML(horizon=0.5, solver="dopri5", rtol=1e-3, learn=("horizon",)),
    "bosh3 checkpointed": AdjointMAML(horizon=0.5, solver="bosh3", rtol=1e-3, adjoint="checkpointed"),
    "heun interpolating": AdjointMAML(horizon=0.3, solver="heun", rtol=1e-2, adjoint="interpolating"),
    "rkc": AdjointMAML(horizon=0.5, solver="rkc", rtol=1e-2, proximal=0.5, learn=("proximal",)),
    "rkc by steps": AdjointMAML(horizon=0.5, solver="rkc", steps=3, learn=("rates",)),
    "implicit_euler": AdjointMAML(horizon=0.5, solver="implicit_euler", steps=2, learn=("horizon",)),
    "sdirk2": AdjointMAML(horizon=0.5, solver="sdirk2", steps=2),
    "auto": AdjointMAML(horizon=2.0, solver="auto"),
    "steady": AdjointMAML(horizon=math.inf, solver="dopri5", proximal=3.0, learn=("proximal",)),
}
every_method = pytest.mark.parametrize("name", METHODS)


@every_method
@pytest.mark.parametrize("adapt", [None, "2.*"])
def test_backward_fills_the_meta_gradient(name, adapt, generator):
    learner, tasks = MetaLearner(mlp(generator), mse, METHODS[name], adapt=adapt), regression(generator)
    # A meta-gradient leaves the learner another start; so it is taken by a copy.
    found = copy.deepcopy(learner).meta_gradient(tasks)
    loss = learner(tasks)
    (2 * loss).backward()
    assert relative(loss.detach(), found.loss.mean()) < 1e-15
    for parameter_name, parameter in learner.model.named_parameters():
        assert torch.equal(parameter.grad, 2 * found.grad[parameter_name])
        assert not parameter.grad.requires_grad
    assert set(learner.log_hyper) == set(found.hyper)
    for hyper_name, log in learner.log_hyper.items():
        assert torch.equal(log.grad, 2 * learner.hyper[hyper_name] * found.hyper[hyper_name])


@every_method
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_it_only_evaluates(name, context, generator):
    learner, tasks = MetaLearner(mlp(generator), mse, METHODS[name]), regression(generator)
    expected = copy.deepcopy(learner).meta_gradient(tasks).loss
    with context():
        loss = learner(tasks)
    assert not loss.requires_grad
    assert relative(loss, expected.mean()) < 1e-14
    assert relative(learner.query_losses(tasks), expected) < 1e-14
    # Everything still works afterwards.
    learner(tasks).backward()


@every_method
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_float32_everywhere(name, default, generator):
    model, tasks = mlp(generator), regression(generator)
    exact = MetaLearner(model, mse, METHODS[name]).meta_gradient(tasks)
    torch.set_default_dtype(default)
    learner, tasks = MetaLearner(copy.deepcopy(model).float(), mse, METHODS[name]), tasks.to(dtype=torch.float32)
    found = learner.meta_gradient(tasks)
    learner(tasks).backward()
    phi = learner.adapt(tasks.support)
    tensors = [found.loss, *found.grad.values(), *found.hyper.values(), phi, *(p.grad for p in learner.parameters())]
    tensors += [x for x in found.stats.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    tensors += list(learner.buffers())
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert relative(found.loss.double(), exact.loss) < 1e-4
    for parameter_name, gradient in exact.grad.items():
        assert relative(found.grad[parameter_name].double(), gradient) < 1e-3, parameter_name


@every_method
@pytest.mark.parametrize("mode", ["reverse_over_reverse", "forward_over_reverse"])
def test_calls_of_the_module_do_not_depend_on_the_number_of_tasks(name, mode, generator):
    # The same task many times: it takes the steps that one takes.
    model, one = mlp(generator), regression(generator, tasks=1)
    forwards, calls = Forwards(model), set()
    for tasks in (1, 4, 40):
        repeated = TaskBatch(
            *(Batch(part.x.repeat(tasks, 1, 1), part.y.repeat(tasks, 1, 1)) for part in (one.support, one.query))
        )
        learner = MetaLearner(model, mse, METHODS[name], mode=mode)
        calls.add(forwards.during(lambda: learner.meta_gradient(repeated)))  # noqa: B023
    assert len(calls) == 1


@every_method
@pytest.mark.parametrize("which", ["support", "query"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_blamed_on_the_data(name, which, value, generator):
    learner, tasks = MetaLearner(mlp(generator), mse, METHODS[name]), regression(generator)
    parts = {"support": tasks.support, "query": tasks.query}
    y = parts[which].y.clone()
    y[1, 2, 0] = value
    parts[which] = Batch(parts[which].x, y)
    with pytest.raises(ValueError, match=rf"{which}\.y holds 1 value that is NaN or infinite"):
        learner(TaskBatch(**parts))
    # A failure leaves no trace in the state.
    assert all(torch.isfinite(buffer).all() for buffer in learner.buffers())
    assert torch.isfinite(learner.meta_gradient(tasks).loss).all()


@every_method
def test_a_meta_gradient_that_would_be_zero_in_silence(name, generator):
    class Detached(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(ValueError, match="does not depend on the adapted parameters"):
        MetaLearner(Detached(2, 1), mse, METHODS[name])(regression(generator))


@pytest.mark.parametrize("name", ["dopri5", "rkc", "implicit_euler", "auto"])
def test_a_query_loss_that_overflows_is_an_error(name, generator):
    learner, tasks = MetaLearner(mlp(generator), mse, METHODS[name]), regression(generator)
    huge = TaskBatch(tasks.support, Batch(tasks.query.x, 1e200 * tasks.query.y))
    with pytest.raises(SolverError, match="not finite although the inner solve was"):
        learner.meta_gradient(huge)


def test_a_solve_that_cannot_reach_the_end_says_what_to_change(generator, monkeypatch):
    monkeypatch.setattr(inner_solvers, "RowSteps", partial(inner_solvers.RowSteps, max_steps=20))
    learner, tasks = MetaLearner(nn.Linear(2, 1), mse, AdjointMAML(horizon=1e3, solver="bosh3")), regression(generator)
    for call in (learner.meta_gradient, lambda tasks: learner.adapt(tasks.support)):
        with pytest.raises(SolverError, match=r"inner solve failed in 3 of 3 rows.*rkc, implicit_euler"):
            call(tasks)
