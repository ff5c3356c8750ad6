"""Curvature along an inner trajectory, by Lanczos, batched over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adjoint_meta.adaptation import GradientFlow
from adjoint_meta.batched_model import twice_differentiable
from adjoint_meta.descent import descend
from adjoint_meta.problem import Problem
from adjoint_meta.solvers import lanczos
from adjoint_meta.solvers.linear import MatVec
from adjoint_meta.tasks import generator

# Keeps the Lanczos start vectors apart from the streams of tasks.
_START = 2**31 + 1


@dataclass(frozen=True)
class Extremes:
    """What the Hessian H of L_s is at the points of a trajectory, each ``[points, tasks]``.

    Args:
        smallest: smallest Ritz value of H; never below the smallest eigenvalue, so that a negative one is proof.
        largest: largest Ritz value of H; never above the largest eigenvalue.
        lipschitz: ‖H(φ₁) − H(φ₂)‖ / ‖φ₁ − φ₂‖ between a point and the one before it, from below, shape
            ``[points − 1, tasks]``.
    """

    smallest: Tensor
    largest: Tensor
    lipschitz: Tensor


def trajectory(problem: Problem, theta: Tensor, proximal: float, lr: float, places: Sequence[int]) -> list[Tensor]:
    """Return φ after these numbers of gradient steps on the inner objective, ``[tasks, P]`` each.

    Args:
        theta: rows ``[tasks, P]``, where it starts.
        places: ascending.
    """
    flow = GradientFlow(problem, theta, proximal)
    found, phi, done = [], theta, 0
    with twice_differentiable():
        for place in places:
            if place > done:
                phi = descend(flow, phi, lr, place - done, 0.0).detach()
            found.append(phi)
            done = place
    return found


def extremes(problem: Problem, points: Sequence[Tensor], products: int) -> Extremes:
    """Return the extremes of H at rows ``[tasks, P]``, by so many Hessian-vector products each."""
    start = torch.randn(points[0].shape, generator=generator(0, _START), dtype=torch.float64).to(points[0])
    smallest, largest, lipschitz = [], [], []
    before: tuple[Tensor, MatVec] | None = None
    with twice_differentiable():
        for phi in points:
            hessian = _hessian(problem, phi)
            values = lanczos(hessian, start, products).ritz()[0]
            smallest.append(values[:, 0])
            largest.append(values[:, -1])
            if before is not None:
                lipschitz.append(_change(before[1], hessian, start, products) / (phi - before[0]).norm(dim=1))
            before = (phi, hessian)
    empty = start.new_empty((0, len(start)))
    return Extremes(torch.stack(smallest), torch.stack(largest), torch.stack(lipschitz) if lipschitz else empty)


def _hessian(problem: Problem, phi: Tensor) -> MatVec:
    linear = problem.linearise(phi)
    return lambda v: linear.product(v, keep=True)[1].phi


def _change(first: MatVec, second: MatVec, start: Tensor, products: int) -> Tensor:
    """Return ‖H₂ − H₁‖ from below, ``[tasks]``."""
    values = lanczos(lambda v: second(v) - first(v), start, products).ritz()[0]
    return values.abs().amax(dim=1)
