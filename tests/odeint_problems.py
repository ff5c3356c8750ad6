"""Fields for odeint, with and without parameters, starts, a count of calls, and a loss of the solution."""

from __future__ import annotations

import pytest
import torch
from references import relative
from torch import Tensor, nn

from adjoint_meta.solvers.odeint import odeint, odeint_adjoint

FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]
both_solvers = pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
both_ways = pytest.mark.parametrize("direction", ["forward", "backward"])


class Counted:
    """A function that counts its calls and notes what it was called with."""

    def __init__(self, func) -> None:
        self.func, self.count, self.seen = func, 0, []

    def __call__(self, t, y):
        self.count += 1
        self.seen.append((t, y))
        return self.func(t, y)


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], -torch.sin(y[0]) - 0.1 * y[1] + 0.3 * torch.cos(t)])


def times(direction: str, count: int = 5) -> Tensor:
    t = torch.linspace(0.2, 1.7, count) ** 1.3
    return t if direction == "forward" else t.flip(0)


START = torch.tensor([1.0, -0.4], dtype=torch.float64)
Y0 = torch.ones(2, dtype=torch.float64)
T = torch.tensor([0.0, 1.0], dtype=torch.float64)


def decay(t, y):
    return -y


def pair(t, state):
    x, v = state
    return v, -x.sum() * torch.ones_like(v) - 0.2 * v


class Net(nn.Module):
    """A small field that depends on time."""

    def __init__(self, generator: torch.Generator, size: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size + 1, 5), nn.Tanh(), nn.Linear(5, size))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(torch.cat([y, t.expand(*y.shape[:-1], 1)], dim=-1))


class Problem:
    """A net, a start, times and weights of a loss."""

    def __init__(self, generator: torch.Generator, direction: str = "forward") -> None:
        self.net = Net(generator)
        self.y0 = torch.randn(3, 2, generator=generator).requires_grad_()
        t = torch.tensor([0.1, 0.35, 0.9, 1.0, 1.4])
        self.t = (t if direction == "forward" else t.flip(0)).clone().requires_grad_()
        self.weights = torch.randn(5, 3, 2, generator=generator)

    @property
    def inputs(self) -> list[Tensor]:
        return [self.y0, self.t, *self.net.parameters()]

    def loss(self, solve, **arguments) -> Tensor:
        return (self.weights * solve(self.net, self.y0, self.t, **arguments)).sum()

    def gradients(self, solve, **arguments) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.loss(solve, **arguments), self.inputs)


def assert_same(found, expected, rtol: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert relative(ours, theirs) < rtol
