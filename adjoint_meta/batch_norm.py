"""Batch norm by the statistics of the points at hand, with a second derivative of few passes over memory.

With x̂ = (x − μ)/σ and M numbers a channel, the gradient of ⟨g, γ x̂ + β⟩ in x is (γ/σ) P g, where P g = g − mean(g) −
x̂ mean(g x̂). Its own derivatives are sums of g, x and a cotangent with one coefficient a channel; torch's take two dozen
passes over memory for them, longer than the convolutions between which they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .folding import fold, unfold


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return γ x̂ + β for x ``[points, C, ...]``; under `torch.vmap` each task has statistics of its own.

    Args:
        x: at least two numbers a channel.
        weight: γ, shape ``[C]``.
        bias: β, shape ``[C]``.
        eps: what is added to σ².
    """
    y: Tensor = _BatchNorm.apply(x, weight, bias, eps)[0]
    return y


class _BatchNorm(torch.autograd.Function):
    """(x, γ, β, ε) → (γ x̂ + β, μ, 1/σ); derivatives know how μ and σ depend on x, and the two outputs have none."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, ctx.eps = inputs
        ctx.save_for_backward(x, weight, *output[1:])
        ctx.save_for_forward(x, weight, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return *_Gradient.apply(upstream[0], *ctx.saved_tensors, ctx.eps), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        (x, weight, mean, scale), (dx, dweight, dbias, _) = ctx.saved_tensors, tangents
        tangent, *_ = _Gradient.apply(dx, x, weight, mean, scale, ctx.eps)  # (γ/σ) P is symmetric
        slope = dweight * scale
        return tangent + x * _wide(slope, x) + _wide(dbias - slope * mean, x), None, None

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        tasks = info.batch_size
        found = _BatchNorm.apply(
            fold(x, dims[0], tasks, 1), fold(weight, dims[1], tasks, 0), fold(bias, dims[2], tasks, 0), eps
        )
        return tuple(unfold(part, tasks, axis) for part, axis in zip(found, (1, 0, 0), strict=True)), (1, 0, 0)


class _Gradient(torch.autograd.Function):
    """(g, x, γ, μ, 1/σ, ε) → the gradients of ⟨g, γ x̂ + β⟩ in x, γ and β."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float) -> Any:
        return torch.ops.aten.native_batch_norm_backward(
            g, x, weight, None, None, mean, scale, True, eps, [True, True, True]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *saved, ctx.eps = inputs
        ctx.save_for_backward(*saved, *output[1:])
        ctx.save_for_forward(*saved, *output[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return *_second(ctx.saved_tensors, upstream, ctx.eps), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        _, x, weight, mean, scale, *_ = ctx.saved_tensors
        dg, dx, dweight, *_ = tangents
        along = _Gradient.apply(dg, x, weight, mean, scale, ctx.eps)
        # Second derivatives of one function: the pullback along x and γ is their tangent, too.
        _, across, slope = _second(ctx.saved_tensors, (dx, dweight, torch.zeros_like(dweight)), ctx.eps)
        return along[0] + across, along[1] + slope, along[2]

    @staticmethod
    def vmap(info: Any, dims: Any, *inputs: Any) -> Any:
        *tensors, eps = inputs
        tasks, axes = info.batch_size, (1, 1, 0, 0, 0)
        folded = [fold(t, dim, tasks, axis) for t, dim, axis in zip(tensors, dims, axes, strict=False)]
        found = _Gradient.apply(*folded, eps)
        return tuple(unfold(part, tasks, axis) for part, axis in zip(found, (1, 0, 0), strict=True)), (1, 0, 0)


def _second(saved: Sequence[Tensor], cotangents: Sequence[Tensor], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients in g, x and γ of ⟨u, (γ/σ) P g⟩ + ⟨a, Σ g x̂⟩ + ⟨c, Σ g⟩.

    Args:
        saved: g, x, γ, μ and 1/σ, and what came of them: gx = Σ g x̂ and gs = Σ g, a number a channel.
        cotangents: u, a and c.
        eps: ε.
    """
    (g, x, weight, mean, scale, gx, gs), (u, a, c) = saved, cotangents
    count = x.numel() // x.shape[1]
    over = [0, *range(2, x.ndim)]
    # Sums over a channel: u x̂, u, u g.
    if torch.is_grad_enabled():  # somebody differentiates once more: all must be functions of x
        mean, scale = x.mean(dim=over), (x.var(dim=over, correction=0) + eps).rsqrt()
        ux, us = (u * (x - _wide(mean, x)) * _wide(scale, x)).sum(dim=over), u.sum(dim=over)
    else:
        _, ux, us = torch.ops.aten.native_batch_norm_backward(
            u, x, weight, None, None, mean, scale, True, eps, [False, True, True]
        )
    ug = (u * g).sum(dim=over)
    rise = weight * scale
    slope = scale * (ug - (us * gs + ux * gx) / count)  # ⟨u, P g⟩/σ
    on_u, on_g = -rise * gx / count, a - rise * ux / count
    dg = _combine(x, mean, (rise, u), (on_g * scale, c - rise * us / count))
    # Through x̂, P(on_u u + on_g g)/σ; through 1/σ, the last term.
    dx = _combine(
        x,
        mean,
        (scale * on_u, u),
        (
            -scale * (scale * (on_u * ux + on_g * gx) + rise * slope) / count,
            -scale * (on_u * us + on_g * gs) / count,
        ),
        (scale * on_g, g),
    )
    return dg, dx, slope


def _combine(
    x: Tensor, mean: Tensor, first: tuple[Tensor, Tensor], line: tuple[Tensor, Tensor], *others: tuple[Tensor, Tensor]
) -> Tensor:
    """Return Σ coefficient · tensor + slope (x − μ) + constant, a coefficient a channel, in a pass each."""
    slope, constant = line
    total = first[1] * _wide(first[0], x)
    for coefficient, tensor in (*others, (slope, x)):
        total.addcmul_(tensor, _wide(coefficient, x))
    return total.add_(_wide(constant - slope * mean, x))


def _wide(channels: Tensor, like: Tensor) -> Tensor:
    """Return one number a channel, ready to be spread over ``[points, C, ...]``."""
    return channels.view(-1, *[1] * (like.ndim - 2))
