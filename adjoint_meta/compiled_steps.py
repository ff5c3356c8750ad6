"""Whole Runge-Kutta steps of a gradient flow, and their transposes, as single programs of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from adjoint_meta.solvers import OwnSteps, RungeKutta, UniformSteps
from adjoint_meta.solvers.paths import Plan
from adjoint_meta.solvers.stepper import Detached, Step, StepCotangents, Time

from .adaptation import GradientFlow


@dataclass(frozen=True)
class CompiledSteps:
    """A Runge-Kutta method whose steps on a gradient flow are programs: evaluations and vector updates in one.

    Only flows of all tasks have programs; where tasks have left the batch, evaluations are replayed one by one.

    Args:
        method: what is compiled; it does what it is asked for.
    """

    method: RungeKutta
    _sizes: dict[object, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getattr__(self, name: str) -> Any:
        if name == "method":  # a copy is asked for its attributes before it has any
            raise AttributeError(name)
        return getattr(self.method, name)

    def _size(self, h: Time, like: Tensor) -> Tensor:
        """Return the step size as a tensor; equal steps share one."""
        if isinstance(h, Tensor):
            return h.to(like.dtype)
        key = (h, like.dtype, like.device)
        if key not in self._sizes:
            # Filled on the device: a copy to it would wait for the host.
            self._sizes[key] = torch.full((), h, dtype=like.dtype, device=like.device)
        return self._sizes[key]

    def _key(self, flow: Any) -> tuple[object, ...]:
        """Return what a program depends on besides its tensors."""
        proximal = None if isinstance(flow.proximal, Tensor) else flow.proximal
        return self.method.name, self.method.tableau.stages, proximal, flow.rates is None

    def step(
        self,
        field: Any,
        t: Time,
        h: Time,
        y: Tensor,
        *,
        slope: Tensor | None = None,
        stages: Tensor | None = None,
        estimate: bool = False,
    ) -> Step:
        """Take one step, as `RungeKutta.step` does."""

        def eager() -> Step:
            return self.method.step(field, t, h, y, slope=slope, estimate=estimate)

        if field.part is not None:
            return eager()
        known = () if slope is None else (slope,)
        count = 2 + len(known)

        def function(h: Tensor, y: Tensor, *others: Tensor) -> Step:
            flow = Detached(field.over(others[len(known) :]))
            return self.method.step(flow, 0.0, h, y, slope=others[0] if known else None, estimate=estimate)

        name = ("step", *self._key(field), estimate, count)
        found: Step = _run(field, name, function, (self._size(h, y), y, *known), eager)
        return found

    def states(self, field: Any, t: Time, h: Time, y: Tensor, *, stages: Tensor | None = None) -> Sequence[Tensor]:
        """Return the stage states, as `RungeKutta.states` does."""

        def eager() -> list[Tensor]:
            return self.method.states(field, t, h, y)

        if field.part is not None or self.method.tableau.solution_stages == 1:
            return eager()

        def function(h: Tensor, y: Tensor, *others: Tensor) -> list[Tensor]:
            return self.method.states(Detached(field.over(others)), 0.0, h, y)

        name = ("states", *self._key(field))
        found: list[Tensor] = _run(field, name, function, (self._size(h, y), y), eager)
        return found

    def transpose(
        self,
        field: Any,
        t: Time,
        h: Time,
        states: Sequence[Tensor],
        w: Tensor,
        *,
        stages: Tensor | None = None,
        outputs: Sequence[Any] = (),
    ) -> StepCotangents:
        """Pull w back through a step, as `RungeKutta.transpose` does."""

        def eager() -> StepCotangents:
            return self.method.transpose(field, t, h, states, w, outputs=outputs)

        if field.part is not None or outputs:
            return eager()
        count = len(states)

        def function(h: Tensor, w: Tensor, *others: Tensor) -> StepCotangents:
            return self.method.transpose(field.over(others[count:]), 0.0, h, others[:count], w)

        name = ("transpose", *self._key(field), count)
        found: StepCotangents = _run(field, name, function, (self._size(h, w), w, *states), eager)
        return found


def compiled(plan: Plan, flow: GradientFlow) -> Plan:
    """Return the plan with its Runge-Kutta steps as programs, if the flow's engine makes any."""
    curvature = flow.problem.curvature
    if curvature.engine.eager or not curvature.traceable:
        return plan
    if isinstance(plan, UniformSteps) and isinstance(plan.stepper, RungeKutta):
        return plan._replace(stepper=CompiledSteps(plan.stepper))
    if isinstance(plan, OwnSteps) and isinstance(plan.steps.stepper, RungeKutta):
        return OwnSteps(replace(plan.steps, stepper=CompiledSteps(plan.steps.stepper)))
    return plan


def _run(flow: GradientFlow, name: object, function: Any, tensors: tuple[Tensor, ...], eager: Any) -> Any:
    return flow.problem.curvature.programs.run(name, function, (*tensors, *flow.tensors()), eager)
