"""Convolutional networks of the few-shot papers: shapes by hand, parameters by count, weights from the seed."""

import math

import pytest
import torch
from torch import nn

from adjoint_meta import ANIL, MAML, Batch, MetaLearner, TaskBatch
from adjoint_meta.experiments.config import NETWORKS
from adjoint_meta.experiments.conv_nets import Conv4, ResNet12
from adjoint_meta.experiments.models import head


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("net", "inputs", "features"),
    [
        (Conv4(64, "stride"), (1, 28, 28), 64 * 2 * 2),  # 28 → 14 → 7 → 4 → 2
        (Conv4(64, "pool"), (1, 28, 28), 64 * 1 * 1),  # 28 → 14 → 7 → 3 → 1
        (Conv4(32, "pool"), (3, 84, 84), 32 * 5 * 5),  # 84 → 42 → 21 → 10 → 5
        (Conv4(8, "stride"), (3, 32, 20), 8 * 2 * 2),
        (ResNet12((8, 8, 16, 24)), (3, 84, 84), 24),
    ],
)
def test_the_head_reads_as_many_features_as_papers_say(net, inputs, features):
    model = net.build(inputs, 5, seed=0).to(torch.float32)
    assert model.head.in_features == features and model.head.out_features == 5
    assert model(torch.rand(6, *inputs, dtype=torch.float32)).shape == (6, 5)


def test_parameters_are_counted_by_hand():
    """Conv4-32 of MAML on mini-ImageNet for 5 ways has 32,901 parameters."""
    block = 32 * 9 * 32 + 32 + 2 * 32
    assert count(Conv4(32, "pool").build((3, 84, 84), 5, 0)) == 3 * 9 * 32 + 96 + 3 * block + 801 - 1 + 4 * 801 + 1
    assert count(Conv4(32, "pool").build((3, 84, 84), 5, 0)) == 32_901


def test_resnet12_has_12_convolutions_on_its_path_and_the_published_size():
    """8.0 million parameters before the head, 64-128-256-512; with 64-160-320-640, 12.4 (Lee et al. 2019)."""
    model = ResNet12().build((3, 84, 84), 5, 0)
    assert sum(layer.kernel_size == (3, 3) for layer in model.modules() if isinstance(layer, nn.Conv2d)) == 12
    assert round(count(model.features) / 1e6, 1) == 8.0
    assert round(count(ResNet12((64, 160, 320, 640)).build((3, 84, 84), 5, 0).features) / 1e6, 1) == 12.4


@pytest.mark.parametrize("net", [Conv4(4), ResNet12((4, 4))])
def test_weights_are_a_function_of_the_seed_alone(net):
    torch.manual_seed(1)
    one = net.build((1, 16, 16), 3, seed=5)
    torch.manual_seed(2)
    other = net.build((1, 16, 16), 3, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(one.head.weight, net.build((1, 16, 16), 3, seed=6).head.weight)
    for layer in one.modules():
        if isinstance(layer, nn.Conv2d):
            bound = math.sqrt(6 / layer.weight[0].numel())
            assert 0.8 * bound < layer.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("net", "inputs", "message"),
    [
        (Conv4(4, "pool"), (1, 12, 28), "images of 16×16 or more, got .12, 28."),
        (Conv4(4), (7,), r"needs images \[channels, height, width\], got inputs of shape \[7\]"),
        (ResNet12(), (3, 8, 8), "4 blocks need images of 16 or more"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(net, inputs, message):
    with pytest.raises(ValueError, match=message):
        net.build(inputs, 5, seed=0)


@pytest.mark.parametrize(
    ("kind", "options"), [(Conv4, {"filters": 0}), (Conv4, {"downsample": "max"}), (ResNet12, {"widths": ()})]
)
def test_options_are_checked(kind, options):
    with pytest.raises(ValueError, match=r"must be at least 1|unknown downsample"):
        kind(**options)


@pytest.mark.parametrize("name", NETWORKS)
def test_anil_on_a_networks_head_is_reverse_mode_through_its_steps(name, generator):
    """Exact for θ (the head) and ψ (all before it), batch norm and residual blocks included."""
    options = {"conv4": {"filters": 3}, "resnet12": {"widths": (3, 4)}, "mlp": {"width": 5, "depth": 1}}[name]
    model = NETWORKS[name](**options).build((1, 8, 8), 3, seed=0).double()

    def points():
        return Batch(torch.rand(2, 6, 1, 8, 8, generator=generator), torch.arange(3).repeat(2, 2))

    tasks = TaskBatch(points(), points())
    (pattern,) = head(model)
    found = MetaLearner(model, nn.CrossEntropyLoss(), ANIL(steps=3, inner_lr=0.4), adapt=pattern).meta_gradient(tasks)

    parameters = dict(model.named_parameters())
    adapted = [key for key in parameters if key.startswith(pattern[:-1])]
    total = 0.0
    for task in range(2):
        weights = dict(parameters)
        for _ in range(3):
            scores = torch.func.functional_call(model, weights, (tasks.support.x[task],))
            loss = nn.functional.cross_entropy(scores, tasks.support.y[task])
            slopes = torch.autograd.grad(loss, [weights[key] for key in adapted], create_graph=True)
            weights |= {key: weights[key] - 0.4 * slope for key, slope in zip(adapted, slopes, strict=True)}
        scores = torch.func.functional_call(model, weights, (tasks.query.x[task],))
        total = total + nn.functional.cross_entropy(scores, tasks.query.y[task]) / 2
    expected = torch.autograd.grad(total, list(parameters.values()))
    for (key, _), gradient in zip(parameters.items(), expected, strict=True):
        # A convolution's bias before batch norm has no effect: both gradients are rounding of one.
        torch.testing.assert_close(found.grad[key], gradient, rtol=1e-9, atol=1e-12)


def test_anil_wants_to_know_the_head():
    model = Conv4(2).build((1, 16, 16), 3, seed=0)
    with pytest.raises(ValueError, match=r"ANIL learns what tasks share, .* such as adapt='head"):
        MetaLearner(model, nn.CrossEntropyLoss(), ANIL())
    assert isinstance(ANIL(), MAML)
