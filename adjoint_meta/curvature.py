"""Gradients and curvature products of per-task losses, batched over tasks: the engine below every meta-gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from adjoint_meta.solvers import checks

from .batched_model import BatchedModel
from .engine import Engine, Evaluations
from .linearisation import MODES, Gradients, Linear, Linearisation, Products, RowLosses
from .programs import Programs, ReplayedLinearisation
from .tasks import Batch

T = TypeVar("T")


class Extended(NamedTuple):
    """What the losses on a batch read besides φ.

    Args:
        psi: ψ ``[Q]``, or ψ extended by features that do not depend on φ; see `Prefix`.
        batch: the tasks.
        pull: adds what a gradient in it implies to one in ψ.
    """

    psi: Tensor
    batch: Batch
    pull: Callable[[Tensor, Tensor], object]


class Curvature:
    """Per-task loss, gradient, Hessian, Gauss-Newton and mixed products of a model on a batch of tasks.

    Since the rows are independent, the gradient of the sum of the losses holds every task's gradient: one reverse
    sweep over the vmapped forward pass serves the batch, and one more sweep gives all the products.

    Args:
        model: the batched model.
        mode: ``"reverse_over_reverse"`` sweeps the gradient's graph backward once more (Pearlmutter 1994);
            ``"forward_over_reverse"`` pushes a tangent through the gradient, which keeps no graph of the backward pass.
        chunk_size: at most this many tasks at a time, to bound memory; ``None`` takes all at once.
        engine: evaluates gradients and products; ``None`` calls them as they are.
    """

    def __init__(
        self,
        model: BatchedModel,
        mode: str = MODES[0],
        chunk_size: int | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.model = model
        self.mode = checks.one_of("mode", mode, MODES)
        if chunk_size is not None:
            checks.count("chunk_size", chunk_size)
        self.chunk_size = chunk_size
        self._checked = False
        self.engine = engine or Engine("eager", Evaluations())
        self.evaluations = self.engine.evaluations
        self.programs = Programs(model, self.engine)

    def fit(self, attempt: Callable[[], T], tasks: int) -> T:
        """Return what ``attempt`` returns; where memory runs out, halve the chunks of tasks and try again."""
        while True:
            try:
                return attempt()
            except torch.OutOfMemoryError:
                size = min(self.chunk_size or tasks, tasks)
                if size == 1:
                    raise
            self.chunk_size = (size + 1) // 2
            warnings.warn(
                f"memory ran out with {size} tasks at a time; going on with chunk_size={self.chunk_size}",
                RuntimeWarning,
                stacklevel=3,
            )

    @property
    def traceable(self) -> bool:
        """Whether whole steps may become programs: chunks would be unrolled, and tangents cannot be traced."""
        return self.chunk_size is None and self.mode == MODES[0]

    def _chunks(self, tasks: int) -> Iterator[slice]:
        size = self.chunk_size or tasks
        return (slice(first, min(first + size, tasks)) for first in range(0, tasks, size))

    def extend(self, psi: Tensor, batch: Batch) -> Extended:
        """Evaluate what does not depend on φ, once for all that follows on these tasks."""
        prefix = self.model.prefix(batch.x)
        if prefix is None:
            return Extended(psi, batch, lambda gradient, into: into.add_(gradient))
        x, chunks = batch.x, list(self._chunks(len(batch)))
        return Extended(*prefix.extend(psi, batch, chunks), lambda g, into: prefix.pull(g, x, chunks, into))

    def losses(self, phi: Tensor, psi: Tensor, batch: Batch) -> Tensor:
        """Return one loss a task, ``[tasks]``, without a graph."""
        self.evaluations.n_loss += 1
        with torch.no_grad():
            return torch.cat([self.model.losses(phi[c], psi, batch[c]) for c in self._chunks(len(phi))])

    def gradients(self, phi: Tensor, psi: Tensor, batch: Batch, *, shared: bool = False) -> Gradients:
        """Return losses and gradients; the part in ψ is computed when ``shared`` is set, and zero otherwise."""
        self.evaluations.n_grad += 1
        parts = [self.programs.gradients(phi[c], psi, batch[c], shared) for c in self._chunks(len(phi))]
        self._checked = True
        if len(parts) == 1:
            return parts[0]
        losses, gradients = (torch.cat([part[i] for part in parts]) for i in range(2))
        return Gradients(losses, gradients, torch.stack([part.psi for part in parts]).sum(dim=0))

    def linearise(self, phi: Tensor, psi: Tensor, batch: Batch) -> ChunkedLinearisation:
        """Return the gradient at φ ready for curvature products."""

        def at(chunk: slice) -> Linear:
            def eager() -> Linearisation:
                losses, dual = self.model.of(batch[chunk]), bool(self.model.remat.names)
                linear = Linearisation(losses, phi[chunk], psi, self.mode, check=not self._checked, dual=dual)
                self._checked = True
                return linear

            if self.engine.eager or self.mode != MODES[0]:
                return eager()
            return ReplayedLinearisation(self.programs, phi[chunk], psi, batch[chunk], eager)

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
            prediction = self.model.predict(row, psi.detach(), batch.x[chunk], batch[chunk].kept)
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

    def __init__(self, at: Callable[[slice], Linear], chunks: Sequence[slice], evaluations: Evaluations) -> None:
        self._at = at
        self._chunks = chunks
        self._evaluations = evaluations
        self._only: Linear | None = None

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
