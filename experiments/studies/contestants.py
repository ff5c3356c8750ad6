"""Who takes part when meta-gradients are timed: our methods on each backend, other packages, and the references."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adjoint_meta.engine import BACKENDS
from adjoint_meta.learner import MetaLearner
from adjoint_meta.meta_gradients import ANIL, FOMAML, MAML, AdjointMAML, ImplicitMAML, MemoryReduced, Method, Reptile

from .bilevel_peers import CG_STEPS, DAMPING, plain_anil, plain_itd, plain_maml, plain_memory_reduced
from .competitors import MISSING
from .peers import by_higher, by_torchdiffeq, by_torchopt, flow_steps, installed, unrolled
from .workloads import INNER_LR, Placed, flat

# A call without arguments that returns the meta-gradient [P], in the order of the model's parameters.
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Contestant:
    """A way to take a meta-gradient.

    Args:
        prepare: from a workload, a number of inner steps and a backend to the call that is timed.
        target: what its gradient should equal: "descent", reverse mode through n steps; "flow", the gradient flow's
            to T = nα; ``None`` where there is no such number, as for Reptile.
        own: whether it is this package's, and so has backends.
        package: what it needs.
    """

    prepare: Callable[[Placed, int, str], Run]
    target: str | None
    own: bool = True
    package: str = "torch"


def _ours(method: Callable[[int], Method], **options: Any) -> Callable[[Placed, int, str], Run]:
    def prepare(placed: Placed, steps: int, backend: str) -> Run:
        learner = MetaLearner(
            placed.model, placed.loss, method(steps), backend=backend, **{"adapt": placed.adapt, **options}
        )

        # Each new shape of points is looked at once, not in every meta-gradient.
        learner.support_problem(placed.tasks.support)

        def run() -> Tensor:
            with warnings.catch_warnings():
                # What methods warn of, as steps outside the stability interval, the column of errors shows.
                warnings.simplefilter("ignore", RuntimeWarning)
                gradient = learner.meta_gradient(placed.tasks).grad
                found = flat([gradient[name] for name, _ in placed.model.named_parameters()])
            if backend not in ("auto", "eager") and not learner.engine.replayed:
                raise RuntimeError(f"backend {backend}: nothing could be compiled here")
            return found

        return run

    return prepare


def _theirs(gradient: Callable[[Placed, int], Tensor]) -> Callable[[Placed, int, str], Run]:
    return lambda placed, steps, backend: lambda: gradient(placed, steps)


def horizon(steps: int) -> float:
    """Return the length of the flow that n steps of gradient descent follow."""
    return steps * INNER_LR


def rk4(steps: int) -> AdjointMAML:
    """Return A-MAML by rk4, one step for ten of gradient descent."""
    return AdjointMAML(horizon=horizon(steps), solver="rk4", steps=flow_steps(steps))


def _maml(steps: int) -> MAML:
    return MAML(steps, INNER_LR)


def _imaml(cg_steps: int, proximal: float = 1.0) -> Contestant:
    def method(n: int) -> ImplicitMAML:
        return ImplicitMAML(proximal, n, INNER_LR, cg_steps=cg_steps, cg_tol=0.0)

    return Contestant(_ours(method), None)


CONTESTANTS: dict[str, Contestant] = {
    "MAML": Contestant(_ours(_maml), "descent"),
    "MAML checkpointed": Contestant(_ours(lambda n: MAML(n, INNER_LR, adjoint="checkpointed")), "descent"),
    "A-MAML rk4": Contestant(_ours(rk4), "flow"),
    "A-MAML auto": Contestant(_ours(lambda n: AdjointMAML(horizon=horizon(n), solver="auto")), "flow"),
    "iMAML": _imaml(5),
    "FOMAML": Contestant(_ours(lambda n: FOMAML(n, INNER_LR)), "descent"),
    "Reptile": Contestant(_ours(lambda n: Reptile(n, INNER_LR)), None),
    "torch.func unrolled": Contestant(_theirs(unrolled), "descent", own=False),
    "higher": Contestant(_theirs(by_higher), "descent", own=False, package="higher"),
    "torchopt": Contestant(_theirs(by_torchopt), "descent", own=False, package="torchopt"),
    "torchdiffeq adjoint": Contestant(_theirs(by_torchdiffeq), "flow", own=False, package="torchdiffeq"),
}
# In a decoder as deep as this, what adapts is two blocks; halves of them are the larger part to save.
_PARTS = ("blocks.*.attention", "blocks.*.mlp")
# The same meta-gradient of a decoder by every mode, beside plain unrolling.
DEEP: dict[str, Contestant] = {
    "plain unrolling": Contestant(_theirs(unrolled), "exact", own=False),
    "reverse over reverse": Contestant(_ours(_maml, mode="reverse_over_reverse"), "exact"),
    "forward over reverse": Contestant(_ours(_maml, mode="forward_over_reverse"), "exact"),
    "remat, reverse over reverse": Contestant(_ours(_maml, mode="reverse_over_reverse", remat=_PARTS), "exact"),
    "remat, forward over reverse": Contestant(_ours(_maml, mode="forward_over_reverse", remat=_PARTS), "exact"),
}
# At its random initialisation the Omniglot network has curvatures below -2, where CG would stop early and cost less.
CONVEX = 10.0
# Those that only a figure of a paper asks for; A-MAML with a state for each step of gradient descent, as in the paper.
VARIANTS: dict[str, Contestant] = {
    **{f"iMAML with {cg_steps} CG steps": _imaml(cg_steps, CONVEX) for cg_steps in (2, 5, 10)},
    "A-MAML Heun": Contestant(
        _ours(lambda n: AdjointMAML(horizon=horizon(n), solver="heun", steps=n, adjoint="interpolating")), "flow"
    ),
}


def _memory_reduced(steps: int) -> MemoryReduced:
    return MemoryReduced(steps, INNER_LR, cg_steps=CG_STEPS, cg_tol=0.0, damping=DAMPING)


# Few-shot learning a task at a time, as the papers' code goes through a batch, in this package and in plain torch.
_HEAD: dict[str, Any] = {"adapt": "head.*", "chunk_size": 1}
FEW_SHOT: dict[str, Contestant] = {
    "memory-reduced": Contestant(_ours(_memory_reduced, **_HEAD), None),
    "memory-reduced, all tasks at once": Contestant(_ours(_memory_reduced, adapt="head.*"), None),
    "ANIL and ITD-BiO": Contestant(_ours(lambda n: ANIL(n, INNER_LR), **_HEAD), None),
    "MAML, task by task": Contestant(_ours(_maml, chunk_size=1), None),
    "plain Algorithm 1": Contestant(_theirs(plain_memory_reduced), None, own=False),
    "plain ANIL": Contestant(_theirs(plain_anil), None, own=False),
    "plain ITD-BiO": Contestant(_theirs(plain_itd), None, own=False),
    "plain MAML": Contestant(_theirs(plain_maml), None, own=False),
}
# Not timed: what the errors are taken against, in float64.
REFERENCES: dict[str, Contestant] = {
    "descent": Contestant(_theirs(unrolled), None, own=False),
    "flow": Contestant(_ours(lambda n: AdjointMAML(horizon=horizon(n), solver="tsit5", rtol=1e-7)), None),
    # In float64 a deep model's unrolled graph would not fit; tests hold the two against each other.
    "exact": Contestant(_ours(_maml), None),
}
ENTRANTS = {**CONTESTANTS, **DEEP, **VARIANTS, **FEW_SHOT}


def backends() -> tuple[str, ...]:
    """Return the learner's backends, without the choice between them."""
    return tuple(name for name in BACKENDS if name != "auto")


def unavailable(backend: str, device: torch.device) -> str | None:
    """Return why a backend is left out here, before anything is tried."""
    if backend == "cudagraph" and device.type != "cuda":
        return f"backend {backend}: left out, it needs a CUDA device"
    return None


def missing() -> list[str]:
    """Return a line for each package that is not installed."""
    packages = dict.fromkeys(contestant.package for contestant in CONTESTANTS.values())
    return [MISSING.format(package) for package in packages if not installed(package)]
