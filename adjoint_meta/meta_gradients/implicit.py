"""iMAML: a proximal inner problem, and its implicit derivative by conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adjoint_meta.adaptation import GradientFlow
from adjoint_meta.curvature import ChunkedLinearisation
from adjoint_meta.descent import descend
from adjoint_meta.newton import minimise
from adjoint_meta.problem import Problem
from adjoint_meta.solvers import checks
from adjoint_meta.solvers.linear import MatVec
from adjoint_meta.solvers.solution import Status, finite_codes, raise_if_failed

from .base import Adapted, Hyper, Method, Pullback
from .inversion import invert


@dataclass(frozen=True)
class ImplicitMAML(Method):
    """iMAML: φ* = argmin L_s(φ) + ½λ‖φ − θ‖², meta-gradient g = (I + H/λ)⁻¹ c by CG.

    With g, dJ/dψ = ∂_ψL_q − ∂_ψ⟨∇_φL_s, g⟩/λ and dJ/dλ = −⟨g, φ − θ⟩/λ. All hold at the minimiser, so how far the
    inner solve got decides their error. Rajeswaran, Finn, Kakade, Levine, NeurIPS 2019.

    Args:
        proximal: λ.
        steps: most inner steps on the proximal objective.
        inner_lr: size α of gradient steps, stable while α(‖H‖ + λ) < 2; Newton's method finds its own.
        inner_tol: stop a task when its gradient has fallen by this factor; 0 takes all steps, of Newton's method those
            to rounding.
        cg_steps: most CG steps, for g and for a direction of Newton's method; 0 leaves g = c.
        cg_tol: relative residual at which CG stops.
        inner: inner minimiser; ``"gd"`` is gradient descent. ``"newton-cg"`` is the paper's Hessian-free variant:
            each step solves (H + λI) d = −∇G by CG, which stops at negative curvature, so that d leads downhill
            wherever it is, and backtracks along d until the objective G has fallen enough.
        curvature: ``"hessian"``, or ``"ggn"`` for the Gauss-Newton product, which is never indefinite.
        variant: ``"paper"``, or ``"released"`` for what the authors' code does: plain gradient steps, one step
            on the proximal term at the end, and CG on 2v + Hv/(λ + 10).
        learn: hyperparameters to learn on a log scale: "proximal".

    Raises:
        ValueError, TypeError: for an argument out of range or an unknown name.
    """

    learnable: ClassVar[tuple[str, ...]] = ("proximal",)

    proximal: float = 1.0
    steps: int = 50
    inner_lr: float = 0.01
    inner_tol: float = 0.0
    cg_steps: int = 5
    cg_tol: float = 1e-6
    inner: str = "gd"
    curvature: str = "hessian"
    variant: str = "paper"
    learn: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks.positive("proximal", self.proximal)
        checks.count("steps", self.steps)
        checks.positive("inner_lr", self.inner_lr)
        checks.at_least("inner_tol", self.inner_tol, 0.0)
        checks.count("cg_steps", self.cg_steps, least=0)
        checks.at_least("cg_tol", self.cg_tol, 0.0)
        checks.one_of("inner", self.inner, ("gd", "newton-cg"))
        checks.one_of("curvature", self.curvature, ("hessian", "ggn"))
        checks.one_of("variant", self.variant, ("paper", "released"))
        self._check_learn()
        if self.variant == "released" and self.learn:
            raise ValueError("variant='released' has no exact gradient for λ; learn it with variant='paper'")
        if self.variant == "released" and self.inner != "gd":
            raise ValueError("variant='released' is gradient descent; use inner='newton-cg' with variant='paper'")

    def adapt(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Tensor:
        """Minimise the proximal objective from θ."""
        return self._minimise(problem, theta, hyper)[0]

    def _minimise(self, problem: Problem, theta: Tensor, hyper: Hyper) -> tuple[Tensor, dict[str, object]]:
        """Return φ, and statistics of how it was found."""
        if self.inner == "newton-cg":
            return self._newton(problem, theta, hyper)
        flow = self._flow(problem, theta, hyper)
        if self.variant == "released":
            phi = descend(GradientFlow(problem, theta), theta, self.inner_lr, self.steps, self.inner_tol)
            phi = phi - self.inner_lr * self.proximal * (phi - theta)
        else:
            phi = descend(flow, theta, self.inner_lr, self.steps, self.inner_tol)
        raise_if_failed("the inner solve", finite_codes(phi))
        return phi, {}

    def _newton(self, problem: Problem, theta: Tensor, hyper: Hyper) -> tuple[Tensor, dict[str, object]]:
        flow = self._flow(problem, theta, hyper)
        found = minimise(
            problem,
            theta,
            flow.proximal,
            gauss_newton=self.curvature == "ggn",
            steps=self.steps,
            tol=self.inner_tol,
            cg_steps=self.cg_steps,
            cg_tol=self.cg_tol,
        )
        # That the steps did not reach the tolerance is no failure: there are only so many.
        raise_if_failed("the inner solve", found.info.codes, (Status.SUCCESS, Status.NEWTON))
        return found.y, {"inner_steps": found.info.steps, "inner_cg_iterations": found.info.cg_steps}

    def solve(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Adapted:
        """Minimise, and return the pullback through the minimiser."""
        phi, stats = self._minimise(problem, theta, hyper)
        flow = self._flow(problem, theta, hyper)

        def pullback(c: Tensor) -> Pullback:
            linear = problem.linearise(phi)
            g = self._invert(flow, linear, phi, c, stats)
            psi = torch.zeros_like(problem.psi)
            if psi.numel() > 0:
                psi = -linear.product(g)[1].psi / flow.proximal
            return Pullback(g, psi, {"proximal": -(g * (phi - theta)).sum() / flow.proximal} if hyper else {})

        return Adapted(phi, pullback, stats)

    def _operator(self, flow: GradientFlow, linear: ChunkedLinearisation, phi: Tensor) -> MatVec:
        """Return v ↦ (I + H/λ) v at the minimiser, or the variant's."""

        def matvec(v: Tensor) -> Tensor:
            gauss_newton = self.curvature == "ggn"
            product = flow.problem.gauss_newton(phi, v) if gauss_newton else linear.product(v, keep=True)[1].phi
            return v + product / flow.proximal if self.variant == "paper" else 2 * v + product / (flow.proximal + 10)

        return matvec

    def _invert(
        self, flow: GradientFlow, linear: ChunkedLinearisation, phi: Tensor, c: Tensor, stats: dict[str, object]
    ) -> Tensor:
        if self.cg_steps == 0:
            return c
        options = {"tol": self.cg_tol, "max_steps": self.cg_steps}
        g, found = invert(self._operator, (self.curvature, self.variant), flow, linear, phi, c, **options)
        stats |= found
        # A task whose very first direction fails has no iterate; the first-order gradient c is what 0 CG steps give.
        return torch.where((found["cg_iterations"] == 0)[:, None], c, g)
