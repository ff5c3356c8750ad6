"""One idea: every meta-gradient is a pullback of the query cotangent through the inner solve."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from adjoint_meta.adaptation import GradientFlow
from adjoint_meta.evaluations import Evaluations
from adjoint_meta.problem import Problem
from adjoint_meta.solvers import SolverError, checks
from adjoint_meta.solvers.solution import raise_if_failed

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
    """An inner solve: φ(T), the pullback through it, and how it went.

    Args:
        phi: shape ``[tasks, P]``.
        pullback: of the query cotangent.
        stats: to which the pullback adds.
        codes: how each task's solve ended, ``[tasks]``, where that is still to be looked at.
    """

    phi: Tensor
    pullback: Callable[[Tensor], Pullback]
    stats: dict[str, Any]
    codes: Tensor | None = None


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

    def judge(self, stats: Mapping[str, Any]) -> None:
        """Look at the statistics of a finished meta-gradient, and warn of what makes it doubtful."""
        del stats

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
    """What `meta_gradient` finds.

    Args:
        losses: query losses, ``[tasks]``.
        theta, psi, hyper: gradients of their mean in θ ``[P]``, ψ ``[Q]`` and the hyperparameters.
        stats: what the method reports.
        codes: how each task's inner solve ended, ``[tasks]``, where that has not been looked at.
    """

    losses: Tensor
    theta: Tensor
    psi: Tensor
    hyper: Mapping[str, Tensor]
    stats: dict[str, Any]
    codes: Tensor | None = None


def meta_gradient(method: Method, problem: Problem, theta: Tensor, hyper: Hyper) -> RowGradients:
    """Return the gradient of the mean query loss after adaptation.

    Args:
        theta: θ, shape ``[P]``.
        hyper: learnable hyperparameters.

    Raises:
        SolverError: if the inner solve failed or the meta-gradient is not finite.
    """
    before = problem.evaluations.counts()
    found = unchecked(method, problem, theta, hyper)
    check(method, found)
    return with_counts(found, problem.evaluations, before)


def with_counts(found: RowGradients, evaluations: Evaluations, before: tuple[int, int, int]) -> RowGradients:
    """Return it with the numbers of gradients and products since these counts among the statistics."""
    _, n_grad, n_hvp = (now - then for now, then in zip(evaluations.counts(), before, strict=True))
    return found._replace(stats={"n_grad": n_grad, "n_hvp": n_hvp, **found.stats})


def unchecked(method: Method, problem: Problem, theta: Tensor, hyper: Hyper) -> RowGradients:
    """Return what is still to be checked; of a problem that is ``unread``, without reading anything back."""
    adapted = method.solve(problem, theta.repeat(problem.tasks, 1), hyper)
    losses, *gradients = problem.query_gradients(adapted.phi)
    c, direct = (gradients.pop(0) / problem.tasks for _ in range(2))  # not held twice: rows of a large P count
    pulled = adapted.pullback(c)
    psi = problem.shared_gradient(pulled.psi, direct)
    return RowGradients(losses, pulled.theta.sum(dim=0), psi, pulled.hyper, adapted.stats, adapted.codes)


def check(method: Method, found: RowGradients) -> None:
    """Look at what was found.

    Raises:
        SolverError: if the inner solve failed or the meta-gradient is not finite.
    """
    if found.codes is not None:  # else the method has looked at them, and judged its statistics
        raise_if_failed("the inner solve", found.codes)
        method.judge(found.stats)
    parts = (found.losses, found.theta, found.psi, *found.hyper.values())
    if not bool(torch.stack([torch.isfinite(values).all() for values in parts]).all()):
        raise SolverError(
            "the query loss or the meta-gradient is not finite although the inner solve was: the adapted parameters "
            "are huge, or the transposed steps amplify. Take more inner steps, or a shorter horizon or smaller "
            "learning rate"
        )
