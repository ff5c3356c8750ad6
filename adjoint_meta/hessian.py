"""Hessians of plain functions: products with vectors, and the Hessian as a matrix-free operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adjoint_meta.solvers import checks

from .batched_model import twice_differentiable
from .linearisation import MODES, Linearisation

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


def hvp(loss: Callable[[Tensor], Tensor], phi: Tensor, v: Tensor, *, mode: str = MODES[0]) -> Tensor:
    """Return the Hessian-vector product ∇²L(φ) v.

    Args:
        loss: L, from φ to a scalar; or, for rows, from ``[tasks, P]`` to ``[tasks]``, each from its own row.
        phi: where, shape ``[P]`` or ``[tasks, P]``.
        v: the vector, of φ's shape.
        mode: as in `Curvature`.

    Raises:
        ValueError, TypeError: if v is not like φ, or the loss does not depend on φ.
    """
    return HessianOperator(loss, phi, mode=mode) @ v


@dataclass
class HessianOperator:
    """The Hessian of a loss at φ, plus damping, as a matrix-free symmetric operator: ``H @ v``.

    Args:
        loss: L, from φ to a scalar; or, for rows, from ``[tasks, P]`` to ``[tasks]``, each from its own row.
        phi: where, shape ``[P]`` or ``[tasks, P]``; rows make a block-diagonal operator.
        damping: δ in H + δI.
        mode: as in `Curvature`.
        products: how many products have been taken.
    """

    loss: Callable[[Tensor], Tensor]
    phi: Tensor
    damping: float = 0.0
    mode: str = MODES[0]
    products: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        checks.one_of("mode", self.mode, MODES)
        checks.at_least("damping", self.damping, 0.0)
        if not isinstance(self.phi, Tensor):
            raise TypeError(f"phi must be a tensor, got {type(self.phi).__name__}")
        if not self.phi.is_floating_point():
            raise TypeError(f"phi must be floating point, got {self.phi.dtype}")
        with twice_differentiable():
            self._linear = Linearisation(self._losses, self.phi, self.phi.new_empty(0), self.mode, check=True)

    def _losses(self, phi: Tensor, psi: Tensor) -> Tensor:
        losses = self.loss(phi)
        if losses.ndim > 0 and (phi.ndim != 2 or losses.shape != phi.shape[:1]):
            raise ValueError(
                f"loss must return a scalar, or one value a row for rows φ [tasks, P]; got {list(losses.shape)} for φ "
                f"{list(phi.shape)}. Reduce it with .mean() or .sum()"
            )
        return losses

    def __matmul__(self, v: Tensor) -> Tensor:
        checks.like("v", v, self.phi)
        self.products += 1
        with twice_differentiable():
            product = self._linear.product(v, keep=True).phi
        return product + self.damping * v if self.damping else product

    @property
    def gradient(self) -> Tensor:
        """∇L(φ), of φ's shape."""
        with twice_differentiable():
            return self._linear.gradient

    def to_scipy(self) -> LinearOperator:
        """Return a ``scipy.sparse.linalg.LinearOperator`` of size φ.numel() (products leave the device)."""
        from scipy.sparse.linalg import LinearOperator

        def matvec(v: object) -> object:
            vector = torch.tensor(v).to(self.phi).reshape(self.phi.shape)
            return (self @ vector).reshape(-1).cpu().numpy()

        size = self.phi.numel()
        dtype = torch.empty(0, dtype=self.phi.dtype).numpy().dtype
        return LinearOperator((size, size), matvec=matvec, rmatvec=matvec, dtype=dtype)
