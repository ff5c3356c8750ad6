"""Gradient descent as an inner solve: equal Euler steps on a gradient flow, to a number or to a tolerance."""

from __future__ import annotations

import torch
from torch import Tensor

from adjoint_meta.solvers import RungeKutta, UniformGrid, UniformSteps
from adjoint_meta.solvers.linear import ROUND
from adjoint_meta.solvers.tableaus import EULER

from .adaptation import GradientFlow
from .compiled_steps import compiled


def descend(flow: GradientFlow, phi: Tensor, lr: float, max_steps: int, tol: float) -> Tensor:
    """Follow the flow by steps of size ``lr`` until every row's gradient has fallen enough.

    A row stops when ‖f(φ)‖ ≤ tol · ‖f(φ at the start)‖; rows that have stopped no longer move.

    Args:
        phi: where to start, shape ``[tasks, P]``.
        lr: step size α.
        max_steps: most steps.
        tol: relative size of the gradient at which a row is done; 0 always takes ``max_steps``.
    """
    if tol == 0:
        plan = UniformSteps(RungeKutta(EULER), UniformGrid(0.0, lr * max_steps, max_steps))
        return compiled(plan, flow).run(flow, phi, "nothing").end
    bound: Tensor | None = None
    pace = 1 if phi.device.type == "cpu" else ROUND  # the host waits for the device when it looks
    for step in range(max_steps):
        slope = flow(0.0, phi)
        size = torch.linalg.vector_norm(slope, dim=1, keepdim=True)
        bound = tol * size if bound is None else bound
        done = (size <= bound) & torch.isfinite(size)  # a gradient that is not finite must not pass for a small one
        if step % pace == 0 and bool(done.all()):
            break
        phi = phi + lr * torch.where(done, 0.0, slope)
    return phi
