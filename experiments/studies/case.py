"""One initialisation at one horizon: its reference, and the points that solvers make on the work-precision plane."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adjoint_meta.meta_gradients import AdjointMAML
from adjoint_meta.solvers import SolverError

from .subject import Outcome, Solve, Subject, TooExpensive, by_method


@dataclass(frozen=True)
class Reference:
    """The flow and its meta-gradient at a tight tolerance, float64.

    Args:
        phi, gradient: φ(T) ``[tasks, P]`` and the meta-gradient ``[P]``.
        radius: the largest ‖H‖ met on the way, over tasks.
        phi_check, gradient_check: how far the second solve is from them, relative to the distance moved and to the
            gradient.
        moved: ‖φ(T) − θ‖ / ‖φ(T)‖.
        evaluations: batched, of the reference.
    """

    phi: Tensor
    gradient: Tensor
    radius: float
    phi_check: float
    gradient_check: float
    moved: float
    evaluations: int

    @classmethod
    def find(cls, subject: Subject, horizon: float, rtol: float) -> Reference:
        """Solve by tsit5 at this tolerance, and by dopri5 at ten times of it for a check."""
        found, other = (
            subject.measure(by_method(AdjointMAML(horizon=horizon, solver=solver, rtol=tolerance)))
            for solver, tolerance in (("tsit5", rtol), ("dopri5", 10 * rtol))
        )
        distance = (found.phi - subject.theta).norm()
        return cls(
            phi=found.phi,
            gradient=found.gradient,
            radius=float(found.stats["radius"].max()),
            phi_check=float((other.phi - found.phi).norm() / distance),
            gradient_check=float((other.gradient - found.gradient).norm() / found.gradient.norm()),
            moved=float(distance / found.phi.norm()),
            evaluations=found.evaluations.n_grad + found.evaluations.n_hvp,
        )


@dataclass(frozen=True)
class Point:
    """What one solve took, and how far it was off.

    Args:
        start, horizon: the initialisation's name, and T.
        curve: what varies along it are steps or tolerance: "rk4", "bosh3 adaptive", "auto", "torchdiffeq dopri5".
        adjoint: how it was differentiated.
        steps, rtol: as asked for; one is ``None``.
        own: whether the solver is this package's, and so says in ``trusted`` what to make of the gradient.
        phi_error, phi_error_moved: ‖φ(T) − reference‖ relative to ‖φ(T)‖, and to the distance moved ‖φ(T) − θ‖.
        gradient_error: relative.
        n_grad, n_hvp, n_loss: batched evaluations, those of the ‖H‖ estimate included; losses serve line searches.
        evaluations: gradients and HVPs together, batched.
        evaluations_a_task: the same, where a task that has left the batch costs nothing; mean over tasks.
        seconds: of the solve and the pullback.
        stability: largest share of the stability interval used.
        failed: why there is no result.
    """

    start: str
    horizon: float
    curve: str
    adjoint: str
    steps: int | None = None
    rtol: float | None = None
    own: bool = True
    phi_error: float | None = None
    phi_error_moved: float | None = None
    gradient_error: float | None = None
    n_grad: int = 0
    n_hvp: int = 0
    n_loss: int = 0
    evaluations: int = 0
    evaluations_a_task: float = 0.0
    seconds: float = 0.0
    stability: float | None = None
    choice: str | None = None
    failed: str | None = None

    @property
    def trusted(self) -> bool | None:
        """Whether the solve says that its meta-gradient is the flow's; ``None`` from solvers that do not judge it."""
        return None if not self.own or self.stability is None else self.stability <= 1

    def reaches(self, target: float) -> bool:
        """Whether the meta-gradient is as accurate as that."""
        return self.gradient_error is not None and self.gradient_error <= target


class Case:
    """Makes points, each once, at one initialisation and horizon.

    Args:
        start: the initialisation's name.
        subject: θ and the tasks.
        horizon: T.
        reference: the flow's.
        limit: most batched evaluations of a point.
    """

    def __init__(self, start: str, subject: Subject, horizon: float, reference: Reference, limit: int) -> None:
        self.start, self.subject, self.horizon, self.reference, self.limit = start, subject, horizon, reference, limit
        self.points: list[Point] = []
        self.skipped: list[str] = []

    def point(
        self, solver: str, *, adjoint: str = "discrete", steps: int | None = None, rtol: float | None = None
    ) -> Point:
        """Return the point of one of our solvers."""
        method = AdjointMAML(horizon=self.horizon, solver=solver, adjoint=adjoint, steps=steps, rtol=rtol)
        adaptive = rtol is not None and solver != "auto"
        return self.take(by_method(method), f"{solver} adaptive" if adaptive else solver, adjoint, steps, rtol)

    def take(
        self, solve: Solve, curve: str, adjoint: str, steps: int | None, rtol: float | None, *, own: bool = True
    ) -> Point:
        """Return the point of any solve; one taken before is not taken again."""
        for known in self.points:
            if (known.curve, known.adjoint, known.steps, known.rtol) == (curve, adjoint, steps, rtol):
                return known
        plain = Point(self.start, self.horizon, curve, adjoint, steps, rtol, own)
        try:
            found = self._judged(plain, self.subject.measure(solve, self.limit))
        except (SolverError, TooExpensive) as error:
            found = Point(**{**vars(plain), "failed": str(error)})
        self.points.append(found)
        return found

    def _judged(self, plain: Point, outcome: Outcome) -> Point:
        reference, spent = self.reference, outcome.evaluations
        off = (outcome.phi - reference.phi).norm()
        worse = (outcome.gradient - reference.gradient).norm()
        if not bool(torch.isfinite(off + worse)):
            raise SolverError("the result is finite, but too large for the norm of its error")
        chosen = {
            "phi_error": float(off / reference.phi.norm()),
            "phi_error_moved": float(off / (reference.phi - self.subject.theta).norm()),
            "gradient_error": float(worse / reference.gradient.norm()),
            "n_grad": spent.n_grad,
            "n_hvp": spent.n_hvp,
            "n_loss": spent.n_loss,
            "evaluations": spent.n_grad + spent.n_hvp,
            "evaluations_a_task": outcome.row_evaluations / len(self.subject.tasks),
            "seconds": outcome.seconds,
            "stability": outcome.stability,
            "choice": _choice(outcome) if plain.curve == "auto" else None,
        }
        return Point(**{**vars(plain), **chosen})

    def errors_resolved(self) -> float:
        """Return the error below which the reference says nothing: ten times its own."""
        return 10 * max(self.reference.phi_check, self.reference.gradient_check, torch.finfo(torch.float64).eps)


def _choice(outcome: Outcome) -> str:
    """Return what ``solver="auto"`` chose, in words."""
    stats = outcome.stats
    if stats.get("steps"):
        return f"{stats['solver']}, {stats['steps']} steps"
    return f"{stats['solver']}, tolerance {stats['tolerance']:.2g}"
