"""RKC as its paper prints it, and fields to take its steps along."""

from __future__ import annotations

import numpy as np
import torch
from numpy.polynomial.chebyshev import Chebyshev as Series

from adjoint_meta.solvers.chebyshev import Chebyshev
from adjoint_meta.solvers.stepper import VJP

T, H = 0.3, 0.25
DAMPING = 2 / 13
MIXED = (5, 2, 9, 5)


class Forced:
    """f(t, y) = tanh(W y + sin(t) u) − y/2 with parameters (W, u); its pullback is autograd's, time included."""

    def __init__(self, generator: torch.Generator, size: int = 3) -> None:
        self.weight = torch.randn(size, size, generator=generator)
        self.force = torch.randn(size, generator=generator)

    @staticmethod
    def value(t, y, weight, force):
        return torch.tanh(y @ weight.T + torch.sin(torch.as_tensor(t)) * force) - y / 2

    def __call__(self, t, y):
        return self.value(t, y, self.weight, self.force)

    def vjp(self, t, y, w):
        times = torch.as_tensor(t, dtype=y.dtype).expand(len(y), 1)
        inputs = [tensor.detach().clone().requires_grad_() for tensor in (times, y, self.weight, self.force)]
        with torch.enable_grad():
            value = self.value(*inputs)
            time, state, *parameters = torch.autograd.grad(value, inputs, w)
        return VJP(value.detach(), state, tuple(parameters), time[:, 0])


class Diagonal:
    """f(t, y) = λ y, elementwise."""

    def __init__(self, rates: torch.Tensor) -> None:
        self.rates = rates

    def __call__(self, t, y):
        return self.rates * y

    def vjp(self, t, y, w):
        return VJP(self(t, y), self.rates * w)


def constants(stages: int, damping: float):
    """w0, w1, and for every j a_j, b_j and c_j, from NumPy's Chebyshev series and their derivatives."""
    w0 = 1 + damping / stages**2
    series = [Series.basis(j) for j in range(stages + 1)]
    value = np.array([p(w0) for p in series])
    slope = np.array([p.deriv()(w0) for p in series])
    curvature = np.array([p.deriv(2)(w0) if j > 1 else 0.0 for j, p in enumerate(series)])
    b = np.empty(stages + 1)
    b[2:] = curvature[2:] / slope[2:] ** 2
    b[:2] = b[2]
    w1 = slope[-1] / curvature[-1]
    nodes = np.append([0.0, b[1] * w1], w1 * curvature[2:] / slope[2:])
    return w0, w1, 1 - b * value, b, nodes


def textbook(f, t, h, y, stages: int, damping: float = DAMPING):
    """One step as the paper prints it, in the states Y_j; differentiable in everything."""
    w0, w1, a, b, c = constants(stages, damping)
    first = f(t, y)
    before, now = y, y + b[1] * w1 * h * first
    for j in range(2, stages + 1):
        mu, nu, mu_tilde = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], 2 * b[j] * w1 / b[j - 1]
        slope = f(t + c[j - 1] * h, now)
        following = (1 - mu - nu) * y + mu * now + nu * before + mu_tilde * h * (slope - a[j - 1] * first)
        before, now = now, following
    return now


def rkc(stages: int, damping: float = DAMPING) -> Chebyshev:
    return Chebyshev(damping=damping, default_stages=stages)


def drawn(generator: torch.Generator, rows: int = len(MIXED), size: int = 3) -> torch.Tensor:
    return torch.randn(rows, size, generator=generator)
