"""One explicit Runge-Kutta step, its dense output, and the exact transpose of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .butcher import ButcherTableau
from .stepper import DifferentiableField, Field, Step, StepCotangents, Time, add, stretch

# Weights of a linear combination: numbers, or one a row of shape [rows, 1].
Weights: TypeAlias = "Sequence[float | Tensor]"


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge-Kutta method.

    Y_i = y + h Σ_{j<i} a_ij k_j,  k_i = f(t + c_i h, Y_i),  y⁺ = y + h Σ_i b_i k_i
    (Hairer, Nørsett, Wanner, Solving ODEs I, II.1, eq. 1.8).

    Args:
        tableau: its coefficients.
    """

    tableau: ButcherTableau

    @property
    def name(self) -> str:
        """The tableau's name."""
        return self.tableau.name

    @property
    def order(self) -> int:
        """Order of convergence."""
        return self.tableau.order

    @property
    def estimate_order(self) -> int:
        """Order of the embedded method, which is that of the error estimate; 0 without one."""
        return self.tableau.embedded_order

    def stages(self, z: Tensor) -> None:
        """Return ``None``: the stages are fixed."""

    def limit(self, stages: Tensor | None = None) -> float:
        """Return the length of the tableau's real stability interval."""
        return self.tableau.stability_limit

    def step(
        self,
        field: Field,
        t: Time,
        h: Time,
        y: Tensor,
        *,
        slope: Tensor | None = None,
        stages: Tensor | None = None,
        estimate: bool = False,
    ) -> Step:
        """Take one step of size h from (t, y); without an estimate, only with the stages that the solution needs.

        Args:
            y: state, shape ``[rows, P]``.
            slope: f(t, y), if it is known.
            stages: not used, the stages being fixed.
            estimate: whether to return h Σ_i (b_i − b̂_i) k_i as well, and the slope at the end where it is a stage.
        """
        tableau = self.tableau
        count = tableau.stages if estimate else tableau.solution_stages
        states, slopes = self._evaluate(field, t, h, y, count, count, slope)
        end = _advance(y, h, tableau.floats[1], slopes)
        if not estimate:
            return Step(end, states)
        last = slopes[-1] if tableau.first_same_as_last else None
        error = h * combine(tableau.error_weights, slopes) if tableau.error_weights else None
        return Step(end, states[: tableau.solution_stages], error, last, slopes)

    def states(self, field: Field, t: Time, h: Time, y: Tensor, *, stages: Tensor | None = None) -> list[Tensor]:
        """Return the stage states Y_i, which takes one evaluation less than the step."""
        count = self.tableau.solution_stages
        return self._evaluate(field, t, h, y, count, count - 1)[0]

    def _evaluate(
        self, field: Field, t: Time, h: Time, y: Tensor, states: int, slopes: int, slope: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the first Y_i and the first k_i."""
        a, _, c = self.tableau.floats
        at: list[Tensor] = []
        found: list[Tensor] = []
        for i in range(states):
            at.append(_advance(y, h, a[i], found))
            if i < slopes:
                known = slope if i == 0 else None
                found.append(field(t + c[i] * h, at[i]) if known is None else known)
        return at, found

    def transpose(
        self,
        field: DifferentiableField,
        t: Time,
        h: Time,
        states: Sequence[Tensor],
        w: Tensor,
        *,
        stages: Tensor | None = None,
        outputs: Sequence[tuple[Weights, Tensor]] = (),
    ) -> StepCotangents:
        """Pull the cotangent w of a step's end back through that step, exactly.

        With κ_i = b_i w + Σ_{j>i} a_ji Ȳ_j and Ȳ_i = J(Y_i)ᵀ h κ_i, from the last stage to the first,

            ȳ = w + Σ_i Ȳ_i,   h̄ = Σ_i ⟨κ_i, k_i⟩ + h c_i ⟨κ_i, ∂f/∂t⟩,   t̄ = Σ_i h ⟨κ_i, ∂f/∂t⟩

        (Hager 2000, Runge-Kutta methods in optimal control; Sanz-Serna 2016, SIAM Review 58, Theorem 2.1).

        Args:
            states: the stage states Y_i of the step, as `step` returned them.
            w: cotangent of the step's end, shape ``[rows, P]``.
            stages: not used.
            outputs: pairs (b(ϑ), cotangent ``[rows, P]``) of dense outputs inside the step; each counts as one more
                end with its own weights. States of all stages that b(ϑ) uses are needed then.

        Raises:
            ValueError: if an output weighs a stage whose state is missing.
        """
        a, b, c = self.tableau.floats
        for given, _ in outputs:
            if any(isinstance(weight, Tensor) or weight != 0 for weight in given[len(states) :]):
                raise ValueError(
                    f"an output weighs {len(given)} stages of {self.name}, but the states of only {len(states)} were "
                    "given; append the end of the step, at which the last stage is evaluated"
                )
        ends: list[tuple[Weights, Tensor]] = [(b, w), *outputs]
        pulled_states: dict[int, Tensor] = {}
        parameters: tuple[Tensor, ...] = ()
        size = time = largest = w.new_zeros(w.shape[0])
        timed = False
        start = w
        for _, cotangent in outputs:
            start = start + cotangent
        for i in reversed(range(len(states))):
            weights: list[float | Tensor] = [end[0][i] for end in ends]
            weights += [a[j][i] for j in range(i + 1, len(states))]
            terms = [end[1] for end in ends] + [pulled_states[j] for j in range(i + 1, len(states))]
            kappa = combine(weights, terms)
            pulled = field.vjp(t + c[i] * h, states[i], h * kappa)
            pulled_states[i] = pulled.state
            start = start + pulled.state
            size = size + (kappa * pulled.value).sum(dim=1)
            largest = torch.maximum(largest, stretch(pulled.state, kappa))
            if pulled.time is not None:
                timed = True
                time = time + pulled.time
                size = size + c[i] * pulled.time
            parameters = add(parameters, pulled.parameters)
        return StepCotangents(start, parameters, size, time if timed else None, largest)


def combine(weights: Weights, tensors: Sequence[Tensor]) -> Tensor:
    """Return Σ wᵢ xᵢ over the weights that are not the number zero."""
    terms = [
        (weight, tensor)
        for weight, tensor in zip(weights, tensors, strict=False)
        if isinstance(weight, Tensor) or weight != 0
    ]
    if not terms:
        return tensors[0] * 0
    weight, tensor = terms[0]
    total = tensor if isinstance(weight, float) and weight == 1 else tensor * weight
    for weight, tensor in terms[1:]:
        total = total + weight * tensor if isinstance(weight, Tensor) else total.add(tensor, alpha=weight)
    return total


def _advance(y: Tensor, h: Time, weights: Weights, slopes: Sequence[Tensor]) -> Tensor:
    if not slopes:
        return y
    return y + h * combine(weights, slopes)
