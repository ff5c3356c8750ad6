"""Several conjugate gradient steps on the curvature at one φ, as a single program of the engine."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from adjoint_meta.solvers.linear import CGState, MatVec, cg_step

from .adaptation import GradientFlow
from .curvature import ChunkedLinearisation

# (flow, its linearisation at φ, φ) → the operator to invert.
Operator = Callable[[GradientFlow, ChunkedLinearisation, Tensor], MatVec]


def advance(
    flow: GradientFlow, linear: ChunkedLinearisation, phi: Tensor, operator: Operator, key: tuple[object, ...]
) -> Callable[[CGState, int], CGState] | None:
    """Return what takes several steps at once, or ``None`` if the flow's engine makes no programs.

    In a program all products share one gradient's graph, and the vector updates are fused.

    Args:
        flow: of all tasks.
        linear: its linearisation at φ, for steps without a program.
        phi: where, shape ``[tasks, P]``.
        operator: what is to be inverted.
        key: what the operator depends on besides the flow.
    """
    curvature = flow.problem.curvature
    if curvature.engine.eager or not curvature.traceable:
        return None
    proximal = None if isinstance(flow.proximal, Tensor) else flow.proximal

    def several(state: CGState, count: int) -> CGState:
        def function(phi: Tensor, *tensors: Tensor) -> CGState:
            here = flow.over(tensors[len(state) :])
            return _steps(operator(here, here.problem.linearise(phi), phi), CGState(*tensors[: len(state)]), count)

        def eager() -> CGState:
            return _steps(operator(flow, linear, phi), state, count)

        tensors = (phi, *state, *flow.tensors())
        found: CGState = curvature.programs.run(("cg", *key, proximal, count), function, tensors, eager)
        return found

    return several


def _steps(matvec: MatVec, state: CGState, count: int) -> CGState:
    for _ in range(count):
        state = cg_step(matvec, state)
    return state
