"""The solvers that `AdjointMAML` knows by name, and the plans they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

from torch import Tensor

from adjoint_meta.solvers import (
    SDIRK2,
    TABLEAUS,
    Chebyshev,
    Constant,
    Guard,
    ImplicitEuler,
    OwnSteps,
    PIController,
    RowSteps,
    RungeKutta,
    Stepper,
    UniformGrid,
    UniformSteps,
)
from adjoint_meta.solvers.paths import Plan, Run
from adjoint_meta.solvers.spectrum import SpectralRadius
from adjoint_meta.solvers.step_size import Controller

from .adaptation import GradientFlow

IMPLICIT: dict[str, Callable[[], Any]] = {"implicit_euler": ImplicitEuler, "sdirk2": SDIRK2}

# Solvers that estimate their error; without `steps` they choose their steps by it, heun only when told a tolerance.
ADAPTIVE = ("heun", "bosh3", "dopri5", "tsit5", "rkc")

SOLVERS = (*TABLEAUS, "rkc", *IMPLICIT, "auto")


def stepper(solver: str, *, adaptive: bool) -> Stepper:
    """Return the method of that name; to be adaptive it must know the slope at the end of its steps."""
    if solver in IMPLICIT:
        implicit: Stepper = IMPLICIT[solver]()
        return implicit
    if solver == "rkc":
        return Chebyshev()
    tableau = TABLEAUS[solver]
    return RungeKutta(tableau.with_last_slope() if adaptive else tableau)


def equal_steps(solver: str, horizon: float | Tensor, steps: int) -> Plan:
    """Return n equal steps to the horizon; rkc takes as many stages in each as ‖H‖ demands.

    It always begins with a Lanczos estimate of ‖H‖: no error control would make good one that is too small.
    """
    if solver != "rkc":
        return UniformSteps(stepper(solver, adaptive=False), UniformGrid(0.0, horizon, steps))
    return _own(solver, horizon, Constant(steps), Guard())


def chosen_steps(
    solver: str,
    horizon: float | Tensor,
    rtol: float,
    atol: float,
    start: Tensor | SpectralRadius | None = None,
    steady: float = 0.0,
) -> Plan:
    """Return steps that each task chooses by its error, inside the stability interval of its ‖H‖.

    Args:
        start: where power iteration starts, shape ``[tasks, P]``; ``None`` starts with Lanczos.
        steady: the flow ends where ‖f‖ falls to this; the horizon may be infinite then.
    """
    return _own(solver, horizon, PIController(rtol, atol), Guard(start=start), steady)


def _own(solver: str, horizon: float | Tensor, controller: Controller, guard: Guard, steady: float = 0.0) -> OwnSteps:
    # On the way to rest a step should damp every mode: with little damping, steps grow until |R| is 0.95.
    method = Chebyshev(damping=10.0) if solver == "rkc" and steady > 0 else stepper(solver, adaptive=True)
    return OwnSteps(RowSteps(method, 0.0, horizon, controller, guard, steady=steady))


@dataclass(frozen=True)
class Choice:
    """A solver for a horizon: its number of equal steps, or the tolerance by which it chooses them."""

    solver: str
    steps: int | None = None
    tolerance: float = 0.0


def choose(stiffness: float, rtol: float) -> Choice:
    """Choose solver and steps for a meta-gradient within ``rtol`` of the flow's.

    The rules were read off the work-precision study, at random and at meta-trained initialisations (docs, "How many
    evaluations?"). A short flow is smooth, and a few steps of rk4 are cheapest: their error grows as n z⁵ with
    z = h‖H‖, and the constant is the study's. A stiff one is rkc's, whose stages grow with the square root of
    stiffness; its second order has to be bought with a smaller tolerance, error ~ tolerance^0.54. Between them error
    control decides how many steps bosh3 takes, tsit5 where the tolerance is tight.

    Args:
        stiffness: ‖H‖·T, of the stiffest task, at the start.
        rtol: tolerance on the meta-gradient.
    """
    if stiffness < 5:
        z = min(1.7, (500 * rtol / max(stiffness, 1.0)) ** 0.25)
        return Choice("rk4", steps=max(1, ceil(stiffness / z)))
    if stiffness < 25 * (1e-2 / rtol) ** 0.38:
        return Choice("bosh3", tolerance=rtol / 3) if rtol >= 5e-4 else Choice("tsit5", tolerance=rtol / 4)
    return Choice("rkc", tolerance=min(30 * rtol**1.85, 0.1))


@dataclass(frozen=True)
class AutomaticSteps:
    """Solver and steps chosen from ‖H‖·T at the start, for a tolerance on the meta-gradient: see `choose`.

    Args:
        horizon: T.
        rtol: tolerance on the meta-gradient.
        start: as in `Guard`.
    """

    horizon: float | Tensor
    rtol: float
    start: Tensor | None = None

    def run(self, field: GradientFlow, y0: Tensor, keep: str) -> Run:
        """Estimate, choose, and solve."""
        radius = Guard(start=self.start).begin(field, 0.0, y0, field(0.0, y0))
        stiffness = float(radius.value.max() * self.horizon)
        choice = choose(stiffness, self.rtol)
        if choice.steps is not None:
            plan = equal_steps(choice.solver, self.horizon, choice.steps)
        else:
            plan = chosen_steps(choice.solver, self.horizon, choice.tolerance, choice.tolerance / 100, radius)
        found = plan.run(field, y0, keep)
        stats = {"radius": radius.value, "vector": radius.vector, **found.stats}
        stats |= {"solver": choice.solver, "steps": choice.steps, "tolerance": choice.tolerance}
        return found._replace(stats=stats)

    def path(self, field: GradientFlow) -> None:
        """Return ``None``: only the solve can tell how many steps there will be."""
