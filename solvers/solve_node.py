"""A solve as one node of autograd's graph: outputs as a function of y0, the times and the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .adjoints import Adjoint
from .function_field import FunctionField
from .outputs import OutputPlan
from .solution import SolverError, Status, raise_if_failed


class Outputs(torch.autograd.Function):
    """The states at the output times, as a function of y0 ``[rows, P]``, the times and the parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: OutputPlan,
        adjoint: Adjoint,
        field: FunctionField,
        zeros: bool,
        y0: Tensor,
        t: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        """Solve, and return the outputs ``[count, rows, P]``.

        Args:
            plan, adjoint: how to solve and how to differentiate.
            field: starts at y0 and t[0], with the parameters.
            zeros: whether parameters that the solve did not use get zeros as gradients, and not ``None``.
        """
        solve = adjoint.solve(plan, field, field.start)
        check_solved(field, solve.codes)
        ctx.solve, ctx.path, ctx.field, ctx.zeros = solve, plan.walked, field, zeros
        # The parameters are read again on the way back: saved, a change in place is an error and not a wrong gradient.
        ctx.save_for_backward(y0, t, *parameters)
        outputs = plan.outputs
        del plan.outputs
        return outputs

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        """Pull the cotangents of all outputs back: by the transpose, or by a replay if grad mode is on."""
        inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[4:]
        ctx.field.check_unchanged()
        if torch.is_grad_enabled():
            return (None,) * 4 + _differentiable(ctx, w, inputs, wanted)
        field = ctx.field.wanting(wanted[2:], timed=wanted[1])
        pulled = ctx.path.pull(ctx.solve, w, field)
        parameters: list[Tensor | None] = [None] * len(inputs[2:])
        places = [place for place, one in enumerate(wanted[2:]) if one]
        for index, (place, cotangent) in enumerate(zip(places, pulled.parameters, strict=True)):
            if index in field.reached:
                parameters[place] = cotangent
            elif ctx.zeros:
                parameters[place] = torch.zeros_like(inputs[2 + place])
        return (None,) * 4 + (pulled.start, pulled.times, *parameters)


def _differentiable(
    ctx: Any, w: Tensor, inputs: tuple[Tensor, ...], wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Return the cotangents of the inputs with a graph, from the steps taken once more."""
    y0, t = (x if x.requires_grad else x.detach().requires_grad_(ctx.field.differentiates) for x in inputs[:2])
    outputs = ctx.path.replay(ctx.field, y0, t)
    chosen = [x for x, one in zip((y0, t, *inputs[2:]), wanted, strict=True) if one]
    pulled = iter(torch.autograd.grad(outputs, chosen, w, create_graph=True, allow_unused=True))
    return tuple(next(pulled) if one else None for one in wanted)


def check_solved(field: FunctionField, codes: Tensor) -> None:
    """Raise if a row failed, and say so if func was not finite from the start."""
    if bool((codes == Status.SUCCESS.code).all()):
        return
    if not bool(torch.isfinite(field(field.t0, field.start)).all()):
        raise SolverError("func(t[0], y0) is NaN or infinite, so there is no direction to start in; check func and y0")
    raise_if_failed("odeint", codes)
