"""A-MAML: adapt by a gradient flow, and pull the query cotangent back by the adjoint of its solve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adjoint_meta.problem import Problem
from adjoint_meta.solvers import TABLEAUS, ButcherTableau, Checkpointed, Discrete, UniformGrid, checks, integrate
from adjoint_meta.solvers.adjoints import Adjoint
from adjoint_meta.solvers.solution import finite_codes, raise_if_failed

from .base import Adapted, Hyper, Method, Pullback

ADJOINTS = ("discrete", "checkpointed")


@dataclass(frozen=True)
class Flow(Method):
    """What the methods that solve dφ/dt = −D∇L_s(φ) − λ(φ − θ) in explicit steps have in common.

    The pullback transposes the steps taken, so the meta-gradient is that of the φ(T) computed, to rounding. With the
    costate a it gives, in one sweep,
        dJ/dθ = a(0) + λ∫a dt,  dJ/dψ = ∂_ψL_q − ∫∂_ψ⟨∇_φL_s, Da⟩dt,
        dJ/dT = ⟨a(T), f(φ(T))⟩,  dJ/dλ = −∫⟨a, φ−θ⟩dt,  dJ/dD = −∫a∘∇L_s dt,
    each integral by the quadrature that the steps imply (Li, Wang, Narayan, Kirby, Zhe 2023, section 3).
    """

    def tableau(self) -> ButcherTableau:
        """Return the stepper's coefficients."""
        raise NotImplementedError

    def grid(self, hyper: Hyper) -> UniformGrid:
        """Return the steps to take."""
        raise NotImplementedError

    def transposition(self) -> Adjoint:
        """Return how the solve is differentiated."""
        raise NotImplementedError

    def duration_gradients(self, duration: Tensor) -> dict[str, Tensor]:
        """Return the hyperparameter gradients that dJ/dT ``[]`` implies."""
        raise NotImplementedError

    def adapt(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Tensor:
        """Solve the flow and return φ(T)."""
        end = integrate(self.tableau(), self._flow(problem, theta, hyper), self.grid(hyper), theta)
        raise_if_failed("the inner solve", finite_codes(end))
        return end

    def solve(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Adapted:
        """Solve the flow, keeping what its transpose needs."""
        flow = self._flow(problem, theta, hyper)
        solved = self.transposition().solve(self.tableau(), flow, self.grid(hyper), theta)
        solved.raise_if_failed()

        def pullback(c: Tensor) -> Pullback:
            back = solved.pullback(c)
            parts = flow.split(back.parameters)
            found = {**parts, **self.duration_gradients(back.duration.sum())}
            start = back.start + parts["theta"] if "theta" in parts else back.start
            return Pullback(start, parts["psi"], {name: found[name] for name in hyper})

        return Adapted(solved.end, pullback, {})


@dataclass(frozen=True)
class AdjointMAML(Flow):
    """A-MAML: gradient flow to a horizon by an ODE solver, meta-gradient by the adjoint of that solve.

    Li, Wang, Narayan, Kirby, Zhe, Meta-Learning with Adjoint Methods, AISTATS 2023.

    Args:
        horizon: T, the length of the flow; T = steps × learning rate of gradient descent.
        solver: explicit Runge-Kutta method.
        steps: number of equal steps n; h = T / n must keep h·‖H‖ inside the solver's stability interval.
        adjoint: ``"discrete"`` stores the stage states; ``"checkpointed"`` keeps ``snapshots`` states and rebuilds
            the rest. Both are exact.
        snapshots: states kept by ``"checkpointed"``; ``None`` takes ⌈√(2n)⌉.
        proximal: λ of an optional ½λ‖φ − θ‖².
        learn: hyperparameters to learn on a log scale: "horizon", "proximal", "rates" (one rate a parameter).

    Raises:
        ValueError, TypeError: for an argument out of range or an unknown name.
    """

    learnable: ClassVar[tuple[str, ...]] = ("horizon", "proximal", "rates")

    horizon: float = 1.0
    solver: str = "rk4"
    steps: int = 10
    adjoint: str = "discrete"
    snapshots: int | None = None
    proximal: float = 0.0
    learn: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks.positive("horizon", self.horizon)
        checks.one_of("solver", self.solver, TABLEAUS)
        checks.count("steps", self.steps)
        check_adjoint(self.adjoint, self.snapshots)
        checks.at_least("proximal", self.proximal, 0.0)
        self._check_learn()

    def tableau(self) -> ButcherTableau:
        """Return the solver's coefficients."""
        return TABLEAUS[self.solver]

    def grid(self, hyper: Hyper) -> UniformGrid:
        """Return n equal steps to T."""
        return UniformGrid(0.0, hyper.get("horizon", self.horizon), self.steps)

    def transposition(self) -> Adjoint:
        """Return the stored or the checkpointed transpose."""
        return build_adjoint(self.adjoint, self.snapshots)

    def duration_gradients(self, duration: Tensor) -> dict[str, Tensor]:
        """Return dJ/dT."""
        return {"horizon": duration}


def check_adjoint(adjoint: str, snapshots: int | None) -> None:
    """Refuse an unknown adjoint, and snapshots that nothing would use."""
    checks.one_of("adjoint", adjoint, ADJOINTS)
    if snapshots is not None:
        checks.count("snapshots", snapshots)
        if adjoint != "checkpointed":
            raise ValueError(f"snapshots={snapshots} has no use with adjoint={adjoint!r}; say adjoint='checkpointed'")


def build_adjoint(adjoint: str, snapshots: int | None) -> Adjoint:
    """Return the adjoint of that name."""
    return Discrete() if adjoint == "discrete" else Checkpointed(snapshots)
