"""Networks of the experiments, and their loss."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from adjoint_meta.experiments.models import ACTIVATIONS, HalfMSELoss, mlp


def test_the_layers_are_those_asked_for():
    model = mlp(2, 32, 2, 1)
    assert [(layer.in_features, layer.out_features) for layer in model if isinstance(layer, nn.Linear)] == [
        (2, 32),
        (32, 32),
        (32, 1),
    ]
    assert [type(layer) for layer in model][1::2] == [nn.Tanh, nn.Tanh]
    assert sum(parameter.numel() for parameter in model.parameters()) == 3 * 32 + 33 * 32 + 33


def test_without_hidden_layers_it_is_linear():
    (layer,) = mlp(3, 8, 0, 2)
    assert isinstance(layer, nn.Linear) and layer.weight.shape == (2, 3)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_is_the_one_named(name):
    kinds = {"tanh": nn.Tanh, "relu": nn.ReLU, "softplus": nn.Softplus, "silu": nn.SiLU}
    assert isinstance(mlp(1, 4, 1, 1, activation=name)[1], kinds[name])


def test_weights_are_uniform_as_torchs_own():
    """Within ±1/√fan_in, and as far as that: 40,000 draws come within a thousandth of the bound (missed: e⁻⁴⁰)."""
    model = mlp(100, 400, 1, 1, seed=3)
    torch.manual_seed(0)
    for layer in (model[0], model[2]):
        bound = 1 / math.sqrt(layer.in_features)
        for values in (layer.weight.detach(), layer.bias.detach()):
            assert values.abs().max() <= bound
        own = nn.Linear(layer.in_features, layer.out_features).weight
        assert own.abs().max() <= bound
    values = model[0].weight.detach().flatten() * math.sqrt(100)
    assert values.max() > 0.999 and values.min() < -0.999
    # mean 0 ± 1/√(3 · 40,000) and variance 1/3: five standard errors
    assert abs(values.mean()) < 5 / math.sqrt(3 * 40_000)
    assert abs(values.square().mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / 40_000)


def test_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    one = mlp(2, 8, 2, 1, seed=5)
    torch.manual_seed(2)
    other = mlp(2, 8, 2, 1, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    another = mlp(2, 8, 2, 1, seed=6)
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), another.parameters(), strict=True))


def test_weights_do_not_depend_on_the_default_dtype():
    torch.set_default_dtype(torch.float32)
    single = mlp(2, 8, 1, 1, seed=5)
    torch.set_default_dtype(torch.float64)
    double = mlp(2, 8, 1, 1, seed=5)
    assert single[0].weight.dtype == torch.float32
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert torch.equal(a, b.to(torch.float32))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 4, 1, 1), "inputs must be at least 1"),
        ((2, 0, 1, 1), "width must be at least 1"),
        ((2, 4, -1, 1), "depth must be at least 0"),
        ((2, 4, 1, 0), "outputs must be at least 1"),
        ((2, 4.0, 1, 1), "width must be a whole number"),
    ],
)
def test_sizes_are_checked(sizes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        mlp(*sizes)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="unknown activation 'tan'; did you mean 'tanh'"):
        mlp(2, 4, 1, 1, activation="tan")


def test_the_loss_is_half_the_mean_square_and_its_gradient_the_mean_residual(generator):
    prediction = torch.randn(5, 2, generator=generator, requires_grad=True)
    target = torch.randn(5, 2, generator=generator)
    loss = HalfMSELoss()(prediction, target)
    loss.backward()
    residual = (prediction - target).detach().numpy()
    assert loss.item() == pytest.approx(0.5 * np.mean(residual**2), rel=1e-12)
    np.testing.assert_allclose(prediction.grad.numpy(), residual / residual.size, rtol=1e-12)
