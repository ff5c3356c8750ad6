"""A model in half precision between float32 rows, against float64 and against plain loops under torch.autocast."""

from __future__ import annotations

import pytest
import torch
from problems import case, drawn, regression
from references import relative
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from adjoint_meta import MAML, AdjointMAML, ImplicitMAML, MetaLearner, TaskBatch
from adjoint_meta.linearisation import MODES
from adjoint_meta.mixed_precision import HALVES, check_autocast

# Distance of neighbouring numbers, relative.
ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")

METHODS = {
    "MAML": MAML(3, 0.1),
    "A-MAML": AdjointMAML(0.3, "rk4", 2, adjoint="checkpointed"),
    "adaptive": AdjointMAML(0.3, "bosh3", rtol=1e-2),
    "iMAML": ImplicitMAML(2.0, steps=4, inner_lr=0.1, cg_steps=3),
}
every_half = pytest.mark.parametrize("half", HALVES)
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture
def tasks(generator) -> TaskBatch:
    return regression(generator, points=20).to(dtype=torch.float32)


@pytest.fixture
def model(generator) -> nn.Module:
    return drawn(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), generator).float()


def learner(model: nn.Module, name: str, half: torch.dtype | None, **options) -> MetaLearner:
    return MetaLearner(model, nn.MSELoss(), METHODS[name], autocast=half, **{"backend": "eager", **options})


def flat(found) -> torch.Tensor:
    return torch.cat([part.flatten() for part in found.grad.values()])


@every_half
@every_method
def test_the_meta_gradient_is_that_of_float64_to_half_precision(model, tasks, name, half):
    found = learner(model, name, half).meta_gradient(tasks)
    single = learner(model, name, None).meta_gradient(tasks)
    exact = learner(model.double(), name, None).meta_gradient(tasks.to(dtype=torch.float64))
    assert {part.dtype for part in (found.loss, *found.grad.values())} == {torch.float32}
    assert relative(flat(single).double(), flat(exact)) < 1e-5
    # Some ten roundings on the way to a prediction and back; and rounded it was.
    error = relative(flat(found).double(), flat(exact))
    assert ULP[half] / 100 < error < 10 * ULP[half]


@every_half
def test_it_is_as_exact_as_reverse_mode_through_plain_loops_under_autocast(model, tasks, half):
    parameters = {name: value.detach().requires_grad_() for name, value in model.named_parameters()}

    def loss(weights, x, y):
        with torch.autocast("cpu", dtype=half):
            prediction = functional_call(model, weights, (x,))
        return nn.functional.mse_loss(prediction.float(), y)

    losses = []
    for i in range(len(tasks)):
        weights = dict(parameters)
        for _ in range(3):
            slopes = torch.autograd.grad(
                loss(weights, tasks.support.x[i], tasks.support.y[i]), list(weights.values()), create_graph=True
            )
            weights = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), slopes, strict=True)}
        losses.append(loss(weights, tasks.query.x[i], tasks.query.y[i]))
    plain = torch.cat(
        [part.flatten() for part in torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))]
    )
    found = flat(learner(model, "MAML", half).meta_gradient(tasks))
    exact = flat(learner(model.double(), "MAML", None).meta_gradient(tasks.to(dtype=torch.float64)))
    # One task at a time rounds at other places than all of them; neither is the better for it.
    ours, theirs = (relative(gradient.double(), exact) for gradient in (found, plain))
    assert theirs / 3 < ours < 3 * theirs


