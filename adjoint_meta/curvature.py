"""Gradients and curvature products of per-task losses, batched over tasks: the engine below every meta-gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from adjoint_meta.solvers import checks

from .batched_model import BatchedModel, twice_differentiable
from .tasks import Batch

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

MODES = ("reverse_over_reverse", "forward_over_reverse")

# (φ [tasks, P], ψ [Q]) → one loss a task.
RowLosses: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Evaluations:
    """How many batched evaluations were made; one that serves all tasks counts once.

    Args:
        n_loss: losses alone.
        n_grad: gradients.
        n_hvp: curvature products; the gradient that falls out of a product is not counted again.
    """

    n_loss: int = 0
    n_grad: int = 0
    n_hvp: int = 0


class Gradients(NamedTuple):
    """Losses ``[tasks]``, their gradients in φ ``[tasks, P]``, and the sum's gradient in ψ ``[Q]``."""

    losses: Tensor
    phi: Tensor
    psi: Tensor


class Products(NamedTuple):
    """∇²_φφ L · v, shape ``[tasks, P]``, and Σ over tasks of ∂_ψ⟨∇_φ L, v⟩, shape ``[Q]``."""

    phi: Tensor
    psi: Tensor


class Linearisation:
    """The gradient of the losses at one φ, ready for any number of curvature products there.

    In reverse_over_reverse the graph of the gradient is kept and swept once a product, so that k products cost one
    forward pass, one backward pass and k double-backward sweeps.
    """

    def __init__(self, losses: RowLosses, phi: Tensor, psi: Tensor, mode: str, *, check: bool = False) -> None:
        """Set up; with ``check``, forward_over_reverse spends a gradient on making sure that L depends on φ."""
        self._forward = mode == "forward_over_reverse"
        self._losses = losses
        self._inputs = (phi.detach().requires_grad_(), psi.detach().requires_grad_(psi.numel() > 0))
        if self._forward:
            self._gradient: Tensor | None = None
            if check:
                _gradient(losses(*self._inputs), self._inputs[:1])
            return
        (self._gradient,) = _gradient(losses(*self._inputs), self._inputs[:1], create_graph=True)

    @property
    def gradient(self) -> Tensor:
        """∇_φ L, shape ``[tasks, P]``."""
        if self._gradient is None:
            (self._gradient,) = _gradient(self._losses(*self._inputs), self._inputs[:1])
        return self._gradient.detach()

    def product(self, v: Tensor, keep: bool = False) -> Products:
        """Return the curvature products with v ``[tasks, P]``; ``keep`` keeps the graph for another one."""
        phi, psi = self._inputs
        if self._forward:
            return self._forward_product(v)
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
        with warnings.catch_warnings():  # torch's own decompositions still use a compiler that it has deprecated
            warnings.filterwarnings("ignore", message=r".*torch\.jit")
            value, tangent = torch.func.jvp(lambda phi: gradient(phi, psi), (phi,), (v,))[:2]
        self._gradient = value[0]
        return Products(tangent[0], tangent[1] if shared else psi)


