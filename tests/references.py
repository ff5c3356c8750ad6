"""Slow, dense, obvious versions of what the package computes: loops over tasks and steps, full matrices, one graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import expm
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from adjoint_meta import TaskBatch
from adjoint_meta.solvers import ButcherTableau
from adjoint_meta.solvers.tableaus import EULER


def relative(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, refusing shapes that differ."""
    assert found.shape == expected.shape, f"{list(found.shape)} is not {list(expected.shape)}"
    return float((found - expected).norm() / expected.norm())


def central_difference(f: Callable[[Tensor], float], x: Tensor, h: float = 1e-5) -> Tensor:
    """The gradient of f at x, entry by entry."""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        offset = torch.zeros_like(x)
        offset.view(-1)[i] = h
        gradient.view(-1)[i] = (f(x + offset) - f(x - offset)) / (2 * h)
    return gradient


# Runge-Kutta methods


def runge_kutta(
    tableau: ButcherTableau,
    f: Callable[[Tensor, Tensor], Tensor],
    t0: Tensor | float,
    t1: Tensor | float,
    steps: int,
    y: Tensor,
) -> Tensor:
    """Every stage, every step, as on paper; differentiable in y, t0, t1 and whatever f holds."""
    h = (t1 - t0) / steps
    for n in range(steps):
        t = t0 + n * h
        slopes: list[Tensor] = []
        for row, node in zip(tableau.a, tableau.c, strict=True):
            stage = y
            for weight, slope in zip(row, slopes, strict=True):
                stage = stage + h * float(weight) * slope
            slopes.append(f(t + float(node) * h, stage))
        for weight, slope in zip(tableau.b, slopes, strict=True):
            y = y + h * float(weight) * slope
    return y


# Step numbers at which each order is past its start-up and still far above rounding.
STEPS = {1: (64, 128, 256), 2: (32, 64, 128), 3: (32, 64, 128), 4: (16, 32, 64), 5: (16, 32, 64)}


def order_of_convergence(steps: Sequence[int], errors: Sequence[float]) -> float:
    """The p of errors C hᵖ (1 + d h), fitted to their logarithms.

    The correction d h is fitted too: the pairs of order 5 make their C so small that, where the errors are above
    rounding, the next term still counts.
    """
    n = np.array(steps, dtype=float)
    design = np.stack([np.ones_like(n), -np.log(n), 1 / n], axis=1)
    return float(np.linalg.lstsq(design, np.log(errors))[0][1])


@cache
def fewest_repeated_steps(steps: int, snapshots: int) -> int:
    """Least number of steps to take again when reversing a chain (Griewank and Walther 2000, eq. 2), by trying all."""
    if steps <= 1:
        return 0
    if snapshots == 1:
        return steps * (steps - 1) // 2
    return min(
        m + fewest_repeated_steps(steps - m, snapshots - 1) + fewest_repeated_steps(m, snapshots)
        for m in range(1, steps)
    )


# Linear systems


def conjugate_gradient_iterates(matrix: np.ndarray, b: np.ndarray, steps: int) -> list[np.ndarray]:
    """The textbook method on one dense system: x_0 = 0, x_1, …"""
    x, r = np.zeros_like(b), b.copy()
    p = r.copy()
    iterates = [x.copy()]
    for _ in range(steps):
        alpha = (r @ r) / (p @ matrix @ p)
        x = x + alpha * p
        r_next = r - alpha * matrix @ p
        p = r_next + (r_next @ r_next) / (r @ r) * p
        r = r_next
        iterates.append(x.copy())
    return iterates


def matrix_exponential(a: Tensor) -> Tensor:
    """expm of each matrix ``[tasks, P, P]``, by SciPy."""
    return torch.stack([torch.from_numpy(expm(matrix.numpy())) for matrix in a])


def rows_times(matrices: Tensor, rows: Tensor) -> Tensor:
    """Matrices ``[tasks, P, P]`` times rows ``[tasks, P]``, one task after the other."""
    return torch.stack([matrix @ row for matrix, row in zip(matrices, rows, strict=True)])


# Models, one task at a time


class Split:
    """A model's parameters as two flat vectors, adapted θ and shared ψ."""

    def __init__(self, model: nn.Module, adapt: str | None = None) -> None:
        self.model = model
        trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        self.adapted = {name: p for name, p in trainable.items() if adapt is None or fnmatchcase(name, adapt)}
        self.shared = {name: p for name, p in trainable.items() if name not in self.adapted}

    @property
    def theta(self) -> Tensor:
        return torch.cat([p.reshape(-1) for p in self.adapted.values()])

    @property
    def psi(self) -> Tensor:
        return torch.cat([p.reshape(-1) for p in self.shared.values()]) if self.shared else torch.zeros(0)

    def predict(self, theta: Tensor, psi: Tensor, x: Tensor) -> Tensor:
        named = {**self.cut(self.adapted, theta), **self.cut(self.shared, psi)}
        return functional_call(self.model, named, (x,))

    @staticmethod
    def cut(like: Mapping[str, Tensor], flat: Tensor) -> dict[str, Tensor]:
        found, at = {}, 0
        for name, p in like.items():
            found[name] = flat[at : at + p.numel()].reshape(p.shape)
            at += p.numel()
        return found

    def named(self, theta: Tensor, psi: Tensor) -> dict[str, Tensor]:
        return {**self.cut(self.adapted, theta), **self.cut(self.shared, psi)}


