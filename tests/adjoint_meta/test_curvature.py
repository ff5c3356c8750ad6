"""Losses, gradients and curvature products of every task are those of dense derivatives, chunked or not."""

from __future__ import annotations

import pytest
import torch
from problems import CASES, Case, case, mlp, regression
from references import Split, derivatives, relative
from torch import nn

from adjoint_meta import Batch
from adjoint_meta.batched_model import BatchedModel, twice_differentiable
from adjoint_meta.curvature import MODES, Curvature
from adjoint_meta.parameters import ParameterRows

every_case = pytest.mark.parametrize("name", CASES)
every_mode = pytest.mark.parametrize("mode", MODES)

# A few hundred operations in float64.
ROUNDING = 1e-11


class Setup:
    """A case, its engine, a φ of its own for each task, and the dense derivatives there."""

    def __init__(self, found: Case, generator: torch.Generator, adapt: str | None = None, **options) -> None:
        rows = ParameterRows(found.model, adapt)
        self.curvature = Curvature(BatchedModel(found.model, found.loss, rows), **options)
        self.points = found.points
        theta, self.psi = rows.read(found.model)
        tasks = len(found.points)
        self.phi = theta + 0.1 * torch.randn(tasks, theta.numel(), generator=generator)
        self.v = torch.randn(tasks, theta.numel(), generator=generator)
        split = Split(found.model, adapt)
        self.dense = [
            derivatives(split, found.loss, self.phi[i], found.points.x[i], found.points.y[i]) for i in range(tasks)
        ]

    def stacked(self, name: str) -> torch.Tensor:
        return torch.stack([getattr(derivative, name) for derivative in self.dense])

    @property
    def at(self):
        return self.phi, self.psi, self.points


@every_case
def test_losses_and_gradients_of_every_task(name, generator):
    setup = Setup(case(name, generator), generator)
    with twice_differentiable():
        found = setup.curvature.gradients(*setup.at)
        assert relative(setup.curvature.losses(*setup.at), setup.stacked("loss")) < ROUNDING
    assert relative(found.losses, setup.stacked("loss")) < ROUNDING
    assert relative(found.phi, setup.stacked("gradient")) < ROUNDING
    assert not (found.losses.requires_grad or found.phi.requires_grad)


@every_case
@every_mode
def test_hessian_products_of_every_task(name, mode, generator):
    setup = Setup(case(name, generator), generator, mode=mode)
    with twice_differentiable():
        gradient, products = setup.curvature.linearise(*setup.at).product(setup.v)
    expected = torch.einsum("tij,tj->ti", setup.stacked("hessian"), setup.v)
    assert relative(products.phi, expected) < ROUNDING
    assert relative(gradient, setup.stacked("gradient")) < ROUNDING
    assert not (products.phi.requires_grad or gradient.requires_grad)


@every_case
def test_gauss_newton_products_of_every_task(name, generator):
    setup = Setup(case(name, generator), generator)
    with twice_differentiable():
        product = setup.curvature.gauss_newton(*setup.at, setup.v)
    assert relative(product, torch.einsum("tij,tj->ti", setup.stacked("gauss_newton"), setup.v)) < ROUNDING


@every_mode
@pytest.mark.parametrize(
    ("name", "adapt"), [("mlp", "2.*"), ("conv2d", "0.*"), ("frozen", "head.*"), ("transformer", "1.*")]
)
def test_products_and_gradients_in_the_shared_parameters(name, adapt, mode, generator):
    setup = Setup(case(name, generator), generator, adapt, mode=mode)
    found = case(name, torch.Generator().manual_seed(20240521))
    with twice_differentiable():
        _, products = setup.curvature.linearise(*setup.at).product(setup.v)
        gradients = setup.curvature.gradients(*setup.at, shared=True)
        unshared = setup.curvature.gradients(*setup.at)
    mixed = torch.einsum("tpq,tp->q", setup.stacked("mixed"), setup.v)
    assert relative(products.psi, mixed) < ROUNDING
    hessians = torch.einsum("tij,tj->ti", setup.stacked("hessian"), setup.v)
    assert relative(products.phi, hessians) < ROUNDING
    # ∂_ψ Σ L by autograd, one task after the other.
    split, psi = Split(found.model, adapt), setup.psi.clone().requires_grad_()
    losses = [
        found.loss(split.predict(setup.phi[i], psi, setup.points.x[i]), setup.points.y[i])
        for i in range(len(setup.points))
    ]
    assert relative(gradients.psi, torch.autograd.grad(sum(losses), psi)[0]) < ROUNDING
    assert torch.equal(unshared.psi, torch.zeros_like(psi))
    assert relative(unshared.phi, gradients.phi) < ROUNDING


