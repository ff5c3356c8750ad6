"""Gradient flows of convex and of double-well energies, and implicit steps along them by dense matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from adjoint_meta.solvers import SDIRK2, VJP, ImplicitEuler

METHODS = [ImplicitEuler, SDIRK2]
every_method = pytest.mark.parametrize("method", METHODS, ids=["implicit_euler", "sdirk2"])
GAMMA = 1 - 1 / math.sqrt(2)
# (A, b, c) of each method, from which the dense reference knows all it knows.
BUTCHER = {
    ImplicitEuler: ([[1.0]], [1.0], [1.0]),
    SDIRK2: ([[GAMMA, 0.0], [1 - GAMMA, GAMMA]], [1 - GAMMA, GAMMA], [GAMMA, 1.0]),
}
TIGHT = {"newton_tol": 1e-14, "cg_tol": 1e-14}
T, H = 0.3, 0.8

# (t, y [rows, P], *parameters) → [rows].
Energy = Callable[..., Tensor]

# Fields and what is known of them


class Gradient:
    """f = −∂E/∂y by autograd, which counts its uses and remembers where it was."""

    def __init__(self, energy: Energy, parameters: Sequence[Tensor] = (), *, timed: bool = False) -> None:
        self.energy, self.parameters, self.timed = energy, tuple(parameters), timed
        self.values = self.pullbacks = 0
        self.seen: list[Tensor] = []

    def _slope(self, t: Tensor | float, y: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        (gradient,) = torch.autograd.grad(self.energy(t, y, *parameters).sum(), y, create_graph=True)
        return -gradient

    def __call__(self, t: Tensor | float, y: Tensor) -> Tensor:
        self.values += 1
        self.seen.append(y.detach().clone())
        with torch.enable_grad():
            return self._slope(t, y.detach().requires_grad_(), self.parameters).detach()

    def vjp(self, t: Tensor | float, y: Tensor, w: Tensor) -> VJP:
        self.pullbacks += 1
        y = y.detach().requires_grad_()
        parameters = [parameter.detach().requires_grad_() for parameter in self.parameters]
        time = (torch.as_tensor(t, dtype=y.dtype).expand(len(y), 1) + 0.0).requires_grad_(self.timed)
        inputs = [y, *([time] if self.timed else []), *parameters]
        with torch.enable_grad():
            value = self._slope(time if self.timed else t, y, parameters)
            state, *rest = torch.autograd.grad(value, inputs, w, allow_unused=True, materialize_grads=True)
        shift = rest.pop(0)[:, 0] if self.timed else None
        return VJP(value.detach(), state, tuple(rest), shift)


class WithPotential(Gradient):
    energies = 0

    def potential(self, t: Tensor | float, y: Tensor) -> Tensor:
        self.energies += 1
        return self.energy(t, y, *self.parameters)


class Line:
    """−∇E at one state, whose graph is kept."""

    def __init__(self, field: Linearising, t: Tensor | float, y: Tensor) -> None:
        self.field, self.y = field, y.detach().requires_grad_()
        with torch.enable_grad():
            self.slope = field._slope(t, self.y, field.parameters)

    @property
    def value(self) -> Tensor:
        return self.slope.detach()

    def product(self, w: Tensor) -> Tensor:
        self.field.products += 1
        return torch.autograd.grad(self.slope, self.y, w, retain_graph=True)[0]


class Linearising(WithPotential):
    lines = products = 0

    def linearise(self, t: Tensor | float, y: Tensor) -> Line:
        self.lines += 1
        self.seen.append(y.detach().clone())
        return Line(self, t, y)


KINDS = [Gradient, WithPotential, Linearising]
every_kind = pytest.mark.parametrize("kind", KINDS)


def convex(t: Tensor | float, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Σ log cosh(W y + b + t) + ½ y²/3: strictly convex, its curvature between 1/3 and 1/3 + ‖W‖²."""
    inner = y @ weight.T + bias + t
    return torch.log(torch.cosh(inner)).sum(dim=1) + y.square().sum(dim=1) / 6


