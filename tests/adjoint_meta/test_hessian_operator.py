"""hvp is the dense Hessian times a vector, and HessianOperator the same with damping, for SciPy too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references import relative
from scipy.sparse.linalg import cg, eigsh
from torch import nn

from adjoint_meta import HessianOperator, hvp
from adjoint_meta.curvature import MODES

every_mode = pytest.mark.parametrize("mode", MODES)


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
