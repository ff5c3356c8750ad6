"""Points taken in parts, asked for or because memory runs out, against all of them at once."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from problems import case, mlp, regression
from references import relative
from torch import Tensor, nn

from adjoint_meta import MAML, AdjointMAML, Batch, ImplicitMAML, MetaLearner, Reptile, TaskBatch
from adjoint_meta.batched_model import BatchedModel, twice_differentiable
from adjoint_meta.curvature import MODES, Curvature
from adjoint_meta.evaluation import adam_curve, evaluate
from adjoint_meta.parameters import ParameterRows
from adjoint_meta.points import parts

ROUNDING = 1e-13


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 100, None])
def test_parts_are_all_points_once_and_equal_to_one(size):
    found = list(parts(7, size))
    assert [point for points, _ in found for point in range(7)[points]] == list(range(7))
    lengths = [points.stop - points.start for points, _ in found]
    assert max(lengths) - min(lengths) <= 1 and max(lengths) <= (size or 7)
    assert [share for _, share in found] == [length / 7 for length in lengths]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("adapt", [None, "2.*"])
@pytest.mark.parametrize(("point_chunk", "chunk_size"), [(1, None), (2, None), (3, 2), (4, 1), (7, None), (100, 3)])
def test_parts_change_nothing(mode, adapt, point_chunk, chunk_size, generator):
    found = case("mlp", generator, tasks=3, points=7)
    rows = ParameterRows(found.model, adapt)
    theta, psi = rows.read(found.model)
    phi = theta + 0.1 * torch.randn(3, theta.numel(), generator=generator)
    v = torch.randn(phi.shape, generator=generator)
    whole, apart = (
        Curvature(BatchedModel(found.model, found.loss, rows), mode, **options)
        for options in ({}, {"chunk_size": chunk_size, "point_chunk": point_chunk})
    )
    results = []
    for curvature in (whole, apart):
        with twice_differentiable():
            linear = curvature.linearise(phi, psi, found.points)
            gradient = linear.gradient
            results.append(
                [
                    curvature.losses(phi, psi, found.points),
                    *curvature.gradients(phi, psi, found.points, shared=True),
                    gradient,
                    *(part for _ in range(2) for part in (linear.product(v, keep=True)[1])),
                    linear.product(v)[0],
                    curvature.gauss_newton(phi, psi, found.points, v),
                    curvature.predict(phi, psi, found.points.x),
                ]
            )
    for expected, got in zip(*results, strict=True):
        assert torch.equal(got, expected) if expected.numel() == 0 else relative(got, expected) < ROUNDING
    assert vars(whole.evaluations) == vars(apart.evaluations)


class Scarce(nn.Module):
    """A network that runs out of memory with more points than ``most``, those of all tasks together."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most, self.met = network, most, 0

    def forward(self, x: Tensor) -> Tensor:
        whole = x
        while torch._C._functorch.is_functorch_wrapped_tensor(whole):
            whole = torch._C._functorch.get_unwrapped(whole)
        points = whole.numel() // x[0].numel()
        if points > self.most:
            raise torch.OutOfMemoryError(f"{points} points do not fit")
        self.met = max(self.met, points)
        return self.network(x)


def scarce(network: nn.Module, most: int, loss=nn.functional.mse_loss, method=None, **options) -> MetaLearner:
    method = method or MAML(2, 0.1)
    return MetaLearner(Scarce(network, most), loss, method, backend="eager", **options)


def uneven(generator: torch.Generator, points: int = 11) -> TaskBatch:
    """Tasks with more points in the query than in the support."""
    return TaskBatch(regression(generator, points=7).support, regression(generator, points=points).query)


