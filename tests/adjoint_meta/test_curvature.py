from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import CASES, Case, case, mlp, regression
from references import Split, derivatives, relative
from scipy.sparse.linalg import cg, eigsh
from torch import nn

from adjoint_meta import Batch, HessianOperator, hvp
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


# hvp and HessianOperator


def cosh(phi: torch.Tensor) -> torch.Tensor:
    """A scalar of a vector: Σ cosh φ_i plus a coupling, with a Hessian that is not diagonal."""
    return torch.cosh(phi).sum() + (phi[0] * phi[1:]).sum() ** 2


def row_losses(phi: torch.Tensor) -> torch.Tensor:
    return torch.func.vmap(cosh)(phi)


@every_mode
def test_hvp_of_a_scalar(mode, generator):
    phi, v = torch.randn(4, generator=generator), torch.randn(4, generator=generator)
    assert relative(hvp(cosh, phi, v, mode=mode), torch.func.hessian(cosh)(phi) @ v) < 1e-14


@every_mode
def test_hvp_of_rows(mode, generator):
    phi, v = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    expected = torch.stack([torch.func.hessian(cosh)(phi[i]) @ v[i] for i in range(3)])
    assert relative(hvp(row_losses, phi, v, mode=mode), expected) < 1e-14


@every_mode
def test_hvp_needs_no_grad_mode_and_leaves_phi_alone(mode, generator):
    phi, v = torch.randn(4, generator=generator).requires_grad_(), torch.randn(4, generator=generator)
    with torch.no_grad():
        product = hvp(cosh, phi, v, mode=mode)
    assert not product.requires_grad and phi.grad is None
    assert relative(product, torch.func.hessian(cosh)(phi.detach()) @ v) < 1e-14


@every_mode
def test_hvp_of_what_cannot_be(mode, generator):
    phi = torch.randn(4, generator=generator)
    with pytest.raises(ValueError, match=r"v must have shape \[4\], got \[3\]"):
        hvp(cosh, phi, phi[:3], mode=mode)
    with pytest.raises(TypeError, match=r"v must be torch\.float64, got torch\.float32"):
        hvp(cosh, phi, phi.float(), mode=mode)
    with pytest.raises(TypeError, match=r"phi must be floating point, got torch\.int64"):
        hvp(cosh, torch.ones(4, dtype=int), phi, mode=mode)
    with pytest.raises(ValueError, match="does not depend"):
        hvp(lambda p: torch.ones(()), phi, phi, mode=mode)
    with pytest.raises(ValueError, match="does not depend"):
        hvp(lambda p: (p.detach() ** 2).sum(), phi, phi, mode=mode)


def test_hvp_of_an_unknown_mode():
    with pytest.raises(ValueError, match="unknown mode 'reverse'"):
        hvp(cosh, torch.ones(3), torch.ones(3), mode="reverse")


@every_mode
def test_hvp_of_a_linear_function_is_zero(mode, generator):
    phi = torch.randn(4, generator=generator)
    assert torch.equal(hvp(lambda p: (3 * p).sum(), phi, phi, mode=mode), torch.zeros(4))


@every_mode
def test_hvp_through_attention(mode, generator):
    # The fused kernels have no double backward; hvp must choose the one that has.
    def loss(q: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, q, q).square().sum()

    q, v = torch.randn(1, 3, 2, generator=generator), torch.randn(1, 3, 2, generator=generator)

    def written_out(q: torch.Tensor) -> torch.Tensor:
        return (torch.softmax(q @ q.mT / 2**0.5, dim=-1) @ q).square().sum()

    expected = torch.einsum("abcdef,def->abc", torch.func.hessian(written_out)(q), v)
    assert relative(hvp(loss, q, v, mode=mode), expected) < 1e-13


@every_mode
def test_operator_with_damping_and_counter(mode, generator):
    phi, v = torch.randn(4, generator=generator), torch.randn(4, generator=generator)
    operator = HessianOperator(cosh, phi, damping=0.3, mode=mode)
    dense = torch.func.hessian(cosh)(phi)
    assert operator.products == 0
    assert relative(operator @ v, dense @ v + 0.3 * v) < 1e-14
    assert relative(operator @ (2 * v), 2 * (dense @ v + 0.3 * v)) < 1e-14
    assert operator.products == 2
    assert relative(operator.gradient, torch.func.grad(cosh)(phi)) < 1e-14
    assert operator.products == 2


@every_mode
@pytest.mark.parametrize("first", ["gradient", "product"])
def test_the_operators_gradient_before_and_after_a_product(mode, first, generator):
    phi = torch.randn(3, 4, generator=generator)
    operator = HessianOperator(row_losses, phi, mode=mode)
    if first == "product":
        operator @ phi
    expected = torch.stack([torch.func.grad(cosh)(row) for row in phi])
    assert relative(operator.gradient, expected) < 1e-14


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operator_as_scipys(mode, dtype, generator):
    phi = torch.randn(6, generator=generator).to(dtype)
    operator = HessianOperator(cosh, phi, damping=0.5, mode=mode)
    dense = (torch.func.hessian(cosh)(phi.double()) + 0.5 * torch.eye(6)).numpy()
    linear, epsilon = operator.to_scipy(), float(torch.finfo(dtype).eps)
    assert linear.shape == (6, 6) and linear.dtype == np.dtype(str(dtype).removeprefix("torch."))
    assert np.allclose(linear @ np.eye(6), dense, rtol=0, atol=100 * epsilon * np.abs(dense).max())
    largest = eigsh(linear, k=1, which="LA", return_eigenvectors=False, v0=np.ones(6, dtype=linear.dtype))
    assert np.allclose(largest, np.linalg.eigvalsh(dense)[-1], rtol=1000 * epsilon)
    assert operator.products >= 6


def test_scipys_cg_on_the_operator_of_rows(generator):
    phi = torch.randn(2, 3, generator=generator)
    linear = HessianOperator(row_losses, phi, damping=5.0).to_scipy()
    b = torch.randn(2, 3, generator=generator)
    x, info = cg(linear, b.reshape(-1).numpy(), rtol=1e-12)
    blocks = torch.block_diag(*(torch.func.hessian(cosh)(row) + 5 * torch.eye(3) for row in phi))
    assert info == 0
    assert np.allclose(x, np.linalg.solve(blocks.numpy(), b.reshape(-1).numpy()), rtol=1e-10)


def test_scipys_transpose_and_read_only_vectors(generator):
    phi = torch.randn(3, generator=generator)
    linear = HessianOperator(cosh, phi).to_scipy()
    v = np.arange(3.0)
    v.setflags(write=False)
    assert np.allclose(linear.T @ v, linear @ v, rtol=1e-15)
