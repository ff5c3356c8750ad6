"""Other people's solvers on the same flow: torchdiffeq, torchode, and the scheme of the released A-MAML code."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adjoint_meta.adaptation import GradientFlow
from adjoint_meta.meta_gradients.base import Adapted, Pullback
from adjoint_meta.problem import Problem
from adjoint_meta.solvers import RungeKutta, SolverError, UniformGrid, integrate
from adjoint_meta.solvers.solution import finite_codes, raise_if_failed
from adjoint_meta.solvers.tableaus import MORE_TABLEAUS

from .subject import Solve

# What to say of a package that is not there.
MISSING = "{0} is not installed: pip install 'adjoint-meta[bench]'"


class _Flow(torch.autograd.Function):
    """The flow as an autograd function: a gradient forward, one HVP backward, and φ alone kept between them.

    Written with ``create_graph=True`` it would cost the same evaluations, and the memory of every graph.
    """

    @staticmethod
    def forward(ctx: Any, flow: GradientFlow, phi: Tensor) -> Tensor:
        ctx.flow, ctx.phi = flow, phi.detach()
        with torch.enable_grad():
            return flow(0.0, ctx.phi).detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor]:
        with torch.enable_grad():
            return None, ctx.flow.vjp(0.0, ctx.phi, upstream[0]).state


class _Module(nn.Module):
    """The flow as a module f(t, φ), which `odeint_adjoint` asks for."""

    def __init__(self, flow: GradientFlow) -> None:
        super().__init__()
        self._flow = flow

    def forward(self, t: Tensor, phi: Tensor) -> Tensor:
        value: Tensor = _Flow.apply(self._flow, phi)
        return value


def _by_autograd(problem: Problem, theta: Tensor, end_of: Callable[[_Module, Tensor], Tensor]) -> Adapted:
    """Return a solve that autograd differentiates."""
    start = theta.detach().clone().requires_grad_()
    try:
        end = end_of(_Module(GradientFlow(problem, theta)), start)
    except AssertionError as error:  # how torchdiffeq says that its step size vanished
        raise SolverError(str(error)) from error
    raise_if_failed("the inner solve", finite_codes(end.detach()))

    def pullback(c: Tensor) -> Pullback:
        try:
            (found,) = torch.autograd.grad(end, start, c)
        except AssertionError as error:
            raise SolverError(str(error)) from error
        return Pullback(found, theta.new_empty(0), {})

    return Adapted(end.detach(), pullback, {})


def torchdiffeq_solve(horizon: float, rtol: float, *, adjoint: bool = False) -> Solve:
    """Return dopri5 of torchdiffeq, one step size for the batch, differentiated by autograd or solved backward."""
    return _torchdiffeq(horizon, adjoint, rtol=rtol, atol=rtol / 100, method="dopri5")


def torchdiffeq_steps(horizon: float, steps: int) -> Solve:
    """Return rk4 of torchdiffeq in equal steps, solved backward by `odeint_adjoint` in as many."""
    return _torchdiffeq(horizon, True, method="rk4", options={"step_size": horizon / steps})


def _torchdiffeq(horizon: float, adjoint: bool, **options: Any) -> Solve:
    import torchdiffeq

    def end_of(field: _Module, start: Tensor) -> Tensor:
        times = torch.tensor([0.0, horizon], dtype=start.dtype, device=start.device)
        if adjoint:
            end: Tensor = torchdiffeq.odeint_adjoint(field, start, times, adjoint_params=(), **options)[-1]
        else:
            end = torchdiffeq.odeint(field, start, times, **options)[-1]
        return end

    return lambda problem, theta: _by_autograd(problem, theta, end_of)


def has_torchode() -> bool:
    """Return whether torchode can be imported."""
    return importlib.util.find_spec("torchode") is not None


def torchode_solve(horizon: float, rtol: float, method: str) -> Solve:
    """Return a method of torchode ("Tsit5", "Dopri5"), one step size a row, differentiated by autograd."""
    torchode = importlib.import_module("torchode")

    def end_of(field: _Module, start: Tensor) -> Tensor:
        term = torchode.ODETerm(field)
        control = torchode.IntegralController(rtol / 100, rtol, term=term)
        solver = torchode.AutoDiffAdjoint(
            getattr(torchode, method)(term=term), control, backprop_through_step_size_control=False
        )
        ends = torch.tensor([0.0, horizon], dtype=start.dtype, device=start.device).expand(len(start), 2)
        found = solver.solve(torchode.InitialValueProblem(start, t_start=ends[:, 0], t_end=ends[:, 1]))
        bad = found.status != torchode.Status.SUCCESS.value
        if bool(bad.any()):
            raise SolverError(f"torchode ended with status {int(found.status[bad][0])}")
        end: Tensor = found.ys[:, -1]
        return end

    return lambda problem, theta: _by_autograd(problem, theta, end_of)


def released_scheme(horizon: float, steps: int) -> Solve:
    """Return what the released A-MAML code computes: torchdiffeq's rk4 forward, Euler backward with n + 1 steps.

    a ← (I − h ∇²L_s(u_j)) a for j = n, n−1, …, 0 (github.com/shib0li/Adjoint-MAML, commit 0b387f9), without the
    proximal term that the paper does not have. It takes 4n gradients and n + 1 HVPs.
    """

    def solve(problem: Problem, theta: Tensor) -> Adapted:
        flow = GradientFlow(problem, theta)
        grid = UniformGrid(0.0, horizon, steps)
        states = [theta]
        stepper = RungeKutta(MORE_TABLEAUS["rk4_38"])  # torchdiffeq's rk4 is the 3/8 rule
        end = integrate(stepper, flow, grid, theta, record=lambda index, taken: states.append(taken.end))
        raise_if_failed("the inner solve", finite_codes(end))

        def pullback(c: Tensor) -> Pullback:
            a = c
            for state in reversed(states):
                a = a + grid.step_size * flow.vjp(0.0, state, a).state
            return Pullback(a, theta.new_empty(0), {})

        return Adapted(end, pullback, {})

    return solve