METHODS = {
    "MAML": (MAML(3, 0.1), {"adapt": "network.2.*"}),
    "A-MAML": (AdjointMAML(0.3, "rk4", 2, adjoint="checkpointed", proximal=0.2, learn=("horizon", "rates")), {}),
    "adaptive": (AdjointMAML(0.5, "bosh3", rtol=1e-2), {"mode": "forward_over_reverse"}),
    "iMAML": (ImplicitMAML(2.0, steps=4, inner_lr=0.1, cg_steps=3, curvature="ggn"), {"adapt": "network.0.*"}),
    "Reptile": (Reptile(2, 0.1), {}),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("most", [2, 5, 10])
def test_a_task_that_does_not_fit_is_taken_in_parts(name, most, generator):
    network, tasks = mlp(generator), uneven(generator)
    method, options = METHODS[name]
    whole = scarce(network, 10**9, method=method, **options)
    learner = scarce(network, most, method=method, **options)
    expected = whole.meta_gradient(tasks)
    with pytest.warns(RuntimeWarning) as said:
        found = learner.meta_gradient(tasks)
    texts = [str(warning.message) for warning in said]
    assert texts[0] == "memory ran out with 3 tasks at a time; going on with chunk_size=2"
    assert "memory ran out with 11 points of one task at a time; going on with point_chunk=6" in texts
    assert learner.model.met <= most
    assert relative(found.loss, expected.loss) < 1e-12
    for key, value in {**expected.grad, **expected.hyper}.items():
        assert relative({**found.grad, **found.hyper}[key], value) < 1e-12
    assert found.stats["n_grad"] == expected.stats["n_grad"] and found.stats["n_hvp"] == expected.stats["n_hvp"]
    # What fits is known from now on: nothing is said again.
    assert relative(learner.query_losses(tasks), whole.query_losses(tasks)) < 1e-12
    phi = learner.adapt(tasks.support)
    assert relative(phi, whole.adapt(tasks.support)) < 1e-12
    assert relative(learner.predict(phi, tasks.query.x), whole.predict(phi, tasks.query.x)) < 1e-12


def test_evaluation_finds_parts_that_fit_by_itself(generator):
    network, tasks = mlp(generator), uneven(generator)
    whole = scarce(network, 10**9)
    for action in (
        lambda learner: evaluate(learner, tasks).after,
        lambda learner: learner.predict(learner.initial(3), tasks.query.x),
        lambda learner: learner.query_losses(tasks),
        lambda learner: torch.stack([value for _, value in adam_curve(learner, tasks, epochs=2, every=1)]),
    ):
        learner = scarce(network, 4)
        with pytest.warns(RuntimeWarning, match="memory ran out"):
            found = action(learner)
        assert relative(found, action(whole)) < 1e-12
        assert learner.model.met <= 4


def root_mean_square(prediction: Tensor, y: Tensor) -> Tensor:
    return (prediction - y).square().mean().sqrt()


def weighted(prediction: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(prediction, y, weight=torch.tensor([1.0, 2.0, 4.0]))


def classes(y: Tensor) -> Batch:
    x = torch.stack([torch.linspace(-1, 1, y.shape[1]), torch.linspace(0, 1, y.shape[1]) ** 2], dim=1)
    return Batch(x.repeat(len(y), 1, 1), y)


def sorted_classes() -> Batch:
    return classes(torch.tensor([0, 0, 0, 0, 1, 1, 1, 2]).repeat(3, 1))


def ignored_classes() -> Batch:
    # The task that is tried has no such target, but another one has.
    y = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2]).repeat(3, 1)
    y[2, 3] = -100
    return classes(y)