@every_mode
@pytest.mark.parametrize("adapt", [None, "2.*"])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 5, 100])
def test_chunks_change_nothing(mode, adapt, chunk_size, generator):
    found = case("mlp", generator, tasks=5)
    whole, chunked = (
        Setup(found, torch.Generator().manual_seed(1), adapt, mode=mode, chunk_size=size) for size in (None, chunk_size)
    )
    for setup in (whole, chunked):
        setup.gradients = setup.curvature.gradients(*setup.at, shared=True)
        setup.gradient, setup.products = setup.curvature.linearise(*setup.at).product(setup.v)
        setup.ggn = setup.curvature.gauss_newton(*setup.at, setup.v)
        setup.losses = setup.curvature.losses(*setup.at)
    for a, b in (
        (whole.losses, chunked.losses),
        *zip(whole.gradients[:2], chunked.gradients[:2], strict=True),
        (whole.gradient, chunked.gradient),
        (whole.products.phi, chunked.products.phi),
        (whole.ggn, chunked.ggn),
    ):
        assert relative(a, b) < 1e-13
    if adapt:
        assert relative(whole.gradients.psi, chunked.gradients.psi) < 1e-13
        assert relative(whole.products.psi, chunked.products.psi) < 1e-13
    # One evaluation counts once, however many chunks it took.
    assert (
        vars(whole.curvature.evaluations)
        == vars(chunked.curvature.evaluations)
        == {
            "n_loss": 1,
            "n_grad": 1,
            "n_hvp": 2,
        }
    )


@every_mode
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_linearisation_serves_many_products(mode, chunk_size, generator):
    setup = Setup(case("mlp", generator), generator, mode=mode, chunk_size=chunk_size)
    linear = setup.curvature.linearise(*setup.at)
    for scale in (1.0, 2.0, -3.0):
        gradient, products = linear.product(scale * setup.v, keep=True)
        expected = torch.einsum("tij,tj->ti", setup.stacked("hessian"), scale * setup.v)
        assert relative(products.phi, expected) < ROUNDING
        assert relative(gradient, setup.stacked("gradient")) < ROUNDING
    assert setup.curvature.evaluations.n_hvp == 3


@every_mode
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_linearisation_knows_its_gradient_before_any_product(mode, chunk_size, generator):
    setup = Setup(case("mlp", generator), generator, mode=mode, chunk_size=chunk_size)
    linear = setup.curvature.linearise(*setup.at)
    assert vars(setup.curvature.evaluations) == {"n_loss": 0, "n_grad": 0, "n_hvp": 0}
    assert relative(linear.gradient, setup.stacked("gradient")) < ROUNDING
    assert vars(setup.curvature.evaluations) == {"n_loss": 0, "n_grad": 1, "n_hvp": 0}
    for count in (1, 2):
        gradient, products = linear.product(setup.v, keep=True)
        assert relative(products.phi, torch.einsum("tij,tj->ti", setup.stacked("hessian"), setup.v)) < ROUNDING
        assert relative(gradient, setup.stacked("gradient")) < ROUNDING
        assert not (gradient.requires_grad or products.phi.requires_grad)
        assert vars(setup.curvature.evaluations) == {"n_loss": 0, "n_grad": 1, "n_hvp": count}


@every_mode
@pytest.mark.parametrize("adapt", [None, "weight"])
def test_a_loss_linear_in_phi_has_no_curvature(mode, adapt, generator):
    found = Case(nn.Linear(2, 1), lambda prediction, y: (prediction * y).sum(), regression(generator).support)
    setup = Setup(found, generator, adapt, mode=mode)
    gradient, products = setup.curvature.linearise(*setup.at).product(setup.v)
    assert torch.equal(products.phi, torch.zeros_like(setup.phi))
    assert torch.equal(products.psi, torch.zeros_like(setup.psi))
    assert relative(gradient, setup.stacked("gradient")) < ROUNDING
    assert torch.equal(setup.curvature.gauss_newton(*setup.at, setup.v), torch.zeros_like(setup.phi))


