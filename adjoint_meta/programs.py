"""Gradients and curvature products of a chunk of tasks as functions of tensors, for the engine to evaluate."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .batched_model import BatchedModel
from .engine import Engine
from .linearisation import MODES, Gradients, Linearisation, Products, gradient_of
from .tasks import Batch

# A program for more tasks serves fewer, up to this factor: a program for each number of tasks left in an adaptive
# solve would take longer to compile than to run.
_SPARE = 4

# So many values of a model's plain attributes are compiled for, such as those of training and evaluation.
_STATES = 8


class Programs:
    """The functions that the engine evaluates for one model.

    Args:
        model: the batched model.
        engine: evaluates them.
    """

    def __init__(self, model: BatchedModel, engine: Engine) -> None:
        self.model = model
        self.engine = engine
        self._states: set[str] = set()
        self._sizes: dict[Hashable, list[int]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look at the model again: its frozen parameters and buffers, and what a trace holds fixed."""
        self._constants = tuple(self.model.constants().values())
        self.model.refresh()
        self._state = self.model.state
        self._states.add(self._state)
        if len(self._states) > _STATES:
            names = ", ".join(sorted(self.model.changing)[:3]) or "tensors of the loss"
            self.engine.give_up(
                f"{names} keep changing, which compiled functions would not see; all stays eager. Keep what is read "
                "in buffers, changed in place"
            )

    def gradients(self, phi: Tensor, psi: Tensor, batch: Batch, shared: bool) -> Gradients:
        """Return losses and gradients; the part in ψ where ``shared`` is set, and zero otherwise."""

        def function(phi: Tensor, *others: Tensor) -> Gradients:
            return self._gradients(phi, others[-1], Batch.of(*others[:-1]), shared)

        def eager() -> Gradients:
            return self._gradients(phi, psi, batch, shared)

        if self.engine.eager:
            return eager()
        # Repeated rows would count twice in a sum over tasks.
        rows = (phi, *batch.rows)
        found: Gradients = self._call(("gradients", shared), function, eager, rows, psi, spare=not shared)
        count = len(phi)
        return found if len(found.phi) == count else Gradients(found.losses[:count], found.phi[:count], found.psi)

    def _gradients(self, phi: Tensor, psi: Tensor, batch: Batch, shared: bool) -> Gradients:
        phi = phi.detach().requires_grad_()
        psi = psi.detach().requires_grad_(shared and psi.numel() > 0)
        losses = self.model.losses(phi, psi, batch)
        found = gradient_of(losses, (phi, psi) if psi.requires_grad else (phi,))
        return Gradients(losses.detach(), found[0], found[1] if psi.requires_grad else torch.zeros_like(psi))

    def product(
        self, phi: Tensor, psi: Tensor, batch: Batch, v: Tensor, eager: Callable[[], tuple[Tensor, Products]]
    ) -> tuple[Tensor, Products]:
        """Return ∇_φ L and the curvature products with v, from one pass; ``eager`` returns them without a program."""

        def function(phi: Tensor, v: Tensor, *others: Tensor) -> tuple[Tensor, Products]:
            linear = Linearisation(self.model.of(Batch.of(*others[:-1])), phi, others[-1], MODES[0])
            products = linear.product(v)
            return linear.gradient, products

        rows = (phi, v, *batch.rows)
        gradient, products = self._call("product", function, eager, rows, psi, spare=psi.numel() == 0)
        count = len(phi)
        if len(gradient) == count:
            return gradient, products
        return gradient[:count], Products(products.phi[:count], products.psi)

    def replays_products(self, phi: Tensor, psi: Tensor, batch: Batch) -> bool:
        """Return whether a product at such points is a replay, or would be traced now."""
        return self.engine.compiled(("product", self._state), (phi, phi, *batch.rows, psi, *self._constants))

    def run(
        self, name: Hashable, function: Callable[..., Any], tensors: Sequence[Tensor], eager: Callable[[], Any]
    ) -> Any:
        """Let the engine evaluate a function that reads the model, besides these tensors; ``eager`` does it without."""

        def reading(*inputs: Tensor) -> Any:
            with self.model.reading(inputs[len(tensors) :]):
                return function(*inputs[: len(tensors)])

        return self.engine((name, self._state), reading, *tensors, *self._constants, eager=eager)

    def whole(
        self, name: Hashable, function: Callable[..., Any], tensors: Sequence[Tensor], apart: Callable[[], Any]
    ) -> Any:
        """Let the engine evaluate a function that reads the model by one CUDA graph; ``apart`` does it without.

        The graph reads the model where it lies now: where tensors are replaced, another graph is captured.
        """
        module = self.model.model
        held = (*module.parameters(), *module.buffers(), *self._constants)
        where = tuple((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in held)
        return self.engine.whole((name, self._state, where), function, *tensors, apart=apart)

    def _call(
        self,
        name: Hashable,
        function: Callable[..., Any],
        eager: Callable[[], Any],
        rows: tuple[Tensor, ...],
        psi: Tensor,
        *,
        spare: bool,
    ) -> Any:
        """Run ``function(*rows, psi)``; with ``spare``, by a program for more rows, the last of these repeated."""
        count = len(rows[0])
        sizes = self._sizes.setdefault((name, self._state, *((r.shape[1:], r.dtype, r.device) for r in rows)), [])
        size = min((size for size in sizes if count <= size <= _SPARE * count), default=count) if spare else count
        if size > count:
            index = torch.arange(size, device=psi.device).clamp(max=count - 1)
            rows = tuple(r[index] for r in rows)
        found = self.run(name, function, (*rows, psi), eager)
        if spare and size not in sizes and self.engine.compiled((name, self._state), (*rows, psi, *self._constants)):
            sizes.append(size)
        return found


class ReplayedLinearisation:
    """A linearisation whose products are replays, each with its gradient, once the engine has a program for them."""

    def __init__(
        self, programs: Programs, phi: Tensor, psi: Tensor, batch: Batch, build: Callable[[], Linearisation]
    ) -> None:
        self._programs, self._at, self._build = programs, (phi, psi, batch), build
        self._gradient: Tensor | None = None
        self._eager: Linearisation | None = None

    @property
    def gradient(self) -> Tensor:
        """∇_φ L, shape ``[tasks, P]``."""
        if self._gradient is None:
            if self._programs.replays_products(*self._at):
                self._gradient = self._programs.gradients(*self._at, False).phi
            else:  # an eager product will want the same forward pass
                self._eager = self._eager or self._build()
                self._gradient = self._eager.gradient
        return self._gradient

    def product(self, v: Tensor, keep: bool = False) -> Products:
        """Return the curvature products with v ``[tasks, P]``; an eager one keeps its graph with ``keep``."""

        def eager() -> tuple[Tensor, Products]:
            self._eager = self._eager or self._build()
            products = self._eager.product(v, keep)
            return self._eager.gradient, products

        self._gradient, products = self._programs.product(*self._at, v, eager)
        return products