class Centred(nn.Module):
    """A linear model of inputs from which their mean over the points is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x - x.mean(dim=0))


NOT_MEANS = {
    "batch norm": (lambda g: case("batch norm", g).model, nn.functional.mse_loss, None, "treat points one by one"),
    "centred": (lambda g: Centred(), nn.functional.mse_loss, None, "treat points one by one"),
    "attention": (lambda g: case("attention", g).model, nn.functional.mse_loss, None, "treat points one by one"),
    "sum": (mlp, nn.MSELoss(reduction="sum"), None, "the loss is not a mean over points.*reduction='mean'"),
    "root": (mlp, root_mean_square, None, "the loss is not a mean over points"),
    "weights": (lambda g: mlp(g, outputs=3), weighted, sorted_classes, "the loss is not a mean over points"),
    "ignored": (
        lambda g: mlp(g, outputs=3),
        nn.CrossEntropyLoss(),
        ignored_classes,
        "not a mean over points: some targets are -100",
    ),
}


@pytest.mark.parametrize("name", NOT_MEANS)
def test_what_is_no_mean_over_points_is_refused(name, generator):
    build, loss, points, reason = NOT_MEANS[name]
    network = build(generator)
    inputs = 4 if name == "attention" else 2
    batch = points() if points else regression(generator, points=8, inputs=inputs).support
    tasks = TaskBatch(batch, batch)
    plain = scarce(network, 10**9, loss)
    plain.meta_gradient(tasks)  # nothing is wrong with it where memory does for all points
    with pytest.warns(RuntimeWarning, match="chunk_size=1"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*chunk_size=2")
        with pytest.raises(torch.OutOfMemoryError, match=f"one task at a time, and .*{reason}.* points do not fit"):
            scarce(network, 7, loss).meta_gradient(tasks)
    with pytest.raises(ValueError, match=reason):
        scarce(network, 10**9, loss, point_chunk=4).meta_gradient(tasks)
    scarce(network, 10**9, loss, point_chunk=8).meta_gradient(tasks)  # no parts, no question


def test_batch_statistics_that_mix_predictions_are_refused(generator):
    learner = scarce(case("batch norm", generator).model, 10**9, point_chunk=2)
    with pytest.raises(ValueError, match="treat points one by one"):
        learner.predict(learner.initial(3), regression(generator).query.x)


@pytest.mark.parametrize("adapt", [None, "0.*"])
def test_a_last_layer_of_zeros_hides_nothing(adapt, generator):
    found = case("batch norm", generator)
    with torch.no_grad():
        for parameter in found.model[-1].parameters():
            parameter.zero_()
    learner = MetaLearner(found.model, found.loss, MAML(1, 0.1), adapt=adapt, backend="eager", point_chunk=2)
    with pytest.raises(ValueError, match="treat points one by one"):
        learner.meta_gradient(TaskBatch(found.points, found.points))


@pytest.mark.parametrize("name", ["linear", "conv2d", "layer norm", "group norm", "frozen", "classifier", "embedding"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_models_that_treat_points_one_by_one_pass(name, dtype, generator):
    found = case(name, generator, points=40)
    points = found.points.to(dtype=dtype)
    whole, apart = (
        MetaLearner(found.model.to(dtype), found.loss, MAML(1, 0.1), backend="eager", **options)
        for options in ({}, {"point_chunk": 7})
    )
    tasks = TaskBatch(points, points)
    assert relative(apart.query_losses(tasks), whole.query_losses(tasks)) < 1e3 * torch.finfo(dtype).eps


def test_a_point_that_does_not_fit_is_an_error(generator):
    learner = scarce(mlp(generator), 0)
    with warnings.catch_warnings(), pytest.raises(torch.OutOfMemoryError, match="points do not fit"):
        warnings.simplefilter("ignore")
        learner.adapt(regression(generator).support)


def test_data_that_are_not_finite_are_blamed_as_ever(generator):
    tasks = uneven(generator)
    tasks.support.x[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"support\.x holds 1 value that is NaN"):
        scarce(mlp(generator), 10**9, point_chunk=2).meta_gradient(tasks)


def test_wrong_sizes_are_refused(generator):
    for value, kind, message in (
        (0, ValueError, "point_chunk must be at least 1, got 0"),
        (2.0, TypeError, "point_chunk must be a whole number"),
    ):
        with pytest.raises(kind, match=message):
            scarce(mlp(generator), 1, point_chunk=value)


@pytest.mark.parametrize("loss", [partial(nn.functional.cross_entropy, ignore_index=0), weighted])
def test_every_task_of_every_batch_is_looked_at(loss, generator):
    network = mlp(generator, outputs=3)
    learner = MetaLearner(network, loss, MAML(2, 0.1), backend="eager", point_chunk=3)
    x = torch.randn(2, 8, 2, generator=generator)
    fine = torch.ones(2, 8, dtype=torch.long)  # one class alone: weights divide out, nothing is left out
    learner.meta_gradient(TaskBatch(Batch(x, fine), Batch(x, fine)))
    mixed = fine.clone()
    mixed[1, 5:] = torch.tensor([0, 2, 2])
    with pytest.raises(ValueError, match="not a mean over points"):
        learner.meta_gradient(TaskBatch(Batch(x, mixed), Batch(x, fine)))


def test_a_model_is_looked_at_again_in_another_mode(generator):
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 1)

        def forward(self, x):
            y = self.inner(x)
            return y - y.mean(dim=0) if self.training else y

    learner = MetaLearner(Mixing().eval(), nn.functional.mse_loss, MAML(1, 0.1), backend="eager", point_chunk=3)
    learner.meta_gradient(regression(generator, points=8))
    learner.train()
    with pytest.raises(ValueError, match="treat points one by one"):
        learner.meta_gradient(regression(generator, points=8))
