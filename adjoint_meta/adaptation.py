"""Inner solves: gradient flow as a vector field with its exact pullback, and proximal descent to a tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adjoint_meta.solvers.stepper import VJP, Time

from .problem import Problem


@dataclass(frozen=True)
class GradientFlow:
    """The field dφ/dt = −D ∇L_s(φ, ψ) − λ(φ − θ), with its vector-Jacobian product by one HVP.

    Args:
        problem: the tasks.
        theta: θ as rows, shape ``[tasks, P]``; only used with λ.
        proximal: λ ≥ 0, a number or a 0-dimensional tensor.
        rates: the diagonal of D, shape ``[P]`` (Meta-SGD: Li et al. 2017); ``None`` is the identity.
        part: of which tasks this is the flow, ``[n]``, and how many there are in all; ``None`` means all of them.
    """

    problem: Problem
    theta: Tensor
    proximal: float | Tensor = 0.0
    rates: Tensor | None = None
    part: tuple[Tensor, int] | None = None

    def rows(self, tasks: Tensor) -> GradientFlow:
        """Return the flow of the tasks with these numbers, ``[n]``; cotangents to θ keep the shape ``[tasks, P]``."""
        return replace(
            self, problem=self.problem.rows(tasks), theta=self.theta[tasks], part=(tasks, self.problem.tasks)
        )

    @property
    def _pulled(self) -> bool:
        return isinstance(self.proximal, Tensor) or self.proximal != 0

    def __call__(self, t: Time, phi: Tensor) -> Tensor:
        """Return f(φ), shape ``[tasks, P]``."""
        return self.field(phi, self.problem.gradient(phi))

    def field(self, phi: Tensor, gradient: Tensor) -> Tensor:
        """Return f(φ) where ∇L_s is known."""
        slope = -gradient if self.rates is None else -self.rates * gradient
        return slope - self.proximal * (phi - self.theta) if self._pulled else slope

    def vjp(self, t: Time, phi: Tensor, w: Tensor) -> VJP:
        """Return f(φ) and the pullback of w: −(H D w + λ w) in φ, and in `parameters` as `split` names them."""
        weighted = w if self.rates is None else self.rates * w
        gradient, products = self.problem.linearise(phi).product(weighted)
        parameters = [-products.psi]
        if self._pulled:
            parameters += [self._whole(self.proximal * w), -(w * (phi - self.theta)).sum()]
        if self.rates is not None:
            parameters.append(-(w * gradient).sum(dim=0))
        return VJP(self.field(phi, gradient), self.pull(w, products.phi), tuple(parameters))

    def pull(self, w: Tensor, product: Tensor) -> Tensor:
        """Return wᵀ ∂f/∂φ where H D w is known."""
        return -product - self.proximal * w if self._pulled else -product

    def potential(self, t: Time, phi: Tensor) -> Tensor:
        """Return E with f = −∇E, shape ``[tasks]``: L_s + ½λ‖φ − θ‖². With rates f has no potential."""
        energy = self.problem.support_losses(phi)
        return energy + self.proximal * (phi - self.theta).square().sum(dim=1) / 2 if self._pulled else energy

    def linearise(self, t: Time, phi: Tensor) -> LinearisedFlow:
        """Return the flow near φ, with one graph for all its products."""
        return LinearisedFlow(self, phi)

    def _whole(self, rows: Tensor) -> Tensor:
        if self.part is None:
            return rows
        tasks, count = self.part
        return rows.new_zeros((count, rows.shape[1])).index_copy(0, tasks, rows)

    def split(self, parameters: tuple[Tensor, ...]) -> Mapping[str, Tensor]:
        """Name the parameter cotangents: psi ``[Q]``, theta ``[tasks, P]``, proximal ``[]``, rates ``[P]``."""
        names = ["psi"] + ["theta", "proximal"] * self._pulled + ["rates"] * (self.rates is not None)
        return dict(zip(names, parameters, strict=True))


class LinearisedFlow:
    """A gradient flow near one φ: its value there, and its products."""

    def __init__(self, flow: GradientFlow, phi: Tensor) -> None:
        self._flow, self._linear = flow, flow.problem.linearise(phi)
        self.value = flow.field(phi, self._linear.gradient)

    def product(self, w: Tensor) -> Tensor:
        """Return wᵀ ∂f/∂φ = −(H D w + λ w), shape ``[tasks, P]``."""
        flow = self._flow
        weighted = w if flow.rates is None else flow.rates * w
        return flow.pull(w, self._linear.product(weighted, keep=True)[1].phi)


def descend(flow: GradientFlow, phi: Tensor, lr: float, max_steps: int, tol: float) -> Tensor:
    """Follow the flow by steps of size ``lr`` until every row's gradient has fallen enough.

    A row stops when ‖f(φ)‖ ≤ tol · ‖f(φ at the start)‖; rows that have stopped no longer move.

    Args:
        phi: where to start, shape ``[tasks, P]``.
        lr: step size α.
        max_steps: most steps.
        tol: relative size of the gradient at which a row is done; 0 always takes ``max_steps``.
    """
    bound: Tensor | None = None
    for _ in range(max_steps):
        slope = flow(0.0, phi)
        if tol > 0:
            size = torch.linalg.vector_norm(slope, dim=1, keepdim=True)
            bound = tol * size if bound is None else bound
            done = (size <= bound) & torch.isfinite(size)  # a gradient that is not finite must not pass for a small one
            if bool(done.all()):
                break
            slope = torch.where(done, 0.0, slope)
        phi = phi + lr * slope
    return phi
