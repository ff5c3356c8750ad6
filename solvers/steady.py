"""The implicit-function adjoint of a steady state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import checks
from .adjoints import Cotangents, Solve
from .linear import conjugate_gradient
from .paths import Plan


@dataclass(frozen=True)
class SteadyState:
    """The derivative of the state y* in which f(y*, p) = 0, for a symmetric negative definite Jacobian.

    Where y* came from does not matter, and nothing of the way there is kept: with −J v = c by conjugate gradients,
    dy*/dpᵀ c = vᵀ ∂f/∂p. The initial state has no influence, so its cotangent is zero (Krantz, Parks, The Implicit
    Function Theorem; Rajeswaran, Finn, Kakade, Levine 2019).

    Args:
        cg_tol: relative residual at which CG stops.
        cg_steps: most CG steps.
    """

    cg_tol: float = 1e-6
    cg_steps: int = 100

    def __post_init__(self) -> None:
        checks.positive("cg_tol", self.cg_tol)
        checks.count("cg_steps", self.cg_steps)

    def solve(self, plan: Plan, field: Any, y0: Tensor) -> Solve:
        """Follow the field from y0 until it rests.

        The pullback raises `SolverError` when CG meets negative curvature or does not converge.
        """
        checks.rows("the initial state", y0)
        end, codes, _, stats = plan.run(field, y0, "nothing")

        def pullback(w: Tensor) -> Cotangents:
            v, info = conjugate_gradient(
                lambda x: -field.vjp(0.0, end, x).state, w, tol=self.cg_tol, max_steps=self.cg_steps
            )
            info.raise_if_failed()
            stats.update(cg_iterations=info.steps, cg_residual=info.residual)
            none = w.new_zeros(len(w))
            return Cotangents(w * 0, field.vjp(0.0, end, v).parameters, none, None, none)

        return Solve(end, codes, pullback, stats)