class Derivatives(NamedTuple):
    """Of one task's loss: value, gradient, Hessian, mixed derivative ``[P, Q]``, Gauss-Newton matrix."""

    loss: Tensor
    gradient: Tensor
    hessian: Tensor
    mixed: Tensor
    gauss_newton: Tensor


def derivatives(
    split: Split, loss: Callable[[Tensor, Tensor], Tensor], phi: Tensor, x: Tensor, y: Tensor
) -> Derivatives:
    """Dense derivatives of one task's loss at φ ``[P]``."""
    psi = split.psi

    def value(phi: Tensor, psi: Tensor) -> Tensor:
        return loss(split.predict(phi, psi, x), y)

    with sdpa_kernel(SDPBackend.MATH):
        prediction = split.predict(phi, psi, x)
        jacobian = jacrev(split.predict)(phi, psi, x).reshape(prediction.numel(), -1)
        curvature = hessian(lambda z: loss(z.reshape(prediction.shape), y))(prediction.reshape(-1))
        mixed = jacrev(grad(value), 1)(phi, psi) if psi.numel() else torch.zeros(phi.numel(), 0)
        found = (
            value(phi, psi),
            grad(value)(phi, psi),
            jacrev(grad(value))(phi, psi),
            mixed,
            jacobian.T @ curvature @ jacobian,
        )
    return Derivatives(*(tensor.detach() for tensor in found))


# Meta-gradients


class Reference(NamedTuple):
    """Query losses ``[tasks]`` and gradients of their mean, by parameter name and by hyperparameter name."""

    losses: Tensor
    grad: dict[str, Tensor]
    hyper: dict[str, Tensor]


def through_every_step(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    tasks: TaskBatch,
    *,
    horizon: float,
    steps: int,
    tableau: ButcherTableau = EULER,
    adapt: str | None = None,
    proximal: float = 0.0,
    rates: Tensor | None = None,
) -> Reference:
    """One graph through every stage of every step of every task, and one call of autograd.grad on it."""
    split = Split(model, adapt)
    theta, psi = split.theta.requires_grad_(), split.psi.requires_grad_()
    hyper = {
        "horizon": torch.tensor(horizon).requires_grad_(),
        "proximal": torch.tensor(proximal).requires_grad_(),
        "rates": (torch.ones_like(theta) if rates is None else rates.clone()).detach().requires_grad_(),
    }
    losses = []
    for i in range(len(tasks)):

        def field(_t: Tensor, phi: Tensor, i: int = i) -> Tensor:
            value = loss(split.predict(phi, psi, tasks.support.x[i]), tasks.support.y[i])
            (gradient,) = torch.autograd.grad(value, phi, create_graph=True)
            return -hyper["rates"] * gradient - hyper["proximal"] * (phi - theta)

        with sdpa_kernel(SDPBackend.MATH):
            phi = runge_kutta(tableau, field, 0.0, hyper["horizon"], steps, theta * 1)
            losses.append(loss(split.predict(phi, psi, tasks.query.x[i]), tasks.query.y[i]))
    inputs = (theta, psi, *hyper.values())
    found = torch.autograd.grad(torch.stack(losses).mean(), inputs, allow_unused=True, materialize_grads=True)
    return Reference(torch.stack(losses).detach(), split.named(*found[:2]), dict(zip(hyper, found[2:], strict=True)))


def implicit(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    tasks: TaskBatch,
    *,
    proximal: float,
    descend: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
    solve: Callable[[Tensor, Tensor], Tensor],
    adapt: str | None = None,
    gauss_newton: bool = False,
) -> Reference:
    """iMAML a task at a time with dense matrices.

    Args:
        descend: (∇L_s as a function of φ, θ) → φ, the inner solve.
        solve: (H, c) → g, what is done instead of (I + H/λ)⁻¹ c.
    """
    split = Split(model, adapt)
    theta, psi = split.theta, split.psi
    total_theta, total_psi, total_proximal = torch.zeros_like(theta), torch.zeros_like(psi), torch.zeros(())
    losses = []
    for i in range(len(tasks)):
        support = (tasks.support.x[i], tasks.support.y[i])
        phi = descend(lambda p, support=support: derivatives(split, loss, p, *support).gradient, theta)
        inner = derivatives(split, loss, phi, *support)

        def query(p: Tensor, q: Tensor, i: int = i) -> Tensor:
            return loss(split.predict(p, q, tasks.query.x[i]), tasks.query.y[i])

        losses.append(query(phi, psi))
        cotangent = grad(query)(phi, psi)
        g = solve(inner.gauss_newton if gauss_newton else inner.hessian, cotangent)
        total_theta += g
        total_psi += (grad(query, 1)(phi, psi) if psi.numel() else psi) - inner.mixed.T @ g / proximal
        total_proximal += -(g @ (phi - theta)) / proximal
    n = len(tasks)
    return Reference(torch.stack(losses), split.named(total_theta / n, total_psi / n), {"proximal": total_proximal / n})


def difference_quotient(
    learner: nn.Module, tasks: TaskBatch, parameters: Sequence[nn.Parameter], h: float = 1e-5
) -> list[Tensor]:
    """Central differences of the mean query loss in each entry of some of a learner's own parameters."""
    found = []
    for parameter in parameters:
        before = parameter.detach().clone()

        def at(value: Tensor, parameter: nn.Parameter = parameter) -> float:
            with torch.no_grad():
                parameter.copy_(value)
                return float(learner(tasks))

        found.append(central_difference(at, before, h))
        with torch.no_grad():
            parameter.copy_(before)
    return found