def wells(t: Tensor | float, y: Tensor, coupling: Tensor) -> Tensor:
    """Σ (y² − 1)²/4 + ½ yᵀKy: minima near the corners of a cube, a maximum or saddle at the origin."""
    return ((y.square() - 1).square() / 4).sum(dim=1) + 0.5 * (y * (y @ coupling)).sum(dim=1)


def some_convex(kind: type[Gradient], generator: torch.Generator, size: int = 4, scale: float = 1.0) -> Gradient:
    weight, bias = torch.randn(size, size, generator=generator), torch.randn(size, generator=generator)
    return kind(convex, (scale * weight, bias), timed=True)


def some_wells(kind: type[Gradient], generator: torch.Generator, size: int = 4, strength: float = 0.1) -> Gradient:
    coupling = torch.randn(size, size, generator=generator)
    return kind(wells, (strength * (coupling + coupling.T),))


def draw(generator: torch.Generator, rows: int = 3, size: int = 4) -> Tensor:
    return torch.randn(rows, size, generator=generator)


# Dense references: a row at a time, all stages at once, full Jacobians


def dense(method: type, energy: Energy, t: Tensor, h: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """A step of the Butcher tableau by Newton's method on all its stages, differentiable in all its arguments.

    The last iteration is taken on the graph, at a solution without one: that differentiates the implicit function.
    """
    return torch.stack([_dense_row(method, energy, t, h[i], y[i], parameters) for i in range(len(y))])


def _dense_row(method: type, energy: Energy, t: Tensor, h: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    a, b, c = BUTCHER[method]

    def slope(i: int, state: Tensor) -> Tensor:
        def at(state: Tensor) -> Tensor:
            return energy(t + c[i] * h, state[None], *parameters)[0]

        return -torch.func.grad(at)(state)

    def defect(stages: Tensor) -> Tensor:
        slopes = [slope(i, stage) for i, stage in enumerate(stages)]
        return torch.stack(
            [
                stages[i] - y - h * sum(weight * k for weight, k in zip(a[i], slopes, strict=True))
                for i in range(len(stages))
            ]
        )

    def newton(stages: Tensor, share: float = 1.0) -> Tensor:
        jacobian = torch.func.jacrev(defect)(stages).reshape(stages.numel(), stages.numel()).detach()
        return stages - share * torch.linalg.solve(jacobian, defect(stages).reshape(-1)).reshape(stages.shape)

    stages = y.detach().expand(len(a), -1).clone()
    for _ in range(100):
        error = defect(stages).norm().detach()
        if error < 1e-14 * (1 + h.abs()):
            break
        tries = (newton(stages, 0.5**k).detach() for k in range(20))
        stages = next((found for found in tries if defect(found).norm() < error), stages)
    assert error < 1e-13 * (1 + h.abs())
    stages = newton(stages)
    return y + h * sum(weight * slope(i, stage) for i, (weight, stage) in enumerate(zip(b, stages, strict=True)))


def stability(method: type, a: Tensor, h: float) -> Tensor:
    """R(−hA) of symmetric matrices [rows, P, P]."""
    z, basis = torch.linalg.eigh(a)
    z = -h * z
    values = 1 / (1 - z) if method is ImplicitEuler else (1 + (1 - 2 * GAMMA) * z) / (1 - GAMMA * z) ** 2
    return basis @ (values[:, :, None] * basis.mT)


def apply(matrices: Tensor, rows: Tensor) -> Tensor:
    return torch.einsum("rij,rj->ri", matrices, rows)


# Steps


SIZES = [(Linearising, 0.05), (Gradient, H), (WithPotential, 20.0), (Linearising, 20.0), (WithPotential, -0.02)]


def pull_through(stepper, field, n: int, y: Tensor, w: Tensor, horizon: float = 1.0) -> tuple[Tensor, Tensor]:
    """The cotangents of the start and of the horizon, by n transposed steps."""
    h, states = horizon / n, []
    for i in range(n):
        states.append(stepper.step(field, i * h, h, y).states)
        y = states[-1][-1]
    length = torch.zeros(len(y))
    for i in reversed(range(n)):
        pulled = stepper.transpose(field, i * h, h, states[i], w)
        w = pulled.start
        length += pulled.size / n + (0 if pulled.time is None else pulled.time * i / n)
    return w, length
