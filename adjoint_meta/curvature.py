"""Gradients and curvature products of per-task losses, batched over tasks: the engine below every meta-gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from adjoint_meta.solvers import checks

from .batched_model import BatchedModel
from .engine import Engine
from .evaluations import Evaluations
from .linearisation import MODES, Gradients, Linear, Linearisation, Products, RowLosses
from .points import MeanLinearisation, check_losses, check_parts, mean_over_points, moved, parts
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
        point_chunk: at most this many points of a task at a time, for models that treat points one by one and losses
            that are their mean.
        engine: evaluates gradients and products; ``None`` calls them as they are.
    """

    def __init__(
        self,
        model: BatchedModel,
        mode: str = MODES[0],
        chunk_size: int | None = None,
        engine: Engine | None = None,
        point_chunk: int | None = None,
    ) -> None:
        self.model = model
        self.mode = checks.one_of("mode", mode, MODES)
        for name, size in (("chunk_size", chunk_size), ("point_chunk", point_chunk)):
            if size is not None:
                checks.count(name, size)
        self.chunk_size, self.point_chunk = chunk_size, point_chunk
        self._checked = False
        self._apart: set[tuple[bool, str]] = set()
        self.engine = engine or Engine("eager", Evaluations())
        self.evaluations = self.engine.evaluations
        self.programs = Programs(model, self.engine)

    def fit(self, attempt: Callable[[], T], *points: Batch | Tensor) -> T:
        """Return what ``attempt`` returns; where memory runs out, halve the chunks of tasks and try again.

        Where not even one task fits, parts of its points are halved in turn.

        Args:
            attempt: evaluates the tasks.
            points: theirs, or the inputs alone where only predictions are made.

        Raises:
            torch.OutOfMemoryError: if nothing smaller fits, or the points of a task cannot be taken in parts.
        """
        while True:
            try:
                return attempt()
            except torch.OutOfMemoryError as error:
                said = str(error)  # the error itself would keep alive what the attempt had allocated
            self.engine.graphs.release()
            warnings.warn(f"memory ran out with {self._halve(points, said)}", RuntimeWarning, stacklevel=3)

    def _halve(self, points: Sequence[Batch | Tensor], said: str) -> str:
        """Take fewer tasks at a time, or fewer points of one, and say so."""
        tasks = len(points[0])
        size = min(self.chunk_size or tasks, tasks)
        if size > 1:
            self.chunk_size = (size + 1) // 2
            return f"{size} tasks at a time; going on with chunk_size={self.chunk_size}"
        pairs = [(part.x, part.y) if isinstance(part, Batch) else (part, None) for part in points]
        count = max(x.shape[1] for x, _ in pairs)
        size = min(self.point_chunk or count, count)
        if size == 1:
            raise torch.OutOfMemoryError(said)
        before, self.point_chunk = self.point_chunk, (size + 1) // 2
        theta, psi = self.model.rows.read(self.model.model)
        try:
            for x, y in pairs:
                self.check_points(theta, psi, x, y)
        except ValueError as why:
            self.point_chunk = before
            raise torch.OutOfMemoryError(f"memory ran out with one task at a time, and {why}. {said}") from None
        except torch.OutOfMemoryError:  # the next attempt will halve them again
            pass
        return f"{size} points of one task at a time; going on with point_chunk={self.point_chunk}"

    def _check_parts(self, phi: Tensor, psi: Tensor, x: Tensor, y: Tensor | None = None) -> None:
        """Make sure, once for a state of the model, that points may be taken in parts; see `check_parts`."""
        key = (y is None, self.model.state)
        if key not in self._apart:
            check_parts(self.model, phi, psi, x, y)
            self._apart.add(key)

    def check_points(self, theta: Tensor, psi: Tensor, x: Tensor, y: Tensor | None = None) -> None:
        """Make sure that the points of these tasks, where they are to be taken in parts, may be."""
        size = self._apart_points(x.shape[1])
        if size is None:
            return
        phi = moved(theta).repeat(len(x), 1)
        self._check_parts(phi, psi, x, y)
        if y is not None:
            with torch.no_grad():
                check_losses(self.model, self.predict(phi, psi, x), y, size)

    @property
    def traceable(self) -> bool:
        """Whether whole steps may become programs: chunks would be unrolled, and tangents cannot be traced."""
        return self.chunk_size is None and self.point_chunk is None and self.mode == MODES[0]

    def _chunks(self, tasks: int) -> Iterator[slice]:
        size = self.chunk_size or tasks
        return (slice(first, min(first + size, tasks)) for first in range(0, tasks, size))

    def _apart_points(self, count: int) -> int | None:
        """Return at most how many points to take at a time, ``None`` for all."""
        return None if self.point_chunk is None or self.point_chunk >= count else self.point_chunk

    def _mean(
        self, evaluate: Callable[[Batch], tuple[Tensor, ...]], phi: Tensor, psi: Tensor, batch: Batch
    ) -> tuple[Tensor, ...]:
        """Return what ``evaluate`` finds on the points of a chunk of tasks, or the mean of that over parts of them."""
        size = self._apart_points(batch.x.shape[1])
        if size is not None:
            self._check_parts(phi, psi, batch.x, batch.y)
        return mean_over_points(evaluate, batch, size)

    def predict(self, phi: Tensor, psi: Tensor, x: Tensor) -> Tensor:
        """Return predictions ``[tasks, points, ...]`` for inputs ``[tasks, points, ...]``."""
        size = self._apart_points(x.shape[1])
        if size is not None:
            self._check_parts(phi, psi, x)
        rows = [
            torch.cat([self.model.predict(phi[c], psi, x[c, points]) for points, _ in parts(x.shape[1], size)], dim=1)
            for c in self._chunks(len(phi))
        ]
        return torch.cat(rows)

    def look_for_prefix(self, batch: Batch) -> None:
        """Find out, once for a shape, what does not depend on φ; points taken in parts have no features."""
        if self._apart_points(batch.x.shape[1]) is None:
            self.model.look_for_prefix(batch.x)

    def extend(self, psi: Tensor, batch: Batch) -> Extended:
        """Evaluate what does not depend on φ, once for all that follows on these tasks."""
        prefix = self.model.prefix(batch.x) if self._apart_points(batch.x.shape[1]) is None else None
        if prefix is None:
            return Extended(psi, batch, lambda gradient, into: into.add_(gradient))
        x, chunks = batch.x, list(self._chunks(len(batch)))
        return Extended(*prefix.extend(psi, batch, chunks), lambda g, into: prefix.pull(g, x, chunks, into))

    def losses(self, phi: Tensor, psi: Tensor, batch: Batch) -> Tensor:
        """Return one loss a task, ``[tasks]``, without a graph."""
        self.evaluations.n_loss += 1

        def at(chunk: slice) -> Tensor:
            return self._mean(lambda part: (self.model.losses(phi[chunk], psi, part),), phi[chunk], psi, batch[chunk])[
                0
            ]

        with torch.no_grad():
            return torch.cat([at(chunk) for chunk in self._chunks(len(phi))])

    def gradients(self, phi: Tensor, psi: Tensor, batch: Batch, *, shared: bool = False) -> Gradients:
        """Return losses and gradients; the part in ψ is computed when ``shared`` is set, and zero otherwise."""
        self.evaluations.n_grad += 1

        def at(chunk: slice) -> Gradients:
            rows = phi[chunk]
            found = self._mean(lambda part: self.programs.gradients(rows, psi, part, shared), rows, psi, batch[chunk])
            return Gradients(*found)

        found = [at(chunk) for chunk in self._chunks(len(phi))]
        self._checked = True
        if len(found) == 1:
            return found[0]
        losses, gradients = (torch.cat([part[i] for part in found]) for i in range(2))
        return Gradients(losses, gradients, torch.stack([part.psi for part in found]).sum(dim=0))

    def linearise(self, phi: Tensor, psi: Tensor, batch: Batch) -> ChunkedLinearisation:
        """Return the gradient at φ ready for curvature products."""

        def on(rows: Tensor, points: Batch) -> Linear:
            def eager() -> Linearisation:
                losses, dual = self.model.of(points), bool(self.model.remat.names)
                linear = Linearisation(losses, rows, psi, self.mode, check=not self._checked, dual=dual)
                self._checked = True
                return linear

            if self.engine.eager or self.mode != MODES[0]:
                return eager()
            return ReplayedLinearisation(self.programs, rows, psi, points, eager)

        def at(chunk: slice) -> Linear:
            rows, points = phi[chunk], batch[chunk]
            if self._apart_points(points.x.shape[1]) is None:
                return on(rows, points)
            return MeanLinearisation(
                lambda part: on(rows, part), lambda evaluate: self._mean(evaluate, rows, psi, points)
            )

        return ChunkedLinearisation(at, list(self._chunks(len(phi))), self.evaluations)

    def gauss_newton(self, phi: Tensor, psi: Tensor, batch: Batch, v: Tensor) -> Tensor:
        """Return Jᵀ (∇²ℓ) J v with J the Jacobian of the predictions in φ, shape ``[tasks, P]``.

        It equals the Hessian product without the curvature of the network, and is positive semi-definite for convex
        ℓ (Schraudolph 2002). J v comes from two reverse sweeps, so that any twice differentiable module works.
        """
        self.evaluations.n_hvp += 1

        def on(rows: Tensor, v: Tensor, points: Batch) -> tuple[Tensor, ...]:
            rows = rows.detach().requires_grad_()
            prediction = self.model.predict(rows, psi.detach(), points.x, points.kept)
            dummy = torch.zeros_like(prediction, requires_grad=True)
            (pulled,) = torch.autograd.grad(prediction, rows, dummy, create_graph=True)
            (pushed,) = torch.autograd.grad(pulled, dummy, v, retain_graph=True, materialize_grads=True)
            output = prediction.detach().requires_grad_()
            curve = Linearisation(self._output_losses(points.y), output, psi.new_empty(0), MODES[0])
            return torch.autograd.grad(prediction, rows, curve.product(pushed).phi)

        def at(chunk: slice) -> Tensor:
            return self._mean(lambda part: on(phi[chunk], v[chunk], part), phi[chunk], psi, batch[chunk])[0]

        return torch.cat([at(chunk) for chunk in self._chunks(len(phi))])

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
