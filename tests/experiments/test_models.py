"""Networks of the experiments, and their loss."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from adjoint_meta.experiments.models import ACTIVATIONS, MLP, HalfMSELoss, Imported, head, mlp


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


def test_an_mlp_takes_images_flattened():
    torch.set_default_dtype(torch.float32)
    model = MLP(width=5, depth=1).build((1, 4, 4), 3, seed=2)
    x = torch.rand(7, 1, 4, 4)
    assert torch.equal(model(x), mlp(16, 5, 1, 3, seed=2)(x.flatten(1)))


def test_the_head_is_the_module_of_that_name_or_the_last_with_parameters():
    assert head(mlp(2, 4, 2, 1)) == ["4.*"]
    named = nn.ModuleDict({"head": nn.Linear(2, 2), "features": nn.Linear(2, 2)})
    assert head(named) == ["head.*"]
    assert head(nn.ModuleDict({"head": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})) == ["head.*"]
    with pytest.raises(ValueError, match="no parameters"):
        head(nn.ReLU())


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def wide(inputs, outputs, factor=1):\n"
        "    return nn.Linear(inputs[0], factor * outputs)\n"
        "def nothing(inputs, outputs):\n"
        "    return None\n"
    )


def test_a_module_of_ones_own_is_imported_and_seeded(own):
    before = torch.get_rng_state()
    net = Imported("own_nets:wide", {"factor": 3})
    one, same, other = (net.build((4,), 2, seed=seed) for seed in (1, 1, 2))
    assert one.weight.shape == (6, 4) and torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.weight, same.weight) and not torch.equal(one.weight, other.weight)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no_such_package:Net", {}, "cannot be imported .*no_such_package.* expected package.module:function"),
        ("own_nets:narrow", {}, "cannot be imported .*narrow"),
        ("own_nets:nothing", {}, "should return a torch.nn.Module, got NoneType"),
        ("own_nets:wide", {"depth": 2}, r"should take \(shape of an input, number of outputs.*depth"),
    ],
)
def test_what_cannot_be_a_network_is_refused(own, name, options, message):
    with pytest.raises(ValueError, match=message):
        Imported(name, options).build((4,), 2, seed=0)
