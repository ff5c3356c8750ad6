"""Convolutions with weights of their own for every task, against torch's, one task at a time."""

from functools import partial

import pytest
import torch
from references import relative
from torch import nn
from torch.autograd import gradgradcheck
from torch.func import functional_call, vmap
from torch.nn import functional

from adjoint_meta import MAML, AdjointMAML, Batch, MetaLearner, TaskBatch
from adjoint_meta import convolution as module
from adjoint_meta.closed_forms import ClosedForms

TASKS = 2
# Dimensions of the image, size, kernel, channels in and out, and the options.
CASES = {
    "plain": ((5, 6), (3, 3), 2, 3, {}),
    "strided": ((6, 5), (3, 2), 1, 3, {"stride": (2, 1), "padding": 1}),
    "dilated": ((7, 6), (3, 2), 1, 8, {"dilation": 2, "padding": (2, 0)}),
    "grouped": ((4, 4), (2, 2), 4, 6, {"groups": 2}),
    "depthwise": ((4, 4), (3, 3), 3, 3, {"groups": 3, "padding": 1}),
    "same": ((4, 5), (3, 3), 1, 9, {"padding": "same"}),
    "same, even kernel": ((4, 5), (2, 4), 1, 2, {"padding": "same"}),
    "valid": ((4, 5), (3, 3), 1, 2, {"padding": "valid"}),
    "without bias": ((4, 4), (3, 3), 1, 2, {"padding": [1], "bias": None}),
    "1d": ((7,), (3,), 2, 2, {"stride": 2, "padding": 1}),
    "3d": ((3, 4, 3), (2, 2, 2), 1, 2, {"padding": 1}),
}
# torch says of an even kernel that it copies the input, which is what we do.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
FUNCTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def tensors(name, generator):
    size, kernel, channels, outputs, options = CASES[name]

    def draw(*shape):
        return torch.randn(TASKS, *shape, generator=generator).requires_grad_()

    x, w = draw(2, channels, *size), draw(outputs, channels // options.get("groups", 1), *kernel)
    return (x, w) if "bias" in options else (x, w, draw(outputs))


def of_case(name, *tensors):
    """The convolution of one task."""
    size, *_, options = CASES[name]
    options = {key: value for key, value in options.items() if key != "bias"}
    return FUNCTIONS[len(size)](*tensors, **options)


def closed(function, way=0, dims=0):
    def batched(*tensors):
        with ClosedForms(lambda name, ways: way):
            return vmap(function, dims)(*tensors)

    return batched


def each(function):
    return lambda *tensors: torch.stack([function(*task) for task in zip(*tensors, strict=True)])


def derivatives(function, inputs, v):
    """The value, the gradients of a loss, and their products with v, which differ for both of two ways alike."""
    value = function(*inputs)
    gradients = torch.autograd.grad(value.sin().sum(), inputs, create_graph=True)
    return value, *gradients, *torch.autograd.grad(gradients, inputs, v)


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_one_task_at_a_time(name, way, generator):
    inputs = tensors(name, generator)
    v = [torch.randn(tensor.shape, generator=generator) for tensor in inputs]
    expected = derivatives(each(partial(of_case, name)), inputs, v)
    for found, value in zip(derivatives(closed(partial(of_case, name), way), inputs, v), expected, strict=True):
        assert relative(found.detach(), value.detach()) < 1e-12


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_agree_with_finite_differences(name, way, generator):
    assert gradgradcheck(closed(partial(of_case, name), way), tensors(name, generator), fast_mode=True)


@pytest.mark.parametrize("name", ["plain", "grouped", "strided", "without bias"])
def test_a_tangent_through_the_gradient_is_the_same_product(name, generator):
    inputs = tensors(name, generator)
    v = tuple(torch.randn(tensor.shape, generator=generator) for tensor in inputs)
    function = closed(partial(of_case, name))
    gradient = torch.func.grad(lambda *t: function(*t).sin().sum(), argnums=tuple(range(len(inputs))))
    still = tuple(tensor.detach() for tensor in inputs)
    for tangents in (v, (torch.zeros_like(v[0]), *v[1:])):
        _, found = torch.func.jvp(gradient, still, tangents)
        expected = derivatives(each(partial(of_case, name)), inputs, tangents)[-len(inputs) :]
        assert all(relative(got, value) < 1e-12 for got, value in zip(found, expected, strict=True))


def test_tangents_of_some_inputs_alone(generator):
    x, w, b = (tensor.detach() for tensor in tensors("plain", generator))
    for moving in range(3):

        def along(tensor, moving=moving):
            return [tensor if i == moving else still for i, still in enumerate((x, w, b))]

        at = (x, w, b)[moving]
        found, expected = (
            torch.func.jvp(lambda t, f=f: f(*along(t)), (at,), (at.cos(),))[1]
            for f in (closed(partial(of_case, "plain")), each(partial(of_case, "plain")))
        )
        assert relative(found, expected) < 1e-13


@pytest.mark.parametrize("dims", [(0, None, None), (None, 0, 0), (0, 0, None), (1, 0, None), (None, None, 0)])
def test_what_tasks_share_is_given_once(dims, generator):
    inputs = tensors("grouped", generator)
    inputs = [t.detach() if dim is not None else t.detach()[0] for t, dim in zip(inputs, dims, strict=True)]
    inputs = [
        (t.mT if False else t.transpose(0, dim or 0)).requires_grad_() for t, dim in zip(inputs, dims, strict=True)
    ]
    v = [torch.randn(tensor.shape, generator=generator) for tensor in inputs]

    def loop(*tensors):
        rows = [
            [t if dim is None else t.select(dim, task) for t, dim in zip(tensors, dims, strict=True)]
            for task in range(TASKS)
        ]
        return torch.stack([of_case("grouped", *row) for row in rows])

    expected = derivatives(loop, inputs, v)
    for found, value in zip(
        derivatives(closed(partial(of_case, "grouped"), 0, dims), inputs, v), expected, strict=True
    ):
        assert relative(found.detach(), value.detach()) < 1e-12


def test_gradients_within_a_task_are_batched_too(generator):
    x, w, b = (tensor.detach() for tensor in tensors("plain", generator))

    def slope(x, w, b):
        return torch.func.grad(lambda x: of_case("plain", x, w, b).sin().sum())(x)

    assert relative(closed(slope)(x, w, b), each(slope)(x, w, b)) < 1e-13
    products = closed(lambda x, w, b: torch.func.grad(lambda w: slope(x, w, b).cos().sum())(w))(x, w, b)
    expected = [torch.func.grad(lambda w, i=i: slope(x[i], w, b[i]).cos().sum())(w[i]) for i in range(TASKS)]
    assert relative(products, torch.stack(expected)) < 1e-13


def test_an_image_alone_is_one_point(generator):
    x, w, b = (tensor.detach() for tensor in tensors("plain", generator))
    one = partial(of_case, "plain")
    assert relative(closed(one)(x[:, 0], w, b), each(one)(x[:, 0], w, b)) < 1e-14


def test_an_input_without_gradient_costs_no_convolution(generator, monkeypatch):
    x, w, b = tensors("plain", generator)
    wanted = []
    real = module.Geometry.input_gradient
    monkeypatch.setattr(module.Geometry, "input_gradient", lambda *a: wanted.append(1) or real(*a))
    # Of an input with a gradient: its own, and in the second sweep those of both convolutions it went into.
    for inputs, expected in (((x.detach(), w, b), 0), ((x, w, b), 3)):
        wanted.clear()
        leaves = [tensor for tensor in inputs if tensor.requires_grad]
        value = closed(partial(of_case, "plain"))(*inputs)
        gradients = torch.autograd.grad(value.sin().sum(), leaves, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves)
        assert len(wanted) == expected


def test_what_the_closed_forms_do_not_cover_is_torchs(generator):
    x, w, _ = (tensor.detach() for tensor in tensors("plain", generator))
    for a, b in ((x.half(), w.half()), (torch.complex(x, x), torch.complex(w, w))):
        assert torch.equal(closed(functional.conv2d)(a, b), vmap(functional.conv2d)(a, b))
    with pytest.raises(RuntimeError, match="padding='same' is not supported for strided"):
        closed(partial(functional.conv2d, stride=2, padding="same"))(x, w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = x.float(), w.float()
        found, expected = closed(functional.conv2d)(*single), vmap(functional.conv2d)(*single)
    assert found.dtype == expected.dtype and torch.equal(found, expected)


# The choice


@pytest.mark.parametrize("name", ["dilated", "same"])
def test_a_thin_input_gives_a_choice_that_is_asked_for_by_shape(name, generator):
    names = []

    def choose(name, ways):
        names.append(name)
        first, second = (way() for way in ways)
        assert relative(second, first) < 1e-13
        return 1

    for tasks in (TASKS, 1, TASKS):  # one task has nothing to choose, and their number is no part of the shape
        inputs = [tensor.detach()[:tasks].requires_grad_(i > 0) for i, tensor in enumerate(tensors(name, generator))]
        with ClosedForms(choose):
            value = vmap(partial(of_case, name))(*inputs)
        torch.autograd.grad(value.sum(), inputs[1])
    assert len(names) == 4 and len(set(names)) == 2


def test_patches_that_would_fill_the_memory_are_no_choice(generator):
    def never(name, ways):
        raise AssertionError(name)

    with ClosedForms(never):
        vmap(partial(of_case, "plain"))(*tensors("plain", generator))


# Networks


@pytest.fixture
def net(generator):
    made = nn.Sequential(
        nn.Conv2d(1, 9, 3, padding=1),
        nn.BatchNorm2d(9, track_running_stats=False),
        nn.Softplus(),
        nn.AvgPool2d(2),
        nn.Conv2d(9, 2, 2),
        nn.Flatten(),
        nn.Linear(2, 3),
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return made


@pytest.fixture
def images(generator):
    def batch():
        return Batch(torch.randn(3, 5, 1, 4, 4, generator=generator), torch.randint(3, (3, 5), generator=generator))

    return TaskBatch(batch(), batch())


def unrolled(model, tasks, steps, rate):
    """Reverse mode through all inner steps, task by task, on torch's own convolutions and batch norms."""
    named = dict(model.named_parameters())
    total = 0.0
    for i in range(len(tasks)):
        weights = dict(named)
        for _ in range(steps):
            loss = functional.cross_entropy(functional_call(model, weights, (tasks.support.x[i],)), tasks.support.y[i])
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {name: p - rate * g for (name, p), g in zip(weights.items(), slopes, strict=True)}
        outer = functional_call(model, weights, (tasks.query.x[i],))
        total = total + functional.cross_entropy(outer, tasks.query.y[i]) / len(tasks)
    return dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "eager"},
        {"backend": "eager", "mode": "forward_over_reverse"},
        {"backend": "eager", "chunk_size": 2},
        {"backend": "compile"},
    ],
    ids=str,
)
def test_the_meta_gradient_of_a_conv_net_is_that_of_unrolling(net, images, options, monkeypatch):
    import torch._inductor

    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: graph)
    learner = MetaLearner(net, nn.CrossEntropyLoss(), MAML(3, 0.1), **options)
    found, expected = learner.meta_gradient(images).grad, unrolled(net, images, 3, 0.1)
    whole = torch.cat([value.flatten() for value in expected.values()])
    for name, value in expected.items():
        # The bias before the batch norm moves nothing: its gradient is rounding.
        assert (found[name] - value).norm() < 1e-12 * whole.norm(), name
    assert learner.engine.replayed == 0 or options["backend"] == "compile"


def test_a_run_goes_on_with_the_choices_it_made(net, images):
    def learner():
        return MetaLearner(net, nn.CrossEntropyLoss(), AdjointMAML(0.2, "heun", 2), backend="eager")

    first, second = learner(), learner()
    expected = first.meta_gradient(images).grad
    chosen = {name: index for name, index in first.engine.state().items() if name.startswith(("x * w", "gradient"))}
    assert len(chosen) == 2
    second.engine.load(first.engine.state())
    found = second.meta_gradient(images).grad
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert second.engine.state() == first.engine.state()
    # The other choice is taken as well, where a state says so.
    third = learner()
    third.engine.load({name: 1 - index for name, index in chosen.items()})
    for name, value in third.meta_gradient(images).grad.items():
        assert torch.allclose(value, expected[name], rtol=1e-10, atol=1e-13)
    assert {name: third.engine.state()[name] for name in chosen} != chosen
