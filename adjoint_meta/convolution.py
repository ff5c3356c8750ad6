"""Convolutions with weights of their own for every task, all of whose derivatives are convolutions again.

x ∗ w is bilinear. It and its two transposes are each other's derivatives, so second derivatives never reach torch's
double backward of a convolution, which takes the tasks one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from .folding import fold, unfold

# From a name and several ways to compute the same to the index of the one to take.
Choose: TypeAlias = Callable[[str, Sequence[Callable[[], Tensor]]], int]


def the_first(name: str, ways: Sequence[Callable[[], Tensor]]) -> int:
    """Choose the first way, unseen."""
    return 0


@dataclass(frozen=True)
class Geometry:
    """What a convolution is besides its input ``[points, C, *size]`` and its weight ``[O, C / groups, *kernel]``.

    Where the patches of an image hold fewer numbers than what becomes of them, as in a first layer of few channels,
    they may be unfolded and multiplied: there the blocks of a grouped convolution are mostly padding. ``choose``
    decides, once for the shapes of one task.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    choose: Choose = the_first

    def convolve(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """Return x ∗ w + b, shape ``[points, O, *outputs]``."""

        def grouped() -> Tensor:
            return torch.convolution(x, w, b, *self._lists, False, [0] * len(self.size), self.groups)

        def unfolded() -> Tensor:
            y = w.reshape(self.groups, -1, prod(w.shape[1:])) @ self._patches(x)
            y = y.reshape(len(x), len(w), *self._outputs)
            return y if b is None else y.add_(self.spread(b, len(x)))

        return self._fastest("x * w", x, len(w), grouped, unfolded)

    def input_gradient(self, g: Tensor, w: Tensor) -> Tensor:
        """Return the gradient of ⟨g, x ∗ w⟩ in x."""
        x = g.new_empty(1).expand(len(g), self.groups * w.shape[1], *self.size)
        return self._transpose(g, x, w, 0)

    def weight_gradient(self, g: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of ⟨g, x ∗ w⟩ in w."""
        outputs = g.shape[1]
        shape = (outputs, x.shape[1] // self.groups, *self.kernel)

        def grouped() -> Tensor:
            return self._transpose(g, x, g.new_empty(1).expand(shape), 1)

        def unfolded() -> Tensor:
            rows = g.reshape(len(g), self.groups, outputs // self.groups, -1)
            return (rows @ self._patches(x).mT).sum(dim=0).reshape(shape)

        return self._fastest("gradient in w", x, outputs, grouped, unfolded)

    def spread(self, b: Tensor, points: int) -> Tensor:
        """Return a bias as a result, ``[points, O, *outputs]``."""
        return b.view(-1, *[1] * len(self.size)).expand(points, -1, *self._outputs)

    @property
    def _lists(self) -> tuple[list[int], list[int], list[int]]:
        return list(self.stride), list(self.padding), list(self.dilation)

    @property
    def _outputs(self) -> list[int]:
        sides = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides]

    def _patches(self, x: Tensor) -> Tensor:
        """Return the patches of images, ``[points, groups, C / groups · kernel, outputs]``."""
        patches = functional.unfold(x, self.kernel, self.dilation, self.padding, self.stride)
        return unfold(patches, self.groups, 1)

    def _transpose(self, g: Tensor, x: Tensor, w: Tensor, which: int) -> Tensor:
        """Return one of the transposes; of x or w, whichever it is for, only the shape is read."""
        mask = [which == 0, which == 1, False]
        found: Tensor = torch.ops.aten.convolution_backward(
            g, x, w, None, *self._lists, False, [0] * len(self.size), self.groups, mask
        )[which]
        return found

    def _fastest(self, what: str, x: Tensor, outputs: int, *ways: Callable[[], Tensor]) -> Tensor:
        channels, results = x.shape[1] // self.groups, outputs // self.groups
        if len(self.size) != 2 or self.groups == 1 or channels * prod(self.kernel) > results:
            return ways[0]()
        # The number of tasks, and so of groups, is no part of the name: it changes within an adaptive solve.
        shapes = (len(x), channels, results, self.size, self.kernel, *self._lists)
        return ways[self.choose(f"{what}: {shapes}, {x.dtype}, {x.device}", ways)]()


def convolve(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
    """Return x ∗ w + b, shape ``[points, O, *outputs]``; under `torch.vmap` tasks become groups of channels.

    Args:
        x: ``[points, C, *size]``.
        w: ``[O, C / groups, *kernel]``.
        b: ``[O]``, or ``None``.
        geometry: all the rest.
    """
    y: Tensor = _Convolve.apply(x, w, b, geometry)
    return y


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
        return geometry.convolve(x, w, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _keep(ctx, inputs[0], inputs[1], inputs[3])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (x, w), (g,), needed = ctx.saved_tensors, upstream, _needed(ctx, upstream)
        return (
            _InputGradient.apply(g, w, ctx.geometry) if needed[0] else None,
            _WeightGradient.apply(g, x, ctx.geometry) if needed[1] else None,
            g.sum(dim=(0, *range(2, g.ndim))) if needed[2] else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        (x, w), (dx, dw, db, _), geometry = ctx.saved_tensors, tangents, ctx.geometry
        terms = [] if dx is None else [_Convolve.apply(dx, w, None, geometry)]
        terms += [] if dw is None else [_Convolve.apply(x, dw, None, geometry)]
        terms += [] if db is None else [geometry.spread(db, len(x))]
        return _sum(terms)

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> tuple[Tensor, int]:
        tasks = info.batch_size
        if dims[1] is dims[2] is None:  # tasks that share their weights are more points
            return unfold(_Convolve.apply(fold(x, dims[0], tasks, 0), w, b, geometry), tasks, 0), 0
        x, w = fold(x, dims[0], tasks, 1), fold(w, dims[1], tasks, 0)
        b = None if b is None else fold(b, dims[2], tasks, 0)
        return unfold(_Convolve.apply(x, w, b, _of_all(geometry, tasks)), tasks, 1), 1


class _InputGradient(torch.autograd.Function):
    """(g, w, geometry) → the gradient of ⟨g, x ∗ w⟩ in x."""

    @staticmethod
    def forward(g: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        return geometry.input_gradient(g, w)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (g, w), (u,), needed = ctx.saved_tensors, upstream, _needed(ctx, upstream)
        return (
            _Convolve.apply(u, w, None, ctx.geometry) if needed[0] else None,
            _WeightGradient.apply(g, u, ctx.geometry) if needed[1] else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        (g, w), (dg, dw, _), geometry = ctx.saved_tensors, tangents, ctx.geometry
        terms = [] if dg is None else [_InputGradient.apply(dg, w, geometry)]
        terms += [] if dw is None else [_InputGradient.apply(g, dw, geometry)]
        return _sum(terms)

    @staticmethod
    def vmap(info: Any, dims: Any, g: Tensor, w: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
        tasks = info.batch_size
        if dims[1] is None:
            return unfold(_InputGradient.apply(fold(g, dims[0], tasks, 0), w, geometry), tasks, 0), 0
        g, w = fold(g, dims[0], tasks, 1), fold(w, dims[1], tasks, 0)
        return unfold(_InputGradient.apply(g, w, _of_all(geometry, tasks)), tasks, 1), 1


class _WeightGradient(torch.autograd.Function):
    """(g, x, geometry) → the gradient of ⟨g, x ∗ w⟩ in w."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        return geometry.weight_gradient(g, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (g, x), (v,), needed = ctx.saved_tensors, upstream, _needed(ctx, upstream)
        return (
            _Convolve.apply(x, v, None, ctx.geometry) if needed[0] else None,
            _InputGradient.apply(g, v, ctx.geometry) if needed[1] else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        (g, x), (dg, dx, _), geometry = ctx.saved_tensors, tangents, ctx.geometry
        terms = [] if dg is None else [_WeightGradient.apply(dg, x, geometry)]
        terms += [] if dx is None else [_WeightGradient.apply(g, dx, geometry)]
        return _sum(terms)

    @staticmethod
    def vmap(info: Any, dims: Any, g: Tensor, x: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
        tasks = info.batch_size
        g, x = fold(g, dims[0], tasks, 1), fold(x, dims[1], tasks, 1)
        return unfold(_WeightGradient.apply(g, x, _of_all(geometry, tasks)), tasks, 0), 0


def _keep(ctx: Any, left: Tensor, right: Tensor, geometry: Geometry) -> None:
    ctx.save_for_backward(left, right)
    ctx.save_for_forward(left, right)
    ctx.set_materialize_grads(False)  # a tangent that is zero costs no convolution
    ctx.geometry = geometry


def _needed(ctx: Any, upstream: Sequence[Tensor | None]) -> Sequence[bool]:
    """Return which inputs need a gradient; none does where nothing comes from above."""
    needed: Sequence[bool] = ctx.needs_input_grad
    return needed if upstream[0] is not None else [False] * len(needed)


def _of_all(geometry: Geometry, tasks: int) -> Geometry:
    return replace(geometry, groups=tasks * geometry.groups)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])
