from __future__ import annotations

from functools import partial

import pytest
import torch
from problems import CASES, Forwards, Tied, case, mlp, regression
from references import Split, relative
from torch import nn
from torch.func import functional_call

from adjoint_meta import Batch
from adjoint_meta.batched_model import BatchedModel, check_batch, check_module, twice_differentiable
from adjoint_meta.parameters import ParameterRows
from adjoint_meta.probe import check_loss


def batched(model: nn.Module, loss=nn.functional.mse_loss, adapt: str | None = None) -> BatchedModel:
    return BatchedModel(model, loss, ParameterRows(model, adapt))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_every_task_is_predicted_by_its_own_weights(name, training, generator):
    found = case(name, generator)
    found.model.train(training)
    theta = Split(found.model).theta
    phi = theta + 0.1 * torch.randn(3, theta.numel(), generator=generator)
    engine = batched(found.model, found.loss)
    with torch.no_grad(), twice_differentiable():
        predictions = engine.predict(phi, torch.zeros(0), found.points.x)
        losses = engine.losses(phi, torch.zeros(0), found.points)
    for i in range(3):
        expected = Split(found.model).predict(phi[i], torch.zeros(0), found.points.x[i])
        assert relative(predictions[i].detach(), expected.detach()) < 1e-13
        assert relative(losses[i].detach(), found.loss(expected, found.points.y[i]).detach()) < 1e-12


def test_shared_parameters_are_the_same_for_every_task(generator):
    model, points = mlp(generator), regression(generator).support
    split = Split(model, "2.*")
    phi = torch.randn(3, split.theta.numel(), generator=generator)
    predictions = batched(model, adapt="2.*").predict(phi, split.psi, points.x)
    for i in range(3):
        assert relative(predictions[i], split.predict(phi[i], split.psi, points.x[i])) < 1e-14


def test_tied_weights_stay_tied(generator):
    model, x = Tied(), torch.randn(2, 4, 3, generator=generator)
    phi = torch.randn(2, 12, generator=generator)
    predictions = batched(model).predict(phi, torch.zeros(0), x)
    for i in range(2):
        weight, bias = phi[i, :9].reshape(3, 3), phi[i, 9:]
        assert relative(predictions[i], torch.tanh(x[i] @ weight.T) @ weight.T + bias) < 1e-14


def test_the_model_itself_is_left_as_it_was(generator):
    model, points = mlp(generator), regression(generator).support
    before = {name: p.clone() for name, p in model.named_parameters()}
    batched(model).predict(torch.zeros(3, 17), torch.zeros(0), points.x)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("tasks", [1, 7, 40])
def test_one_call_of_the_module_serves_all_tasks(tasks, generator):
    model, points = mlp(generator), regression(generator, tasks=tasks).support
    forwards, engine = Forwards(model), batched(model)
    assert forwards.during(lambda: engine.losses(torch.zeros(tasks, 17), torch.zeros(0), points)) == 1


@pytest.mark.parametrize(
    ("loss", "shape"), [(nn.MSELoss(reduction="none"), r"\[5, 1\]"), (lambda p, y: (p - y).sum(1), r"\[5\]")]
)
def test_a_loss_that_is_no_scalar_is_refused(loss, shape, generator):
    points = regression(generator).support
    with pytest.raises(ValueError, match=f"loss must return a scalar for each task, got shape {shape}; use reduction="):
        batched(mlp(generator), loss).losses(torch.zeros(3, 17), torch.zeros(0), points)


# Modules that cannot be used


@pytest.mark.parametrize(
    "module",
    [nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.SyncBatchNorm(4), nn.InstanceNorm1d(4, track_running_stats=True)],
    ids=lambda m: type(m).__name__,
)
def test_running_statistics_are_refused_unless_frozen(module):
    model = nn.Sequential(nn.Linear(2, 4), module)
    with pytest.raises(ValueError, match=rf"{type(module).__name__} '1' would update its running statistics") as e:
        check_module(model)
    assert "track_running_stats=False" in str(e.value) and ".eval()" in str(e.value)
    module.eval()
    check_module(model)


