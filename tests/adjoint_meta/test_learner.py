"""A learner evaluates, adapts, predicts, is copied and moved, and calls its module once for all tasks."""

from __future__ import annotations

import copy

import pytest
import torch
from learner_methods import every_method, mse
from problems import CASES, Forwards, case, mlp, regression
from references import Split, relative

from adjoint_meta import MAML, AdjointMAML, ImplicitMAML, MetaLearner, TaskBatch

# Evaluation


@every_method
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_it_only_evaluates(method, context, generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, method)
    expected = learner.meta_gradient(tasks).loss
    before = learner.evaluations.n_hvp
    with context():
        loss = learner(tasks)
    assert not loss.requires_grad
    assert learner.evaluations.n_hvp == before
    assert relative(loss, expected.mean()) < 1e-14
    assert relative(learner.query_losses(tasks), expected) < 1e-14
    assert all(p.grad is None for p in learner.parameters())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("adapt", [None, "*bias"])
def test_adapting_and_predicting(name, adapt, generator):
    found = case(name, generator)
    if not any(parameter.endswith("bias") for parameter, _ in found.model.named_parameters()):
        pytest.skip("no bias")
    learner = MetaLearner(found.model, found.loss, MAML(steps=2, inner_lr=0.05), adapt=adapt)
    phi = learner.adapt(found.points)
    split = Split(found.model, adapt)
    assert phi.shape == (3, split.theta.numel()) and not phi.requires_grad
    assert torch.equal(learner.initial(2), split.theta.repeat(2, 1))
    predictions = learner.predict(phi, found.points.x)
    losses = learner.query_losses(TaskBatch(found.points, found.points))
    for i in range(3):
        expected = split.predict(phi[i], split.psi, found.points.x[i]).detach()
        assert relative(predictions[i].detach(), expected) < 1e-12
        assert relative(losses[i], found.loss(expected, found.points.y[i])) < 1e-12


def test_support_problem_is_for_an_inner_solve_of_ones_own(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, MAML(steps=1, inner_lr=0.1))
    problem, theta = learner.support_problem(tasks.support), learner.initial(3)
    assert relative(theta - 0.1 * problem.gradient(theta), learner.adapt(tasks.support)) < 1e-15


def test_adapting_leaves_the_model_and_its_state_alone(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, AdjointMAML(steps=3))
    before = copy.deepcopy(learner.state_dict())
    state = torch.random.get_rng_state()
    learner.adapt(tasks.support)
    learner.meta_gradient(tasks)
    learner(tasks)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert all(p.grad is None for p in learner.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_learner_follows_its_model(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, MAML(steps=3))
    learner.meta_gradient(tasks)
    with torch.no_grad():
        model[0].weight += 0.3
    fresh = MetaLearner(copy.deepcopy(model), mse, MAML(steps=3))
    assert torch.equal(learner.meta_gradient(tasks).loss, fresh.meta_gradient(tasks).loss)


def test_copies_are_independent(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, AdjointMAML(steps=3, learn=("horizon",)))
    expected = learner.meta_gradient(tasks)
    copied = copy.deepcopy(learner)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        learner.log_hyper["horizon"] += 1.0
    found = copied.meta_gradient(tasks)
    assert torch.equal(found.loss, expected.loss)
    copied(tasks).backward()
    assert copied.model[0].weight.grad is not None and model[0].weight.grad is None


def test_state_dict_round_trip(generator):
    method = AdjointMAML(horizon=0.7, steps=3, proximal=0.2, learn=("horizon", "rates", "proximal"))
    learner, tasks = MetaLearner(mlp(generator), mse, method), regression(generator)
    with torch.no_grad():
        for parameter in learner.log_hyper.values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    other = MetaLearner(mlp(generator), mse, AdjointMAML(horizon=2.0, steps=3, proximal=1.0, learn=method.learn))
    state = learner.state_dict()
    assert set(state) == {f"model.{name}" for name, _ in learner.model.named_parameters()} | {
        "log_hyper.horizon",
        "log_hyper.rates",
        "log_hyper.proximal",
    }
    other.load_state_dict(state)
    assert torch.equal(other.meta_gradient(tasks).loss, learner.meta_gradient(tasks).loss)
    assert torch.allclose(other.hyper["horizon"], torch.exp(state["log_hyper.horizon"]))


@every_method
def test_float32_everywhere(method, generator):
    model, tasks = mlp(generator), regression(generator)
    exact = MetaLearner(model, mse, method).meta_gradient(tasks)
    learner = MetaLearner(copy.deepcopy(model).float(), mse, method)
    tasks = tasks.to(dtype=torch.float32)
    found = learner.meta_gradient(tasks)
    learner(tasks).backward()
    phi = learner.adapt(tasks.support)
    tensors = [found.loss, *found.grad.values(), *found.hyper.values(), phi, learner.predict(phi, tasks.query.x)]
    tensors += [p.grad for p in learner.parameters()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert relative(found.loss.double(), exact.loss) < 1e-5
    for name, gradient in exact.grad.items():
        assert relative(found.grad[name].double(), gradient) < 1e-4


def test_the_learner_moves_with_to(generator):
    learner, tasks = MetaLearner(mlp(generator), mse, MAML(steps=2, learn=("rates",))), regression(generator)
    learner.float()
    found = learner.meta_gradient(tasks.to(dtype=torch.float32))
    assert {x.dtype for x in (*found.grad.values(), *found.hyper.values())} == {torch.float32}
    with pytest.raises(TypeError, match=r"use tasks\.to\(dtype=torch\.float32\)"):
        learner(tasks)


# No loop over tasks


@every_method
@pytest.mark.parametrize("mode", ["reverse_over_reverse", "forward_over_reverse"])
def test_calls_of_the_module_do_not_depend_on_the_number_of_tasks(method, mode, generator):
    model = mlp(generator)
    forwards, calls = Forwards(model), set()
    for tasks in (1, 3, 50):
        learner, batch = MetaLearner(model, mse, method, mode=mode), regression(generator, tasks=tasks)
        stats = {}
        # Targets are held against predictions once for each new shape: the points of support and query have one.
        checks = 1
        calls.add(forwards.during(lambda: stats.update(learner.meta_gradient(batch).stats)) - checks)  # noqa: B023
        calls.add(forwards.during(lambda: learner.meta_gradient(batch)))  # noqa: B023
    (count,) = calls
    if isinstance(method, ImplicitMAML) and mode == "reverse_over_reverse":
        # All products of CG share one forward pass and its gradient's graph.
        assert count == stats["n_grad"] + 1
    else:
        assert count == stats["n_grad"] + stats["n_hvp"]


def test_chunks_call_the_module_once_each(generator):
    model = mlp(generator)
    learner = MetaLearner(model, mse, MAML(steps=2), chunk_size=2)
    batch = regression(generator, tasks=5)
    learner.meta_gradient(batch)
    # 2 gradients, 2 products and the query's gradient, each in 3 chunks.
    assert Forwards(model).during(lambda: learner.meta_gradient(batch)) == (2 + 2 + 1) * 3
