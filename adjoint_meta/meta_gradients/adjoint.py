"""A-MAML: adapt by a gradient flow, and pull the query cotangent back by the adjoint of its solve."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from adjoint_meta.compiled_steps import compiled
from adjoint_meta.inner_solvers import ADAPTIVE, IMPLICIT, SOLVERS, AutomaticSteps, chosen_steps, equal_steps
from adjoint_meta.problem import Problem
from adjoint_meta.solvers import TABLEAUS, Backsolve, Checkpointed, Discrete, Interpolating, SteadyState, checks
from adjoint_meta.solvers.adjoints import Adjoint
from adjoint_meta.solvers.paths import Plan
from adjoint_meta.solvers.runge_kutta import RungeKutta
from adjoint_meta.solvers.solution import raise_if_failed

from .base import Adapted, Hyper, Method, Pullback

ADJOINTS = ("discrete", "checkpointed", "interpolating", "backsolve")


@dataclass(frozen=True)
class Flow(Method):
    """What the methods that solve dφ/dt = −D∇L_s(φ) − λ(φ − θ) have in common.

    The pullback of the exact adjoints transposes the steps taken, so the meta-gradient is that of the φ(T) computed,
    to rounding. With the costate a it gives, in one sweep,
        dJ/dθ = a(0) + λ∫a dt,  dJ/dψ = ∂_ψL_q − ∫∂_ψ⟨∇_φL_s, Da⟩dt,
        dJ/dT = ⟨a(T), f(φ(T))⟩,  dJ/dλ = −∫⟨a, φ−θ⟩dt,  dJ/dD = −∫a∘∇L_s dt,
    each integral by the quadrature that the steps imply (Li, Wang, Narayan, Kirby, Zhe 2023, section 3).
    """

    def plan(self, problem: Problem, hyper: Hyper) -> Plan:
        """Return what steps, and how far."""
        raise NotImplementedError

    def transposition(self) -> Adjoint:
        """Return how the solve is differentiated."""
        raise NotImplementedError

    def duration_gradients(self, duration: Tensor) -> dict[str, Tensor]:
        """Return the hyperparameter gradients that dJ/dT ``[]`` implies."""
        raise NotImplementedError

    def adapt(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Tensor:
        """Solve the flow and return φ(T)."""
        flow = self._flow(problem, theta, hyper)
        found = compiled(self.plan(problem, hyper), flow).run(flow, theta, "nothing")
        raise_if_failed("the inner solve", found.codes)
        return found.end

    def solve(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Adapted:
        """Solve the flow, keeping what its transpose needs."""
        flow = self._flow(problem, theta, hyper)
        solved = self.transposition().solve(compiled(self.plan(problem, hyper), flow), flow, theta)
        if not problem.unread:
            solved.raise_if_failed()
        stats = solved.stats

        def pullback(c: Tensor) -> Pullback:
            back = solved.pullback(c)
            before = stats.get("stability", back.stability)
            stats["stability"] = torch.maximum(before, back.stability)
            if not problem.unread:
                self.judge(stats)
            parts = flow.split(back.parameters)
            found = {**parts, **self.duration_gradients(back.duration.sum())}
            start = back.start + parts["theta"] if "theta" in parts else back.start
            return Pullback(start, parts["psi"], {name: found[name] for name in hyper})

        return Adapted(solved.end, pullback, stats, solved.codes if problem.unread else None)


@dataclass(frozen=True)
class AdjointMAML(Flow):
    """A-MAML: gradient flow to a horizon by an ODE solver, meta-gradient by the adjoint of that solve.

    Li, Wang, Narayan, Kirby, Zhe, Meta-Learning with Adjoint Methods, AISTATS 2023.

    Args:
        horizon: T, the length of the flow; T = steps × learning rate of gradient descent. ``math.inf`` follows the
            flow until ‖f‖ ≤ ``steady_tol`` and differentiates by the implicit function theorem, for convex or
            proximal problems.
        solver: explicit ("euler", "midpoint", "heun", "bosh3", "rk4", "dopri5", "tsit5"), stabilised ("rkc"),
            implicit ("implicit_euler", "sdirk2"), or "auto", which chooses one and its steps from ‖H‖·T.
        steps: number of equal steps n; h = T / n must keep h·‖H‖ inside an explicit solver's stability interval.
            10 when neither it nor ``rtol`` is given and the solver is not adaptive.
        rtol: relative tolerance a step, with which "heun", "bosh3", "dopri5", "tsit5" and "rkc" choose each task's
            steps, inside the stability interval; 1e-3 for the last four when ``steps`` is not given either. With
            "auto", the tolerance on the meta-gradient itself; 1e-2 when not given.
        atol: absolute tolerance a step; ``None`` takes rtol / 100.
        adjoint: ``"discrete"`` stores the stage states; ``"checkpointed"`` keeps ``snapshots`` states and rebuilds
            the rest; both are exact. ``"interpolating"`` and ``"backsolve"`` solve the costate equation by the
            explicit solver itself (Heun's method for the others), over the stored trajectory or backward in time.
        snapshots: states kept by ``"checkpointed"``, ⌈√(2n)⌉ and 10 at most when ``None``; by ``"backsolve"``, none
            when ``None``.
        memory: bytes that the snapshots of ``"checkpointed"`` may take, in place of their number.
        offload: keep these snapshots in the host's memory.
        proximal: λ of an optional ½λ‖φ − θ‖².
        steady_tol: ‖f‖ at which a task is at rest, with an infinite horizon.
        learn: hyperparameters to learn on a log scale: "horizon", "proximal", "rates" (one rate a parameter).

    Raises:
        ValueError, TypeError: for an argument out of range or an unknown name.
    """

    learnable: ClassVar[tuple[str, ...]] = ("horizon", "proximal", "rates")

    horizon: float = 1.0
    solver: str = "rk4"
    steps: int | None = None
    adjoint: str = "discrete"
    snapshots: int | None = None
    proximal: float = 0.0
    learn: tuple[str, ...] = ()
    memory: int | None = None
    offload: bool = False
    rtol: float | None = None
    atol: float | None = None
    steady_tol: float = 1e-5

    def __post_init__(self) -> None:
        checks.one_of("solver", self.solver, SOLVERS)
        if self.horizon != math.inf:
            checks.positive("horizon", self.horizon)
        checks.at_least("proximal", self.proximal, 0.0)
        checks.positive("steady_tol", self.steady_tol)
        check_adjoint(self.adjoint, self.snapshots, memory=self.memory, offload=self.offload)
        self._check_learn()
        self._check_steps()
        self._check_limits()

    def _check_steps(self) -> None:
        if self.steps is not None:
            checks.count("steps", self.steps)
            if self.rtol is not None:
                raise ValueError(f"give steps or rtol, not both; got steps={self.steps} and rtol={self.rtol}")
            if self.solver == "auto":
                raise ValueError(f"solver='auto' chooses its steps by rtol; got steps={self.steps}")
        if self.rtol is not None:
            checks.positive("rtol", self.rtol)
            if self.solver not in (*ADAPTIVE, "auto"):
                raise ValueError(
                    f"solver={self.solver!r} takes steps, it has no estimate of its error for rtol={self.rtol}; "
                    f"adaptive solvers are {', '.join(ADAPTIVE)}"
                )
        if self.atol is not None:
            checks.at_least("atol", self.atol, 0.0)
            if not self.adaptive or self.solver == "auto":
                raise ValueError(
                    f"atol={self.atol} has no use here: it belongs to rtol and a solver with error control"
                )

    def _check_limits(self) -> None:
        if "rates" in self.learn and (self.solver in IMPLICIT or self.horizon == math.inf):
            raise ValueError(
                "learned rates make the flow's Jacobian unsymmetric, for which conjugate gradients are not made; use "
                f"an explicit solver and a finite horizon, not solver={self.solver!r} and horizon={self.horizon}"
            )
        if self.horizon != math.inf:
            return
        if not self.adaptive or self.solver == "auto":
            raise ValueError(
                f"an infinite horizon needs an adaptive solver ({', '.join(ADAPTIVE)}) without steps, heun with rtol; "
                f"got solver={self.solver!r}, steps={self.steps}, rtol={self.rtol}"
            )
        if self.adjoint != "discrete" or "horizon" in self.learn:
            raise ValueError(
                "an infinite horizon is differentiated by the implicit function theorem: leave adjoint at "
                "'discrete', and do not learn the horizon"
            )

    @property
    def adaptive(self) -> bool:
        """Whether the tasks choose their own steps."""
        if self.rtol is not None:
            return True
        return self.steps is None and self.solver in (*ADAPTIVE, "auto") and self.solver != "heun"

    @property
    def equal_steps(self) -> int | None:
        """The number of equal steps, or ``None`` if the tasks choose their own."""
        return None if self.adaptive else self.steps or 10

    @property
    def watches(self) -> bool:
        """Whether the solve estimates ‖H‖, and so can use the direction that an earlier one ended with."""
        return self.adaptive

    def plan(self, problem: Problem, hyper: Hyper) -> Plan:
        """Return n equal steps to T, or steps by their error."""
        horizon = hyper.get("horizon", self.horizon)
        if self.equal_steps is not None:
            return equal_steps(self.solver, horizon, self.equal_steps)
        start = None if problem.steepest is None else problem.steepest.expand(problem.tasks, -1)
        if self.solver == "auto":
            return AutomaticSteps(horizon, self.rtol or 1e-2, start)
        rtol = self.rtol or 1e-3
        atol = rtol / 100 if self.atol is None else self.atol
        return chosen_steps(self.solver, horizon, rtol, atol, start, self.steady_tol * (self.horizon == math.inf))

    def transposition(self) -> Adjoint:
        """Return how the solve is differentiated."""
        if self.horizon == math.inf:
            return SteadyState()
        costate = RungeKutta(TABLEAUS[self.solver if self.solver in TABLEAUS else "heun"])
        return build_adjoint(self.adjoint, self.snapshots, costate, self.memory, self.offload)

    def solve(self, problem: Problem, theta: Tensor, hyper: Hyper) -> Adapted:
        """Solve the flow, keeping what its transpose needs.

        Raises:
            ValueError: if the horizon is infinite and φ(∞) does not depend on any meta-parameter.
        """
        if self.horizon == math.inf and self.proximal == 0 and problem.psi.numel() == 0:
            raise ValueError(
                "with horizon=inf and no proximal term φ(∞) does not depend on θ, so its meta-gradient would be zero; "
                "set proximal, or adapt only some of the parameters"
            )
        return super().solve(problem, theta, hyper)

    def judge(self, stats: Mapping[str, Any]) -> None:
        """Warn when a task left the stability interval."""
        stability = stats["stability"]
        outside = int((stability > 1).sum())
        if outside:
            warnings.warn(
                f"the inner steps left the stability interval in {outside} of {len(stability)} tasks: h‖H‖ reached "
                f"{float(stability.max()):.2f} of its limit. The transposed steps amplify there, so the meta-gradient "
                "is that of the steps taken but far from that of the flow. Take more steps, a shorter horizon, or an "
                "adaptive solver",
                RuntimeWarning,
                stacklevel=2,
            )

    def duration_gradients(self, duration: Tensor) -> dict[str, Tensor]:
        """Return dJ/dT."""
        return {"horizon": duration}


def check_adjoint(
    adjoint: str,
    snapshots: int | None,
    known: tuple[str, ...] = ADJOINTS,
    *,
    memory: int | None = None,
    offload: bool = False,
) -> None:
    """Refuse an unknown adjoint, and what it would not use."""
    checks.one_of("adjoint", adjoint, known)
    if snapshots is not None:
        checks.count("snapshots", snapshots)
        if adjoint not in ("checkpointed", "backsolve"):
            raise ValueError(f"snapshots={snapshots} has no use with adjoint={adjoint!r}; say adjoint='checkpointed'")
    if (memory is not None or offload) and adjoint != "checkpointed":
        given = f"memory={memory}" if memory is not None else "offload=True"
        raise ValueError(f"{given} has no use with adjoint={adjoint!r}; say adjoint='checkpointed'")
    Checkpointed(snapshots, memory, offload)


def build_adjoint(
    adjoint: str, snapshots: int | None, costate: RungeKutta, memory: int | None = None, offload: bool = False
) -> Adjoint:
    """Return the adjoint of that name; ``costate`` steps the costate equation of the continuous ones."""
    if adjoint == "interpolating":
        return Interpolating(costate)
    if adjoint == "backsolve":
        return Backsolve(costate, anchors=snapshots or 0)
    return Discrete() if adjoint == "discrete" else Checkpointed(snapshots, memory, offload)
