"""Batch norm by the points at hand, against torch's, one task at a time."""

import pytest
import torch
from references import relative
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.nn import functional

from adjoint_meta.closed_forms import ClosedForms

SHAPES = {"rows": (4, 3), "series": (4, 3, 2), "images": (3, 2, 2, 3)}


def normalise(x, weight=None, bias=None):
    return functional.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-3)


def closed(function=normalise, dims=0):
    def batched(*tensors):
        with ClosedForms():
            return vmap(function, dims)(*tensors)

    return batched


def each(*tensors):
    return torch.stack([normalise(*task) for task in zip(*tensors, strict=True)])


def tensors(shape, generator, tasks=2):
    x = 1 + 2 * torch.randn(tasks, *shape, generator=generator)
    weight, bias = (torch.randn(tasks, shape[1], generator=generator) for _ in range(2))
    return [tensor.requires_grad_() for tensor in (x, weight, bias)]


def derivatives(function, inputs, v):
    value = function(*inputs)
    gradients = torch.autograd.grad(value.sin().sum(), inputs, create_graph=True)
    return value, *gradients, *torch.autograd.grad(gradients, inputs, v)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
def test_values_and_derivatives_are_those_of_one_task_at_a_time(name, affine, generator):
    inputs = tensors(SHAPES[name], generator)[: 3 if affine else 1]
    v = [torch.randn(tensor.shape, generator=generator) for tensor in inputs]
    expected = derivatives(each, inputs, v)
    for found, value in zip(derivatives(closed(), inputs, v), expected, strict=True):
        assert relative(found.detach(), value.detach()) < 1e-12
    assert gradcheck(closed(), inputs) and gradgradcheck(closed(), inputs)


def test_a_tangent_through_the_gradient_is_the_same_product(generator):
    inputs = tensors(SHAPES["images"], generator)
    v = tuple(torch.randn(tensor.shape, generator=generator) for tensor in inputs)
    gradient = torch.func.grad(lambda *t: closed()(*t).sin().sum(), argnums=(0, 1, 2))
    _, found = torch.func.jvp(gradient, tuple(tensor.detach() for tensor in inputs), v)
    for got, value in zip(found, derivatives(each, inputs, v)[-3:], strict=True):
        assert relative(got, value.detach()) < 1e-12


def test_shared_weights_serve_all_tasks(generator):
    x, weight, bias = (tensor.detach() for tensor in tensors(SHAPES["images"], generator))
    inputs = [x.requires_grad_(), weight[0].requires_grad_(), bias[0].requires_grad_()]
    v = [torch.randn(tensor.shape, generator=generator) for tensor in inputs]
    expected = derivatives(lambda x, w, b: torch.stack([normalise(task, w, b) for task in x]), inputs, v)
    for found, value in zip(derivatives(closed(dims=(0, None, None)), inputs, v), expected, strict=True):
        assert relative(found.detach(), value.detach()) < 1e-12


def test_gradients_within_a_task_are_batched_too(generator):
    x, weight, bias = (tensor.detach() for tensor in tensors(SHAPES["images"], generator))

    def slope(x, weight, bias):
        return torch.func.grad(lambda x: normalise(x, weight, bias).sin().sum())(x)

    expected = torch.stack([slope(*task) for task in zip(x, weight, bias, strict=True)])
    assert relative(closed(slope)(x, weight, bias), expected) < 1e-13


def test_third_derivatives_are_right_too(generator):
    inputs = tensors(SHAPES["series"], generator)
    thirds = []

    def formula(x, weight, bias):  # torch's own has no third derivative
        mean, variance = x.mean(dim=(1, 3), keepdim=True), x.var(dim=(1, 3), keepdim=True, correction=0)
        return (x - mean) / (variance + 1e-3).sqrt() * weight[:, None, :, None] + bias[:, None, :, None]

    for function in (closed(), formula):
        value = function(*inputs).sin().sum()
        for _ in range(2):
            value = sum(g.square().sum() for g in torch.autograd.grad(value, inputs, create_graph=True))
        thirds.append(torch.autograd.grad(value, inputs))
    assert all(relative(found, expected) < 1e-11 for found, expected in zip(*thirds, strict=True))


def test_statistics_that_are_kept_and_single_numbers_are_torchs(generator):
    x = torch.randn(2, 4, 3, generator=generator)
    mean, variance = torch.randn(3, generator=generator), torch.rand(3, generator=generator)

    def kept(x):
        return functional.batch_norm(x, mean, variance)

    assert torch.equal(closed(kept)(x), vmap(kept)(x))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        closed()(x[:, :1])
