"""One idea: every meta-gradient is a pullback of the query cotangent through the inner solve."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from adjoint_meta.adaptation import GradientFlow
from adjoint_meta.problem import Problem
from adjoint_meta.solvers import SolverError, checks

# Learnable hyperparameters by name, in natural units; a method takes its own argument for what is not in here.
Hyper = Mapping[str, Tensor]


class Pullback(NamedTuple):
    """Where the query cotangent c ``[tasks, P]`` ends up.

    Args:
        theta: ∂/∂θ of each task, shape ``[tasks, P]``.
        psi: the part of ∂/∂ψ that comes through the inner solve, shape ``[Q]``.
        hyper: gradients of the learnable hyperparameters, in natural units.
    """

    theta: Tensor
    psi: Tensor
    hyper: Mapping[str, Tensor]


class Adapted(NamedTuple):
    """An inner solve: φ(T) ``[tasks, P]``, the pullback through it, and statistics that the pullback adds to."""

    phi: Tensor
    pullback: Callable[[Tensor], Pullback]
    stats: dict[str, Any]


@dataclass(frozen=True)
class MetaGradient:
    """A meta-gradient and what it cost.

    Args:
        loss: query loss of each task after adaptation, shape ``[tasks]``.
        grad: gradient of the mean loss over tasks, by parameter name; parameters that are frozen do not appear.
        stats: n_grad, n_hvp (batched evaluations), and what the method reports, such as cg_residual.
        hyper: gradients of learnable hyperparameters in natural units (dJ/dT under "horizon").
    """

    loss: Tensor
    grad: dict[str, Tensor]
    stats: dict[str, Any]
    hyper: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Method(ABC):
    """How tasks adapt, and how the query cotangent is pulled back through the adaptation.

    Methods are frozen dataclasses: they keep their arguments, print themselves, and go into configurations and
    checkpoints.
    """

    # Names that `learn` may hold, each a positive quantity.
    learnable: ClassVar[tuple[str, ...]] = ()
    # Whether shared parameters ψ get a gradient.
    shares: ClassVar[bool] = True
    # Whether it only makes sense where some parameters are shared.
    partial: ClassVar[bool] = False

    @property
    def watches(self) -> bool:
        """Whether the solve estimates ‖H‖, and so can use the direction that an earlier one ended with."""
        return False

    @property
    def returning(self) -> int:
        """How many tasks go on at each meta-step from where the one before left them; 0 if all start anew."""
        return 0

    def check_shared(self, shared: bool) -> None:
        """Refuse a division of the parameters that would leave some without a gradient, or all.

        Args:
            shared: whether some do not adapt.

        Raises:
            ValueError: with the way out.
        """
        if shared and not self.shares:
            raise ValueError(
                f"{type(self).__name__} has no gradient for shared parameters; adapt all of them, or freeze the others "
                "with requires_grad_(False)"
            )
        if not shared and self.partial:
            raise ValueError(
                f"{type(self).__name__} learns what tasks share, and all parameters adapt; adapt only some of them, "
                "such as adapt='head.*'"
            )

    @property
    def learned(self) -> tuple[str, ...]:
        """The hyperparameters that are to be learned."""
        return tuple(getattr(self, "learn", ()))

    def initial(self, name: str, size: int) -> Tensor:
        """Return a learnable hyperparameter's first value: the argument of that name, or ones ``[P]`` for rates."""
        return torch.ones(size) if name == "rates" else torch.tensor(float(getattr(self, name)))

    @abstractmethod
    def adapt(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Tensor:
        """Return φ(T), shape ``[tasks, P]``, for θ as rows ``[tasks, P]``; nothing is kept for a pullback."""

    @abstractmethod
    def solve(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Adapted:
        """Adapt, and return the pullback through it."""

    def _flow(self, problem: Problem, theta: Tensor, hyper: Hyper) -> GradientFlow:
        proximal = hyper.get("proximal", getattr(self, "proximal", 0.0))
        return GradientFlow(problem, theta, proximal, hyper.get("rates"))

    def _check_learn(self) -> None:
        learn = getattr(self, "learn", ())
        if not isinstance(learn, tuple | list):
            got = "a string" if isinstance(learn, str) else repr(learn)
            raise TypeError(f"learn must be a tuple of names such as ({self.learnable[0]!r},), got {got}")
        object.__setattr__(self, "learn", tuple(dict.fromkeys(learn)))
        for name in learn:
            checks.one_of("learnable hyperparameter", name, self.learnable)
            if name != "rates":
                checks.positive(f"{name}, when it is learned on a log scale,", getattr(self, name))


class RowGradients(NamedTuple):
    """Query losses ``[tasks]`` and the gradients of their mean in θ ``[P]``, ψ ``[Q]`` and the hyperparameters."""

    losses: Tensor
    theta: Tensor
    psi: Tensor
    hyper: Mapping[str, Tensor]
    stats: dict[str, Any]


def meta_gradient(method: Method, problem: Problem, theta: Tensor, hyper: Hyper) -> RowGradients:
    """Return the gradient of the mean query loss after adaptation.

    Args:
        theta: θ, shape ``[P]``.
        hyper: learnable hyperparameters.

    Raises:
        SolverError: if the inner solve failed or the meta-gradient is not finite.
    """
    before = (problem.evaluations.n_grad, problem.evaluations.n_hvp)
    adapted = method.solve(problem, theta.repeat(problem.tasks, 1), hyper)
    losses, *gradients = problem.query_gradients(adapted.phi)
    c, direct = (gradients.pop(0) / problem.tasks for _ in range(2))  # not held twice: rows of a large P count
    pulled = adapted.pullback(c)
    theta_gradient = pulled.theta.sum(dim=0)
    psi_gradient = problem.shared_gradient(pulled.psi, direct)
    found = (losses, theta_gradient, psi_gradient, *pulled.hyper.values())
    if not bool(torch.stack([torch.isfinite(values).all() for values in found]).all()):
        raise SolverError(
            "the query loss or the meta-gradient is not finite although the inner solve was: the adapted parameters "
            "are huge, or the transposed steps amplify. Take more inner steps, or a shorter horizon or smaller "
            "learning rate"
        )
    stats = {
        "n_grad": problem.evaluations.n_grad - before[0],
        "n_hvp": problem.evaluations.n_hvp - before[1],
        **adapted.stats,
    }
    return RowGradients(losses, theta_gradient, psi_gradient, pulled.hyper, stats)
