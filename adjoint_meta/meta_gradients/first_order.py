"""FOMAML and Reptile: gradient descent, and no second derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adjoint_meta.descent import descend
from adjoint_meta.problem import Problem
from adjoint_meta.solvers import checks
from adjoint_meta.solvers.solution import finite_codes, raise_if_failed

from .base import Adapted, Hyper, Method, Pullback


@dataclass(frozen=True)
class _Descent(Method):
    """Plain gradient descent as the inner solve.

    Args:
        steps: number of gradient steps n.
        inner_lr: learning rate α.
    """

    steps: int = 5
    inner_lr: float = 0.01

    def __post_init__(self) -> None:
        checks.count("steps", self.steps)
        checks.positive("inner_lr", self.inner_lr)

    def adapt(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Tensor:
        """Take the gradient steps."""
        phi = descend(self._flow(problem, theta, hyper), theta, self.inner_lr, self.steps, tol=0.0)
        if not problem.unread:
            raise_if_failed("the inner solve", finite_codes(phi))
        return phi


@dataclass(frozen=True)
class FOMAML(_Descent):
    """First-order MAML: the query gradient at φ_n is taken for the meta-gradient.

    Shared parameters get their direct gradient ∂_ψ L_q at φ_n. Finn, Abbeel, Levine, ICML 2017, section 5.2.

    Args:
        steps: number of gradient steps n.
        inner_lr: learning rate α.
    """

    def solve(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Adapted:
        """Adapt; the pullback is the identity."""
        phi = self.adapt(problem, theta, hyper)
        return Adapted(phi, lambda c: Pullback(c, torch.zeros_like(problem.psi), {}), {}, _unseen(problem, phi))


@dataclass(frozen=True)
class Reptile(_Descent):
    """Reptile: the direction θ − φ_n stands in for the gradient; it is the gradient of no loss.

    Nichol, Achiam, Schulman, On First-Order Meta-Learning Algorithms, 2018.

    Args:
        steps: number of gradient steps n.
        inner_lr: learning rate α.
    """

    shares: ClassVar[bool] = False

    def solve(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Adapted:
        """Adapt; the query cotangent is not used, only its scale 1 / tasks."""
        phi = self.adapt(problem, theta, hyper)
        direction = (theta - phi) / problem.tasks
        return Adapted(phi, lambda c: Pullback(direction, torch.zeros_like(problem.psi), {}), {}, _unseen(problem, phi))


def _unseen(problem: Problem, phi: Tensor) -> Tensor | None:
    return finite_codes(phi) if problem.unread else None
