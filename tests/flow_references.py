"""Flows solved on paper: steps that a solver has chosen, taken again in one graph, and flows to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from problems import Quadratic
from references import Reference, Split, matrix_exponential, rows_times, runge_kutta, through_every_step
from torch import Tensor, nn

from adjoint_meta import TaskBatch
from adjoint_meta.solvers import TABLEAUS, RowSteps

Field = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class Taken(NamedTuple):
    """A step: its size, and its stages if the solver chose them."""

    h: float
    stages: int | None


class Watched:
    """The steps that every task took in the last solve at its own pace."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[list[Taken]] = []
        solve = RowSteps.integrate

        def integrate(plan: RowSteps, field: object, y0: Tensor, record=None):
            steps: list[list[Taken]] = [[] for _ in y0]

            def see(rows, t, h, stages, taken) -> None:
                for k, row in enumerate(rows.tolist()):
                    steps[row].append(Taken(float(h[k]), None if stages is None else int(stages[k])))
                if record is not None:
                    record(rows, t, h, stages, taken)

            self.steps = steps
            return solve(plan, field, y0, see)

        monkeypatch.setattr(RowSteps, "integrate", integrate)


def chebyshev_step(f: Field, h: Tensor, y: Tensor, stages: int, damping: float = 2 / 13) -> Tensor:
    """One step of RKC in the states Y_j, with T_j(w0) = cosh(jθ), w0 = cosh θ, and its derivatives in closed form.

    Sommeijer, Shampine, Verwer 1997, section 2.
    """
    w0 = 1 + damping / stages**2
    angle = math.acosh(w0)
    value = [math.cosh(j * angle) for j in range(stages + 1)]
    slope = [j * math.sinh(j * angle) / math.sinh(angle) for j in range(stages + 1)]
    # Chebyshev's equation (1 − x²) T″ − x T′ + j² T = 0
    curvature = [(w0 * slope[j] - j * j * value[j]) / (1 - w0 * w0) for j in range(stages + 1)]
    w1 = slope[stages] / curvature[stages]
    b = [curvature[max(j, 2)] / slope[max(j, 2)] ** 2 for j in range(stages + 1)]
    first = f(y, y)
    states = [y, y + b[1] * w1 * h * first]
    for j in range(2, stages + 1):
        mu, nu, tilde = 2 * w0 * b[j] / b[j - 1], -b[j] / b[j - 2], 2 * w1 * b[j] / b[j - 1]
        gamma = -(1 - b[j - 1] * value[j - 1]) * tilde
        state = (1 - mu - nu) * y + mu * states[-1] + nu * states[-2]
        states.append(state + tilde * h * f(y, states[-1]) + gamma * h * first)
    return states[-1]


def through_taken_steps(
    model: nn.Module,
    loss: Loss,
    tasks: TaskBatch,
    solver: str,
    taken: Sequence[Sequence[Taken]],
    *,
    horizon: float,
    adapt: str | None = None,
    proximal: float = 0.0,
    rates: Tensor | None = None,
) -> Reference:
    """`through_every_step` with each task's own steps, which grow in proportion to the horizon."""
    split = Split(model, adapt)
    theta, psi = split.theta.requires_grad_(), split.psi.requires_grad_()
    hyper = {
        "horizon": torch.tensor(horizon).requires_grad_(),
        "proximal": torch.tensor(proximal).requires_grad_(),
        "rates": (torch.ones_like(theta) if rates is None else rates.clone()).detach().requires_grad_(),
    }
    losses = []
    for i, steps in enumerate(taken):

        def field(_t: Tensor, phi: Tensor, i: int = i) -> Tensor:
            value = loss(split.predict(phi, psi, tasks.support.x[i]), tasks.support.y[i])
            (gradient,) = torch.autograd.grad(value, phi, create_graph=True)
            return -hyper["rates"] * gradient - hyper["proximal"] * (phi - theta)

        phi = theta * 1
        for h, stages in steps:
            size = h / horizon * hyper["horizon"]
            if stages is None:
                phi = runge_kutta(TABLEAUS[solver], field, 0.0, size, 1, phi)
            else:
                phi = chebyshev_step(field, size, phi, stages)
        losses.append(loss(split.predict(phi, psi, tasks.query.x[i]), tasks.query.y[i]))
    inputs = (theta, psi, *hyper.values())
    found = torch.autograd.grad(torch.stack(losses).mean(), inputs, allow_unused=True, materialize_grads=True)
    return Reference(torch.stack(losses).detach(), split.named(*found[:2]), dict(zip(hyper, found[2:], strict=True)))


def through_the_flow(model: nn.Module, loss: Loss, tasks: TaskBatch, *, horizon: float, steps: int, **options):
    """The flow's own meta-gradient, as exact as ``steps`` steps of order 5 are."""
    return through_every_step(model, loss, tasks, horizon=horizon, steps=steps, tableau=TABLEAUS["tsit5"], **options)


class QuadraticFlow(NamedTuple):
    """φ(T) ``[tasks, P]`` of a quadratic flow and the gradients of the mean query loss in θ ``[P]`` and T."""

    phi: Tensor
    theta: Tensor
    horizon: Tensor


def quadratic_flow(tasks: Quadratic, horizon: float) -> QuadraticFlow:
    """φ(T) = b + e^{−AT}(θ − b), dJ/dθ = e^{−AT}c and dJ/dT = ⟨c, −A(φ(T) − b)⟩."""
    propagator = matrix_exponential(-horizon * tasks.a)
    phi = tasks.b + rows_times(propagator, tasks.theta - tasks.b)
    cotangent = tasks.cotangent(phi)
    duration = (cotangent * -rows_times(tasks.a, phi - tasks.b)).sum(dim=1).mean()
    return QuadraticFlow(phi, rows_times(propagator, cotangent).mean(dim=0), duration)


def proximal_point(tasks: Quadratic, proximal: float) -> tuple[Tensor, Tensor]:
    """argmin of L_s + ½λ‖φ − θ‖² ``[tasks, P]``, and the meta-gradient λ(A + λI)⁻¹c of each task there."""
    shifted = tasks.a + proximal * torch.eye(tasks.a.shape[1])
    phi = torch.linalg.solve(shifted, rows_times(tasks.a, tasks.b) + proximal * tasks.theta)
    return phi, proximal * torch.linalg.solve(shifted, tasks.cotangent(phi))


def concatenated(gradients: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    """Some gradients as one vector, in the order of the names."""
    return torch.cat([gradients[name].flatten() for name in names])