class Products(TorchDispatchMode):
    """Notes the dtypes of all matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__.startswith(PRODUCTS):
            self.dtypes += [arg.dtype for arg in args if isinstance(arg, torch.Tensor)]
        return made


@pytest.mark.parametrize("name", ["mlp", "conv2d", "transformer"])
def test_products_forward_backward_and_twice_backward_are_in_half_precision(name, generator):
    found = case(name, generator)
    points = found.points.to(dtype=torch.float32)
    seen: list[torch.dtype] = []

    def loss(prediction, y):
        seen.append(prediction.dtype)
        return found.loss(prediction, y)

    half = MetaLearner(found.model.float(), loss, MAML(1, 0.1), backend="eager", autocast=torch.bfloat16)
    half.meta_gradient(TaskBatch(points, points))  # at first the probe evaluates one task as it is
    seen.clear()
    with Products() as products:
        result = half.meta_gradient(TaskBatch(points, points))
    assert set(products.dtypes) == {torch.bfloat16}
    assert set(seen) == {torch.float32}
    assert all(bool(torch.isfinite(part).all()) for part in result.grad.values())


@every_method
def test_both_modes_agree(model, tasks, name):
    found, expected = (flat(learner(model, name, torch.bfloat16, mode=mode).meta_gradient(tasks)) for mode in MODES)
    # The second derivative takes another way, with roundings of its own.
    assert relative(found, expected) < 2 * ULP[torch.bfloat16]


@every_half
@pytest.mark.parametrize("name", ["MAML", "iMAML"])
def test_a_trace_is_the_eager_engine(model, tasks, name, half, monkeypatch):
    # Replayed without a compiler, which would take seconds for each.
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: graph)
    compiled = learner(model, name, half, backend="compile")
    found = compiled.meta_gradient(tasks)
    assert compiled.engine.replayed > 0
    assert relative(flat(found), flat(learner(model, name, half).meta_gradient(tasks))) < 1e-5


def test_everything_that_is_returned_is_float32(model, tasks):
    half, single = (learner(model, "MAML", dtype) for dtype in (torch.bfloat16, None))
    phi = half.adapt(tasks.support)
    for found, expected in (
        (phi, single.adapt(tasks.support)),
        (half.predict(phi, tasks.query.x), single.predict(phi, tasks.query.x)),
        (half.query_losses(tasks), single.query_losses(tasks)),
    ):
        assert found.dtype == torch.float32
        assert 1e-6 < relative(found, expected) < 10 * ULP[torch.bfloat16]


def test_parts_of_points_are_tried_in_single_precision(generator):
    # To half precision the statistics of a part of many points may well be those of the whole.
    found = case("batch norm", generator, points=16)
    points = found.points.to(dtype=torch.float32)
    options = {"autocast": torch.bfloat16, "point_chunk": 8, "backend": "eager"}
    with pytest.raises(ValueError, match="treat points one by one"):
        MetaLearner(found.model.float(), found.loss, MAML(1, 0.1), **options).adapt(points)
    found = case("layer norm", generator, points=16)
    points = found.points.to(dtype=torch.float32)
    whole, apart = (
        MetaLearner(found.model.float(), found.loss, MAML(1, 0.1), **{**options, "point_chunk": size})
        for size in (None, 5)
    )
    assert relative(apart.adapt(points), whole.adapt(points)) < ULP[torch.bfloat16]


def test_what_cannot_be_cast_is_refused(model, tasks):
    for value, kind, message in (
        (torch.float64, TypeError, "autocast must be torch.bfloat16, torch.float16 or None, got torch.float64"),
        ("bfloat16", TypeError, "autocast must be torch.bfloat16, torch.float16 or None, got 'bfloat16'"),
    ):
        with pytest.raises(kind, match=message):
            learner(model, "MAML", value)
    found = learner(model, "MAML", torch.bfloat16).double()
    double = tasks.to(dtype=torch.float64)
    for action in (
        lambda: found.meta_gradient(double),
        lambda: found.predict(found.initial(3), double.query.x),
        lambda: learner(model, "MAML", torch.bfloat16),
    ):
        with pytest.raises(TypeError, match=r"evaluates a float32 model .*but the model is torch\.float64"):
            action()
    with pytest.raises(ValueError, match=r"autocast=torch\.bfloat16 is not available on meta; use autocast=None"):
        check_autocast(torch.bfloat16, torch.empty(1, device="meta", dtype=torch.float32))
