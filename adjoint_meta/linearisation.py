"""Gradients of row losses by autograd, and the linearisation of a gradient at one point."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

MODES = ("reverse_over_reverse", "forward_over_reverse")

# (φ [tasks, P], ψ [Q]) → one loss a task.
RowLosses: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Gradients(NamedTuple):
    """Losses ``[tasks]``, their gradients in φ ``[tasks, P]``, and the sum's gradient in ψ ``[Q]``."""

    losses: Tensor
    phi: Tensor
    psi: Tensor


class Products(NamedTuple):
    """∇²_φφ L · v, shape ``[tasks, P]``, and Σ over tasks of ∂_ψ⟨∇_φ L, v⟩, shape ``[Q]``."""

    phi: Tensor
    psi: Tensor


class Linear(Protocol):
    """The gradient of row losses at one φ, and curvature products there."""

    @property
    def gradient(self) -> Tensor:
        """∇_φ L, shape ``[tasks, P]``."""
        ...

    def product(self, v: Tensor, keep: bool = False) -> Products:
        """Return the curvature products with v ``[tasks, P]``; ``keep`` announces another one."""
        ...


class Linearisation:
    """The gradient of the losses at one φ, ready for any number of curvature products there.

    In reverse_over_reverse the graph of the gradient is kept and swept once a product, so that k products cost one
    forward pass, one backward pass and k double-backward sweeps.
    """

    def __init__(
        self, losses: RowLosses, phi: Tensor, psi: Tensor, mode: str, *, check: bool = False, dual: bool = False
    ) -> None:
        """Set up; with ``check``, forward_over_reverse spends a gradient on making sure that L depends on φ.

        With ``dual``, it is taken by dual numbers under autograd in place of ``torch.func``.
        """
        self._forward = mode == "forward_over_reverse"
        self._dual = dual
        self._losses = losses
        self._inputs = (phi.detach().requires_grad_(), psi.detach().requires_grad_(psi.numel() > 0))
        if self._forward:
            self._gradient: Tensor | None = None
            if check:
                gradient_of(losses(*self._inputs), self._inputs[:1])
            return
        (self._gradient,) = gradient_of(losses(*self._inputs), self._inputs[:1], create_graph=True)

    @property
    def gradient(self) -> Tensor:
        """∇_φ L, shape ``[tasks, P]``."""
        if self._gradient is None:
            (self._gradient,) = gradient_of(self._losses(*self._inputs), self._inputs[:1])
        return self._gradient.detach()

    def product(self, v: Tensor, keep: bool = False) -> Products:
        """Return the curvature products with v ``[tasks, P]``; ``keep`` keeps the graph for another one."""
        phi, psi = self._inputs
        if self._forward:
            return self._dual_product(v) if self._dual else self._forward_product(v)
        graph = self._gradient
        if graph is None or not graph.requires_grad:  # a loss linear in φ has no curvature
            return Products(torch.zeros_like(phi), torch.zeros_like(psi))
        wanted = self._inputs if psi.requires_grad else self._inputs[:1]
        found = torch.autograd.grad(graph, wanted, v, retain_graph=keep, materialize_grads=True)
        return Products(found[0], found[1] if psi.requires_grad else psi.detach())

    def _forward_product(self, v: Tensor) -> Products:
        phi, psi = (tensor.detach() for tensor in self._inputs)

        def total(phi: Tensor, psi: Tensor) -> Tensor:
            return self._losses(phi, psi).sum()

        shared = psi.numel() > 0
        gradient = torch.func.grad(total, argnums=(0, 1) if shared else (0,))
        with _quiet():
            value, tangent = torch.func.jvp(lambda phi: gradient(phi, psi), (phi,), (v,))[:2]
        self._gradient = value[0]
        return Products(tangent[0], tangent[1] if shared else psi)

    def _dual_product(self, v: Tensor) -> Products:
        """Return the products by dual numbers under autograd, which modules that are rematerialised need."""
        phi, psi = self._inputs
        with _quiet(), forward_ad.dual_level():
            dual = forward_ad.make_dual(phi, v.detach())
            inputs = (dual, psi) if psi.requires_grad else (dual,)
            try:
                gradients = gradient_of(self._losses(dual, psi), inputs)
            except NotImplementedError as error:
                raise ValueError(
                    f"torch cannot take products forward over reverse through this model ({error}); with remat, use "
                    "mode='reverse_over_reverse'"
                ) from error
            found = [forward_ad.unpack_dual(gradient) for gradient in gradients]
        tangents = [torch.zeros_like(value) if tangent is None else tangent.detach() for value, tangent in found]
        self._gradient = found[0].primal
        return Products(tangents[0], tangents[1] if psi.requires_grad else psi.detach())


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():  # torch's own decompositions still use a compiler that it has deprecated
        warnings.filterwarnings("ignore", message=r".*torch\.jit")
        yield


def gradient_of(losses: Tensor, inputs: Sequence[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """Return the gradients of Σ losses; the first input is φ, on which the losses must depend."""
    found: Sequence[Tensor | None] = (None,)
    if losses.requires_grad:
        found = torch.autograd.grad(losses.sum(), inputs, create_graph=create_graph, allow_unused=True)
    if found[0] is None:
        raise ValueError(
            "the loss does not depend on the adapted parameters, so its gradient would be silently zero; check that "
            "the model uses them and that nothing detaches them"
        )
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True))
