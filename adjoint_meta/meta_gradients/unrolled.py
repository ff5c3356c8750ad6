"""MAML: gradient descent, and its exact reverse mode over stored iterates, with no graph across steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adjoint_meta.problem import Problem
from adjoint_meta.solvers import RungeKutta, UniformGrid, UniformSteps, checks
from adjoint_meta.solvers.adjoints import Adjoint
from adjoint_meta.solvers.tableaus import EULER

from .adjoint import Flow, build_adjoint, check_adjoint
from .base import Hyper


@dataclass(frozen=True)
class MAML(Flow):
    """MAML: n gradient steps, meta-gradient Π_k (I − αH(φ_k)) c over the stored iterates.

    Gradient descent is Euler's method with h = α, so this is the discrete adjoint of that solve: the same number as
    reverse mode through all steps. Finn, Abbeel, Levine, ICML 2017; Meta-SGD: Li et al. 2017.

    Args:
        steps: number of gradient steps n.
        inner_lr: learning rate α.
        adjoint: ``"discrete"`` stores the iterates; ``"checkpointed"`` keeps ``snapshots`` and rebuilds the rest.
        snapshots: states kept by ``"checkpointed"``; ``None`` takes ⌈√(2n)⌉, 10 at most.
        learn: hyperparameters to learn on a log scale: "inner_lr", "rates" (Meta-SGD: one factor a parameter).
        memory: bytes that the snapshots of ``"checkpointed"`` may take, in place of their number.
        offload: keep these snapshots in the host's memory.

    Raises:
        ValueError, TypeError: for an argument out of range or an unknown name.
    """

    learnable: ClassVar[tuple[str, ...]] = ("inner_lr", "rates")

    steps: int = 5
    inner_lr: float = 0.01
    adjoint: str = "discrete"
    snapshots: int | None = None
    learn: tuple[str, ...] = ()
    memory: int | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        checks.count("steps", self.steps)
        checks.positive("inner_lr", self.inner_lr)
        known = ("discrete", "checkpointed")
        check_adjoint(self.adjoint, self.snapshots, known, memory=self.memory, offload=self.offload)
        self._check_learn()

    def plan(self, problem: Problem, hyper: Hyper) -> UniformSteps:
        """Return n Euler steps of size α."""
        grid = UniformGrid(0.0, self.steps * hyper.get("inner_lr", self.inner_lr), self.steps)
        return UniformSteps(RungeKutta(EULER), grid)

    def transposition(self) -> Adjoint:
        """Return the stored or the checkpointed transpose."""
        return build_adjoint(self.adjoint, self.snapshots, RungeKutta(EULER), self.memory, self.offload)

    def duration_gradients(self, duration: Tensor) -> dict[str, Tensor]:
        """Return dJ/dα = n dJ/dT."""
        return {"inner_lr": self.steps * duration}


@dataclass(frozen=True)
class ANIL(MAML):
    """ANIL: MAML on the head alone; what comes before it is shared, and gets its gradient too.

    The head is whatever ``MetaLearner(..., adapt="head.*")`` names. Raghu, Raghu, Bengio, Vinyals, ICLR 2020.
    """

    partial: ClassVar[bool] = True
