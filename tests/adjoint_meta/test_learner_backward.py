"""loss.backward() fills in the meta-gradient, for torch's optimisers, its GradScaler and its data parallelism."""

from __future__ import annotations

import pytest
import torch
from learner_methods import METHODS, every_method, kind, mse
from problems import case, mlp, regression
from references import relative, through_every_step
from torch import nn

from adjoint_meta import MAML, AdjointMAML, MetaLearner, TaskBatch


@every_method
def test_backward_fills_the_meta_gradient(method, generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, method)
    loss = learner(tasks)
    assert loss.shape == () and loss.requires_grad
    loss.backward()
    found = learner.meta_gradient(tasks)
    assert relative(loss.detach(), found.loss.mean()) < 1e-15
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, found.grad[name])
    # On the log scale the gradient is the value times the natural one.
    assert set(learner.log_hyper) == set(method.learned) == set(found.hyper)
    for name, log in learner.log_hyper.items():
        assert torch.equal(log.grad, learner.hyper[name] * found.hyper[name])


def test_shared_parameters_get_their_gradient_too(generator):
    model, tasks = mlp(generator), regression(generator)
    expected = through_every_step(model, mse, tasks, horizon=0.3, steps=3, adapt="2.*")
    MetaLearner(model, mse, MAML(steps=3, inner_lr=0.1), adapt="2.*")(tasks).backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, expected.grad[name]) < 1e-12


def test_frozen_parameters_get_none(generator):
    found = case("frozen", generator)
    learner = MetaLearner(found.model, found.loss, MAML(steps=3))
    result = learner.meta_gradient(TaskBatch(found.points, found.points))
    learner(TaskBatch(found.points, found.points)).backward()
    assert set(result.grad) == {"gain", "head.weight", "head.bias"}
    assert found.model.frozen.weight.grad is None


def test_gradients_scale_and_add_up(generator):
    model, tasks, more = mlp(generator), regression(generator), regression(generator)
    learner = MetaLearner(model, mse, AdjointMAML(steps=3, learn=("horizon",)))
    one, two = learner.meta_gradient(tasks), learner.meta_gradient(more)
    (learner(tasks) * 8).backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, 8 * one.grad[name])
    learner(more).backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, 8 * one.grad[name] + two.grad[name]) < 1e-14
    horizon = learner.hyper["horizon"]
    expected = horizon * (8 * one.hyper["horizon"] + two.hyper["horizon"])
    assert relative(learner.log_hyper["horizon"].grad, expected) < 1e-14


def test_the_loss_is_a_term_like_any_other(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, MAML(steps=3))
    found = learner.meta_gradient(tasks)
    loss = learner(tasks) + 0.5 * sum((p**2).sum() for p in model.parameters())
    loss.backward(retain_graph=True)
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, found.grad[name] + parameter.detach()) < 1e-14
    loss.backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, 2 * (found.grad[name] + parameter.detach())) < 1e-14


def test_a_second_derivative_is_refused(generator):
    learner = MetaLearner(mlp(generator), mse, MAML(steps=3))
    gradients = torch.autograd.grad(learner(regression(generator)), list(learner.parameters()), create_graph=True)
    # Nothing hangs on the gradients, so that a second derivative cannot come out wrong.
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(gradients[0].sum(), list(learner.parameters()))


@pytest.mark.filterwarnings("ignore:the inner steps left the stability interval")  # LBFGS tries wild weights
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS])
@pytest.mark.parametrize("method", [METHODS[0], METHODS[3], METHODS[4]], ids=kind)
# LBFGS tries long steps, of the horizon too.
@pytest.mark.filterwarnings("ignore:the inner steps left the stability interval")
def test_torchs_optimisers_lower_the_loss(optimiser, method, generator):
    learner, tasks = MetaLearner(mlp(generator), mse, method), regression(generator, points=20)
    steps = optimiser(learner.parameters(), lr=0.02)

    def closure() -> torch.Tensor:
        steps.zero_grad()
        loss = learner(tasks)
        loss.backward()
        return loss

    before = {name: value.clone() for name, value in learner.hyper.items()}
    losses = [float(steps.step(closure).detach()) for _ in range(10)]
    # The exact gradient is a direction of descent, so that small steps must go down.
    assert losses[-1] < losses[0]
    assert all((learner.hyper[name] > 0).all() for name in before)
    assert any((learner.hyper[name] != before[name]).any() for name in before)


def test_grad_scaler(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, MAML(steps=3))
    expected = learner.meta_gradient(tasks).grad
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimiser = torch.optim.SGD(learner.parameters(), lr=1.0)
    scaler.scale(learner(tasks)).backward()
    scaler.unscale_(optimiser)
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, expected[name]) < 1e-14


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
)
# With rkc the second meta-gradient starts from what the first one left, a buffer that is kept the same everywhere.
@pytest.mark.parametrize(("setting", "tol"), [({"steps": 3}, 1e-15), ({"solver": "rkc", "rtol": 1e-2}, 1e-2)], ids=str)
def test_distributed_data_parallel(setting, tol, tmp_path, generator):
    model, tasks = mlp(generator), regression(generator)
    method = AdjointMAML(horizon=0.5, **setting, learn=("horizon",))
    expected = MetaLearner(model, mse, method).meta_gradient(tasks)
    learner = MetaLearner(model, mse, method)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(learner)
        for _ in range(2):
            parallel.zero_grad()
            loss = parallel(tasks)
            loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    assert relative(loss.detach(), expected.loss.mean()) < tol
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, expected.grad[name]) < tol
    assert learner.log_hyper["horizon"].grad is not None
