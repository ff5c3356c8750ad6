"""What is timed is the same number: other packages' meta-gradients equal ours, and FLOPs are counted right."""

import pytest
import torch

from adjoint_meta.experiments.models import HalfMSELoss, mlp
from adjoint_meta.experiments.studies.contestants import CONTESTANTS, REFERENCES
from adjoint_meta.experiments.studies.limit import flops_of, kernels
from adjoint_meta.experiments.studies.workloads import WORKLOADS, Placed, flat, place, regression_tasks

CPU = torch.device("cpu")


@pytest.fixture
def tiny():
    """Two tasks of four points, float64."""
    return Placed(mlp(2, 5, 2, 1).double(), HalfMSELoss(), regression_tasks(2, points=4).to(dtype=torch.float64))


def gradient(name, placed, steps, backend="eager"):
    return {**CONTESTANTS, **REFERENCES}[name].prepare(placed, steps, backend)()


def finite_differences(placed, steps, direction, h=1e-5):
    """(J(θ + hd) − J(θ − hd)) / 2h of plain gradient descent by torch alone, task by task."""

    def outer(sign):
        model = mlp(2, 5, 2, 1).double()
        total = 0.0
        for task in range(len(placed.tasks)):
            start = flat(placed.parameters) + sign * h * direction
            torch.nn.utils.vector_to_parameters(start, model.parameters())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            support, query = placed.tasks.support, placed.tasks.query
            for _ in range(steps):
                optimizer.zero_grad()
                placed.loss(model(support.x[task]), support.y[task]).backward()
                optimizer.step()
            total += placed.loss(model(query.x[task]), query.y[task]).item() / len(placed.tasks)
        return total

    return (outer(1) - outer(-1)) / (2 * h)


def test_the_unrolled_gradient_is_that_of_gradient_descent(tiny):
    found = gradient("torch.func unrolled", tiny, 3)
    direction = torch.linspace(-1, 1, len(found))
    assert float(found @ direction) == pytest.approx(finite_differences(tiny, 3, direction), rel=1e-7)


@pytest.mark.parametrize("name", ["torch.func unrolled", "higher", "torchopt"])
def test_exact_peers_equal_ours_and_leave_the_model_as_it_was(tiny, name):
    package = CONTESTANTS[name].package
    if package != "torch":
        pytest.importorskip(package)
    ours = gradient("MAML", tiny, 4)
    before = flat(tiny.parameters)
    for _ in range(2):  # the second time from the same start
        torch.testing.assert_close(gradient(name, tiny, 4), ours, rtol=1e-9, atol=1e-12)
    assert all(isinstance(p, torch.nn.Parameter) for p in tiny.parameters)
    assert torch.equal(flat(tiny.parameters), before)


def test_flows_approach_the_tight_one(tiny):
    exact = gradient("flow", tiny, 20)
    for name in ("A-MAML rk4", "A-MAML auto", "torchdiffeq adjoint"):
        assert (gradient(name, tiny, 20) - exact).norm() < 1e-2 * exact.norm(), name
    off = (gradient("MAML", tiny, 20) - exact).norm()
    assert off > 10 * (gradient("A-MAML rk4", tiny, 20) - exact).norm(), "descent is not the flow"


def test_the_conv_net_is_the_same_to_all(tiny):
    """A small image network, so that batch norm, pooling and the class loss take part."""
    from adjoint_meta.experiments.studies.workloads import conv_net, image_tasks

    tasks = image_tasks(2, ways=3, side=16).to(dtype=torch.float64)
    small = Placed(conv_net(filters=3, ways=3, side=16).double(), torch.nn.CrossEntropyLoss(), tasks)
    ours = gradient("MAML", small, 2)
    torch.testing.assert_close(gradient("torch.func unrolled", small, 2), ours, rtol=1e-9, atol=1e-12)
    pytest.importorskip("higher")
    torch.testing.assert_close(gradient("higher", small, 2), ours, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_the_same_each_time(name):
    first, second = (place(name, 1, CPU, torch.float32) for _ in range(2))
    assert torch.equal(flat(first.parameters), flat(second.parameters))
    assert torch.equal(first.tasks.support.x, second.tasks.support.x)
    assert first.tasks.support.x.dtype == torch.float32
    assert first.model(first.tasks.query.x[0]).isfinite().all()


def test_flops_of_a_gradient_are_those_counted_by_hand():
    """Forward, gradient of the weights, and gradient of the inputs but for the first layer's."""
    placed = place("regression", 3, CPU, torch.float32)
    points, layers = 3 * 100, (2 * 32, 32 * 32, 32 * 1)
    assert flops_of(placed, "gradient") == 2 * points * (2 * sum(layers) + sum(layers[1:]))


def test_kernels_are_the_gradient_and_the_hessian_product(tiny):
    """Of the support loss at θ, against autograd on one task at a time."""
    call, product = kernels(tiny, "eager")
    found, (same, products) = call(), product()
    torch.testing.assert_close(same, found)
    for task in range(2):
        support = tiny.tasks.support
        loss = tiny.loss(tiny.model(support.x[task]), support.y[task])
        parts = torch.autograd.grad(loss, tiny.parameters, create_graph=True)
        torch.testing.assert_close(flat(parts), found[task])
        along = sum(part.sum() for part in parts)
        torch.testing.assert_close(
            flat(torch.autograd.grad(along, tiny.parameters, materialize_grads=True)), products.phi[task]
        )