def test_a_loss_bilinear_in_phi_and_psi_has_mixed_curvature_only(generator):
    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.phi = nn.Parameter(torch.randn(2, generator=generator))
            self.psi = nn.Parameter(torch.randn(2, generator=generator))

        def forward(self, x):
            return x * (self.phi * self.psi)

    points = Batch(torch.ones(3, 1, 2), torch.ones(3, 1, 2))
    setup = Setup(Case(Bilinear(), lambda p, y: p.sum(), points), generator, "phi")
    _, products = setup.curvature.linearise(*setup.at).product(setup.v)
    assert torch.equal(products.phi, torch.zeros(3, 2))
    assert relative(products.psi, setup.v.sum(0)) < 1e-15


@every_mode
@pytest.mark.parametrize("what", ["gradients", "product"])
@pytest.mark.parametrize("loss", [lambda p, y: y.sum(), lambda p, y: ((p.detach() - y) ** 2).mean()])
def test_a_loss_that_does_not_depend_on_phi_is_an_error(mode, what, loss, generator):
    model, points = mlp(generator), regression(generator).support
    rows = ParameterRows(model)
    curvature = Curvature(BatchedModel(model, loss, rows), mode)
    theta, psi = rows.read(model)
    phi = theta.repeat(3, 1)
    for _ in range(2):  # an error that is raised once only would be silence the second time
        with pytest.raises(ValueError, match="does not depend on the adapted parameters"):
            if what == "gradients":
                curvature.gradients(phi, psi, points)
            else:
                curvature.linearise(phi, psi, points).product(phi)


@every_mode
def test_a_loss_that_depends_on_psi_alone_is_an_error(mode, generator):
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x):
            return self.body(x)

    model, points = Forgetful(), regression(generator).support
    rows = ParameterRows(model, "head.*")
    curvature = Curvature(BatchedModel(model, nn.functional.mse_loss, rows), mode)
    theta, psi = rows.read(model)
    with pytest.raises(ValueError, match="does not depend on the adapted parameters"):
        curvature.linearise(theta.repeat(3, 1), psi, points).product(theta.repeat(3, 1))


def test_a_parameter_that_is_not_used_has_zero_gradient_and_curvature(generator):
    model = mlp(generator)
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    setup = Setup(Case(model, nn.functional.mse_loss, regression(generator).support), generator)
    gradient, products = setup.curvature.linearise(*setup.at).product(setup.v)
    assert relative(gradient, setup.stacked("gradient")) < ROUNDING
    assert relative(products.phi, torch.einsum("tij,tj->ti", setup.stacked("hessian"), setup.v)) < ROUNDING


@every_mode
def test_float32_stays_float32(mode, generator):
    found = case("mlp", generator)
    found = Case(found.model.float(), found.loss, found.points.to(dtype=torch.float32))
    rows = ParameterRows(found.model, "2.*")
    curvature = Curvature(BatchedModel(found.model, found.loss, rows), mode)
    theta, psi = rows.read(found.model)
    phi = theta.repeat(3, 1)
    gradients = curvature.gradients(phi, psi, found.points, shared=True)
    gradient, products = curvature.linearise(phi, psi, found.points).product(phi)
    ggn = curvature.gauss_newton(phi, psi, found.points, phi)
    assert {x.dtype for x in (*gradients, gradient, *products, ggn)} == {torch.float32}


def test_gauss_newton_is_the_hessian_of_a_linear_model(generator):
    setup = Setup(case("linear", generator), generator)
    _, products = setup.curvature.linearise(*setup.at).product(setup.v)
    assert relative(setup.curvature.gauss_newton(*setup.at, setup.v), products.phi) < ROUNDING


def test_gauss_newton_is_semi_definite_where_the_hessian_is_not(generator):
    setup = Setup(case("mlp", generator, tasks=8), generator)
    eigenvalues, directions = torch.linalg.eigh(setup.stacked("hessian"))
    assert (eigenvalues[:, 0] < 0).all()
    lowest = directions[:, :, 0]
    ggn = setup.curvature.gauss_newton(*setup.at, lowest)
    assert ((ggn * lowest).sum(dim=1) >= 0).all()


def test_wrong_options_are_refused(generator):
    model = mlp(generator)
    batched = BatchedModel(model, nn.functional.mse_loss, ParameterRows(model))
    with pytest.raises(ValueError, match="unknown mode 'reverse_over_forward'; did you mean"):
        Curvature(batched, "reverse_over_forward")
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        Curvature(batched, chunk_size=0)
