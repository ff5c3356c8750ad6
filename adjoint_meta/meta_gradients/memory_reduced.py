"""Memory-reduced meta-learning: heads by gradient descent, and one mixed product for what all tasks share."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adjoint_meta.adaptation import GradientFlow
from adjoint_meta.curvature import ChunkedLinearisation
from adjoint_meta.descent import descend
from adjoint_meta.problem import Problem
from adjoint_meta.solvers import checks
from adjoint_meta.solvers.linear import MatVec, neumann_series
from adjoint_meta.solvers.solution import finite_codes, raise_if_failed

from .base import Adapted, Hyper, Method, Pullback
from .inversion import invert


@dataclass(frozen=True)
class MemoryReduced(Method):
    """Memory-reduced meta-learning: dJ/dψ = ∂_ψL_q − ∂_ψ⟨∇_φL_s, v⟩ with ∇²_φL_s v = ∇_φL_q, at φ after n steps.

    Nothing is kept of the inner steps, and where a head adapts (``adapt="head.*"``) neither they nor CG evaluate what
    lies below it. The heads start from θ, which stays what it is: a minimiser does not depend on where the search
    for it began, so that the gradient of θ is zero, as in the authors' algorithm. Without shared parameters there
    would be nothing to learn, which is refused.

    The formula holds at a minimiser, so how far the inner solve and CG got decides its error. The Hessian of a softmax
    head is singular. That does no harm while ∇_φL_q lies in its range; but where the support has fewer points than the
    head has features it does not, v has no bound, and CG makes it the larger the more steps it takes. A warning says
    so, and damping, which the authors' code does without, is the remedy. Yang, Ma, Yu, Memory-Reduced Meta-Learning
    with Guaranteed Convergence, AAAI 2025.

    Args:
        steps: number of inner gradient steps n.
        inner_lr: their size α, stable while α‖H‖ < 2.
        inverse: how v is found: ``"cg"``, or ``"neumann"`` for η Σ (I − ηH)^q ∇_φL_q.
        cg_steps: most CG steps, or products of the Neumann series; 0 CG steps leave ∂_ψL_q alone.
        cg_tol: relative residual at which CG stops, eight roundings of the dtype at least.
        neumann_scale: η, stable while η‖H‖ < 2; α when ``None``.
        damping: δ of H + δI in place of H.
        warm_start: how many tasks return at each meta-step, the same ones in the same order; their heads, and CG, then
            start from where the meta-gradient before left them, which the learner keeps with its state. What is only
            adapted or evaluated starts from θ. 0 always does.
        warm: what then goes on: ``"heads"``, ``"v"`` or ``"both"``. A Neumann series has no start, so there it is the
            heads alone.

    Raises:
        ValueError, TypeError: for an argument out of range or an unknown name.
    """

    partial: ClassVar[bool] = True

    steps: int = 20
    inner_lr: float = 0.05
    inverse: str = "cg"
    cg_steps: int = 20
    cg_tol: float = 1e-8
    neumann_scale: float | None = None
    damping: float = 0.0
    warm_start: int = 0
    warm: str = "both"

    def __post_init__(self) -> None:
        checks.count("steps", self.steps)
        checks.positive("inner_lr", self.inner_lr)
        checks.one_of("inverse", self.inverse, ("cg", "neumann"))
        checks.count("cg_steps", self.cg_steps, least=0)
        checks.at_least("cg_tol", self.cg_tol, 0.0)
        checks.at_least("damping", self.damping, 0.0)
        checks.count("warm_start", self.warm_start, least=0)
        checks.one_of("warm", self.warm, ("both", "heads", "v"))
        if self.warm != "both" and not self.warm_start:
            raise ValueError(f"warm={self.warm!r} has no use with warm_start=0; say how many tasks return")
        if self.warm == "v" and self.inverse == "neumann":
            raise ValueError("warm='v' has no use with inverse='neumann', a series without a start; say warm='heads'")
        if self.neumann_scale is not None:
            checks.positive("neumann_scale", self.neumann_scale)
            if self.inverse != "neumann":
                raise ValueError(
                    f"neumann_scale={self.neumann_scale} has no use with inverse={self.inverse!r}; say "
                    "inverse='neumann'"
                )

    @property
    def returning(self) -> int:
        """How many tasks go on at each meta-step from where the one before left them."""
        return self.warm_start

    def adapt(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Tensor:
        """Take the gradient steps, from θ."""
        phi = descend(GradientFlow(problem, theta), theta, self.inner_lr, self.steps, tol=0.0)
        raise_if_failed("the inner solve", finite_codes(phi))
        return phi

    def solve(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Adapted:
        """Adapt, and return the pullback through the minimiser.

        Raises:
            ValueError: if not all the tasks that were said to return are here.
        """
        if self.warm_start and problem.tasks != self.warm_start:
            raise ValueError(
                f"warm_start={self.warm_start} goes on with that many tasks at each meta-step, got {problem.tasks}; "
                "train on all of them in one process, or start anew with warm_start=0"
            )
        start, known = (theta, None) if problem.warm is None else problem.warm
        start = theta if self.warm == "v" else start
        known = None if self.warm == "heads" else known
        phi = self.adapt(problem, start, hyper)
        stats: dict[str, Tensor] = {}

        def pullback(c: Tensor) -> Pullback:
            linear = problem.linearise(phi)
            v = self._inverse(GradientFlow(problem, theta), linear, phi, c, known, stats)
            if self.warm_start:
                stats["warm"] = torch.stack([phi, v])
            return Pullback(torch.zeros_like(theta), -linear.product(v)[1].psi, {})

        return Adapted(phi, pullback, stats)

    def _inverse(
        self,
        flow: GradientFlow,
        linear: ChunkedLinearisation,
        phi: Tensor,
        c: Tensor,
        known: Tensor | None,
        stats: dict[str, Tensor],
    ) -> Tensor:
        """Return v, from a start that may be known, and add to the statistics."""
        if self.inverse == "cg":
            tol = max(self.cg_tol, 8 * torch.finfo(c.dtype).eps)
            options = {"x0": known, "tol": tol, "max_steps": self.cg_steps}
            v, found = invert(self._operator, ("damped", self.damping), flow, linear, phi, c, **options)
            stats |= found
            # A start of long ago may leave more than none would, until CG has caught up.
            _warn_if_outside(found["cg_residual"], 1 if known is None else 100)
            return v
        scale = self.neumann_scale or self.inner_lr
        v, info = neumann_series(self._operator(flow, linear, phi), c, scale=scale, steps=self.cg_steps)
        raise_if_failed("the Neumann series", torch.where(torch.isfinite(c).all(dim=1), info.codes, 0))
        stats |= {"neumann_residual": info.residual}
        return v

    def _operator(self, flow: GradientFlow, linear: ChunkedLinearisation, phi: Tensor) -> MatVec:
        """Return v ↦ (H + δI) v."""
        return lambda v: linear.product(v, keep=True)[1].phi + self.damping * v


def _warn_if_outside(residual: Tensor, limit: float) -> None:
    """Warn of tasks whose v solves the system worse than none at all, by this factor."""
    outside = int((residual > limit).sum())
    if outside:
        warnings.warn(
            f"conjugate gradients ended in {outside} of {len(residual)} tasks with a residual of up to "
            f"{float(residual.max()):.2g} times ‖∇_φL_q‖: the support Hessian is singular, or nearly so, along a part "
            "of ∇_φL_q, where v has no bound. Set damping (0.1, for example), or take fewer CG steps",
            RuntimeWarning,
            stacklevel=2,
        )
