"""Gradient flow as a vector field, with its exact pullback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from adjoint_meta.solvers.linearised import Linearised
from adjoint_meta.solvers.stepper import VJP, Time

from .problem import Problem
from .tasks import Batch


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

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors that the flow of all tasks reads, besides what the model holds; see `over`."""
        support = self.problem.support
        found = (self.theta, self.problem.psi, *support.rows)
        return (*found, *(t for t in (self.proximal, self.rates) if isinstance(t, Tensor)))

    def over(self, tensors: Sequence[Tensor]) -> GradientFlow:
        """Return the same flow with these in place of its own `tensors`."""
        theta, psi, *rest = tensors
        count = len(self.problem.support.rows)
        support, rest = Batch.of(*rest[:count]), rest[count:]
        proximal = rest.pop(0) if isinstance(self.proximal, Tensor) else self.proximal
        problem = replace(self.problem, psi=psi, support=support)
        return GradientFlow(problem, theta, proximal, rest.pop(0) if self.rates is not None else None)

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

    def linearise(self, t: Time, phi: Tensor) -> Linearised:
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
