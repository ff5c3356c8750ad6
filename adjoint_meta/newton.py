"""Newton's method as an inner solve: truncated conjugate gradients for a direction, backtracking for its length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from adjoint_meta.solvers.linearised import Linearised
from adjoint_meta.solvers.newton_cg import NewtonResult, Stage, newton_cg
from adjoint_meta.solvers.stepper import Time

from .adaptation import GradientFlow
from .problem import Problem


def minimise(
    problem: Problem,
    theta: Tensor,
    proximal: float | Tensor,
    *,
    gauss_newton: bool = False,
    steps: int,
    tol: float,
    cg_steps: int,
    cg_tol: float,
) -> NewtonResult:
    """Minimise G = L_s + ½λ‖φ − θ‖² from θ, every task on its own; the residual of the result is ∇G / λ.

    φ = θ − ∇L_s(φ)/λ is the stage of a backward Euler step of 1/λ, and G / λ is its Φ: see `newton_cg`.

    Args:
        problem: the tasks.
        theta: θ as rows, shape ``[tasks, P]``.
        proximal: λ > 0.
        gauss_newton: find the directions with the Gauss-Newton product.
        steps: most Newton steps.
        tol: share of its first gradient at which a task is done.
        cg_steps: most CG steps for a direction.
        cg_tol: relative residual at which they stop.
    """
    flow = (GaussNewtonFlow if gauss_newton else GradientFlow)(problem, theta)
    stage = Stage(flow, 0.0, 1 / proximal, theta)
    return newton_cg(stage, theta, tol=0.0, fall=tol, max_steps=steps, cg_steps=cg_steps, cg_tol=cg_tol)


@dataclass(frozen=True)
class GaussNewtonFlow(GradientFlow):
    """A gradient flow near which products are those of the Gauss-Newton matrix, never indefinite for convex losses."""

    def linearise(self, t: Time, phi: Tensor) -> Linearised:
        """Return the flow near φ."""
        return _GaussNewton(self, phi)


class _GaussNewton:
    def __init__(self, flow: GradientFlow, phi: Tensor) -> None:
        self._flow, self._phi = flow, phi

    @cached_property
    def value(self) -> Tensor:
        return self._flow(0.0, self._phi)

    def product(self, w: Tensor) -> Tensor:
        return self._flow.pull(w, self._flow.problem.gauss_newton(self._phi, w))