class Curvature:
    """Per-task loss, gradient, Hessian, Gauss-Newton and mixed products of a model on a batch of tasks.

    Since the rows are independent, the gradient of the sum of the losses holds every task's gradient: one reverse
    sweep over the vmapped forward pass serves the batch, and one more sweep gives all the products.

    Args:
        model: the batched model.
        mode: ``"reverse_over_reverse"`` sweeps the gradient's graph backward once more (Pearlmutter 1994);
            ``"forward_over_reverse"`` pushes a tangent through the gradient, which keeps no graph of the backward pass.
        chunk_size: at most this many tasks at a time, to bound memory; ``None`` takes all at once.
    """

    def __init__(self, model: BatchedModel, mode: str = MODES[0], chunk_size: int | None = None) -> None:
        self.model = model
        self.mode = checks.one_of("mode", mode, MODES)
        if chunk_size is not None:
            checks.count("chunk_size", chunk_size)
        self.chunk_size = chunk_size
        self._checked = False
        self.evaluations = Evaluations()

    def _chunks(self, tasks: int) -> Iterator[slice]:
        size = self.chunk_size or tasks
        return (slice(first, min(first + size, tasks)) for first in range(0, tasks, size))

    def losses(self, phi: Tensor, psi: Tensor, batch: Batch) -> Tensor:
        """Return one loss a task, ``[tasks]``, without a graph."""
        self.evaluations.n_loss += 1
        with torch.no_grad():
            return torch.cat([self.model.losses(phi[c], psi, batch[c]) for c in self._chunks(len(phi))])

    def gradients(self, phi: Tensor, psi: Tensor, batch: Batch, *, shared: bool = False) -> Gradients:
        """Return losses and gradients; the part in ψ is computed when ``shared`` is set, and zero otherwise."""
        self.evaluations.n_grad += 1
        total = torch.zeros_like(psi)
        parts = []
        for chunk in self._chunks(len(phi)):
            row = phi[chunk].detach().requires_grad_()
            common = psi.detach().requires_grad_(shared and psi.numel() > 0)
            losses = self.model.losses(row, common, batch[chunk])
            found = _gradient(losses, (row, common) if common.requires_grad else (row,))
            self._checked = True
            parts.append((losses.detach(), found[0]))
            if common.requires_grad:
                total = total + found[1]
        losses, gradients = (torch.cat(part) for part in zip(*parts, strict=True))
        return Gradients(losses, gradients, total)

    def linearise(self, phi: Tensor, psi: Tensor, batch: Batch) -> ChunkedLinearisation:
        """Return the gradient at φ ready for curvature products."""

        def at(chunk: slice) -> Linearisation:
            tasks = batch[chunk]
            losses: RowLosses = lambda p, q: self.model.losses(p, q, tasks)  # noqa: E731
            linear = Linearisation(losses, phi[chunk], psi, self.mode, check=not self._checked)
            self._checked = True
            return linear

        return ChunkedLinearisation(at, list(self._chunks(len(phi))), self.evaluations)

    def gauss_newton(self, phi: Tensor, psi: Tensor, batch: Batch, v: Tensor) -> Tensor:
        """Return Jᵀ (∇²ℓ) J v with J the Jacobian of the predictions in φ, shape ``[tasks, P]``.

        It equals the Hessian product without the curvature of the network, and is positive semi-definite for convex
        ℓ (Schraudolph 2002). J v comes from two reverse sweeps, so that any twice differentiable module works.
        """
        self.evaluations.n_hvp += 1
        parts = []
        for chunk in self._chunks(len(phi)):
            row = phi[chunk].detach().requires_grad_()
            prediction = self.model.predict(row, psi.detach(), batch.x[chunk])
            dummy = torch.zeros_like(prediction, requires_grad=True)
            (pulled,) = torch.autograd.grad(prediction, row, dummy, create_graph=True)
            (pushed,) = torch.autograd.grad(pulled, dummy, v[chunk], retain_graph=True, materialize_grads=True)
            output = prediction.detach().requires_grad_()
            curve = Linearisation(self._output_losses(batch.y[chunk]), output, psi.new_empty(0), MODES[0])
            parts.append(torch.autograd.grad(prediction, row, curve.product(pushed).phi)[0])
        return torch.cat(parts)

    def _output_losses(self, y: Tensor) -> RowLosses:
        return lambda prediction, _: self.model.prediction_losses(prediction, y)


class ChunkedLinearisation:
    """A `Linearisation` over chunks of tasks; with more than one chunk nothing is kept between products."""

    def __init__(self, at: Callable[[slice], Linearisation], chunks: Sequence[slice], evaluations: Evaluations) -> None:
        self._at = at
        self._chunks = chunks
        self._evaluations = evaluations
        self._only: Linearisation | None = None

    @property
    def gradient(self) -> Tensor:
        """∇_φ L, shape ``[tasks, P]``, where no product has been taken yet."""
        self._evaluations.n_grad += 1
        if len(self._chunks) > 1:
            return torch.cat([self._at(chunk).gradient for chunk in self._chunks])
        self._only = self._only or self._at(self._chunks[0])
        return self._only.gradient

    def product(self, v: Tensor, keep: bool = False) -> tuple[Tensor, Products]:
        """Return (∇_φ L ``[tasks, P]``, the curvature products with v); the first one evaluates the gradient."""
        self._evaluations.n_hvp += 1
        if len(self._chunks) == 1:
            self._only = self._only or self._at(self._chunks[0])
            products = self._only.product(v, keep)
            return self._only.gradient, products
        gradients, found = [], []
        for chunk in self._chunks:
            linear = self._at(chunk)
            found.append(linear.product(v[chunk]))
            gradients.append(linear.gradient)
        psi = torch.stack([products.psi for products in found]).sum(0)
        return torch.cat(gradients), Products(torch.cat([products.phi for products in found]), psi)


def _gradient(losses: Tensor, inputs: Sequence[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
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