@pytest.mark.parametrize(
    "module",
    [
        nn.Dropout(0.1),
        nn.Dropout2d(0.1),
        nn.Dropout(1),
        nn.AlphaDropout(0.1),
        nn.FeatureAlphaDropout(0.1),
        nn.LSTM(2, 2, num_layers=2, dropout=0.1),
        nn.MultiheadAttention(4, 2, dropout=0.1),
        nn.TransformerEncoderLayer(4, 2, 4, dropout=0.1, batch_first=True),
        nn.RReLU(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_random_masks_are_refused_unless_off(module):
    model = nn.Sequential(nn.Linear(2, 4), module)
    with pytest.raises(ValueError, match=r"'1.*' would draw") as e:
        check_module(model)
    assert ".eval()" in str(e.value)
    model.eval()
    check_module(model)


@pytest.mark.parametrize(
    "module",
    [
        nn.Dropout(0.0),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm1d(4),
        nn.MultiheadAttention(4, 2),
        nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True),
    ],
    ids=lambda m: type(m).__name__,
)
def test_modules_without_state_or_chance_are_accepted(module):
    check_module(nn.Sequential(module))


def test_power_iteration_is_refused_by_name():
    # Spectral normalisation updates its vectors at every training forward.
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 1))
    with pytest.raises(ValueError, match="SpectralNorm"):
        check_module(model)
    model.eval()
    check_module(model)


def test_a_mask_drawn_by_a_function_says_what_to_do(generator):
    class Functional(nn.Linear):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    engine, points = batched(Functional(2, 1)), regression(generator).support
    with pytest.raises((ValueError, RuntimeError), match=r"\.eval\(\)"):
        engine.predict(torch.zeros(3, 3), torch.zeros(0), points.x)


# Data that does not fit


def test_masks_are_refused(generator):
    points = regression(generator).support
    masked = Batch(points.x, points.y, torch.ones(3, 5, dtype=bool))
    with pytest.raises(ValueError, match="support has a mask, which losses cannot honour"):
        check_batch("support", masked, torch.zeros(1))


@pytest.mark.parametrize("which", ["x", "y"])
def test_a_wrong_dtype_or_device_says_what_to_call(which, generator):
    points = regression(generator).support
    check_batch("query", points, torch.zeros(1))
    parts = {"x": points.x, "y": points.y}
    with pytest.raises(
        TypeError, match=rf"query\.{which} is torch\.float32 but the model is torch\.float64; use tasks"
    ):
        check_batch("query", Batch(**{**parts, which: parts[which].float()}), torch.zeros(1))
    with pytest.raises(ValueError, match=r"query\.x is on meta but the model is on cpu; use tasks\.to"):
        check_batch("query", points.to("meta"), torch.zeros(1))
    check_batch("query", Batch(**{**parts, which: parts[which].long()}), torch.zeros(1))


REGRESSION_LOSSES = [
    nn.MSELoss(),
    nn.L1Loss(),
    nn.HuberLoss(),
    nn.SmoothL1Loss(),
    nn.functional.mse_loss,
    nn.functional.l1_loss,
    nn.functional.huber_loss,
    nn.functional.smooth_l1_loss,
    partial(nn.functional.mse_loss, reduction="sum"),
]


@pytest.mark.parametrize("loss", REGRESSION_LOSSES, ids=lambda f: getattr(f, "__name__", type(f).__name__))
def test_targets_that_a_regression_loss_would_broadcast_or_round(loss):
    prediction = torch.zeros(1, 5, 1)
    check_loss(loss, "support", prediction, torch.zeros(1, 5, 1))
    with pytest.raises(ValueError, match=r"predicts \[1, 5, 1\] for support\.x, but support\.y is \[1, 5\]"):
        check_loss(loss, "support", prediction, torch.zeros(1, 5))
    with pytest.raises(
        TypeError, match=r"support\.y is torch\.int64, but .* is a regression loss; convert it with y\.to"
    ):
        check_loss(loss, "support", prediction, torch.zeros(1, 5, 1, dtype=int))


def test_other_losses_are_trusted():
    check_loss(nn.functional.cross_entropy, "support", torch.zeros(1, 5, 3), torch.zeros(1, 5, dtype=int))
    check_loss(lambda p, y: p.sum(), "support", torch.zeros(1, 5, 3), torch.zeros(1, 2))


def test_twice_differentiable_turns_grad_mode_on_and_back():
    with torch.no_grad():
        with twice_differentiable():
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled()


def test_functional_call_takes_what_named_returns(generator):
    model, x = mlp(generator), torch.randn(5, 2, generator=generator)
    rows = ParameterRows(model, "2.*")
    assert torch.equal(functional_call(model, rows.named(*rows.read(model)), (x,)), model(x))
