"""One explicit Runge-Kutta step, and its exact transpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

from .tableaus import ButcherTableau

# A time or a step size: a number, or a tensor that broadcasts against [rows, P].
Time: TypeAlias = "float | Tensor"


class VJP(NamedTuple):
    """The value of a vector field and the pullback of a cotangent w through it.

    Args:
        value: f(t, y), shape ``[rows, P]``; it falls out of the product, so no evaluation is spent on it.
        state: wᵀ ∂f/∂y, shape ``[rows, P]``.
        parameters: wᵀ ∂f/∂p for whatever the field depends on besides y, in an order that the field chooses.
    """

    value: Tensor
    state: Tensor
    parameters: tuple[Tensor, ...] = ()


class Field(Protocol):
    """A vector field dy/dt = f(t, y) on rows."""

    def __call__(self, t: Time, y: Tensor, /) -> Tensor:
        """Return f(t, y), shape ``[rows, P]``."""
        ...


class DifferentiableField(Field, Protocol):
    """A vector field that can also pull cotangents back."""

    def vjp(self, t: Time, y: Tensor, w: Tensor, /) -> VJP:
        """Return f(t, y) and the pullback of w."""
        ...


class Step(NamedTuple):
    """A step taken: where it ends, and the stage states Y_i at which the field was evaluated."""

    end: Tensor
    states: list[Tensor]


class StepCotangents(NamedTuple):
    """The pullback of a cotangent through one step: to its start, to the field's parameters, to its size ``[rows]``."""

    start: Tensor
    parameters: tuple[Tensor, ...]
    size: Tensor


def step(tableau: ButcherTableau, field: Field, t: Time, h: Time, y: Tensor) -> Step:
    """Take one step of size h from (t, y), with the stages that the solution needs.

    Y_i = y + h Σ_{j<i} a_ij k_j,  k_i = f(t + c_i h, Y_i),  y⁺ = y + h Σ_i b_i k_i
    (Hairer, Nørsett, Wanner, Solving ODEs I, II.1, eq. 1.8).

    Args:
        y: state, shape ``[rows, P]``.
    """
    a, b, c = tableau.floats
    states: list[Tensor] = []
    slopes: list[Tensor] = []
    for i in range(tableau.solution_stages):
        states.append(_advance(y, h, a[i], slopes))
        slopes.append(field(t + c[i] * h, states[i]))
    return Step(_advance(y, h, b, slopes), states)


def transpose(
    tableau: ButcherTableau, field: DifferentiableField, t: Time, h: Time, states: Sequence[Tensor], w: Tensor
) -> StepCotangents:
    """Pull the cotangent w of a step's end back through that step, exactly.

    With κ_i = b_i w + Σ_{j>i} a_ji Ȳ_j and Ȳ_i = J(Y_i)ᵀ h κ_i, from the last stage to the first,

        ȳ = w + Σ_i Ȳ_i,   h̄ = Σ_i ⟨κ_i, k_i⟩   (a field without explicit time)

    (Hager 2000, Runge-Kutta methods in optimal control; Sanz-Serna 2016, SIAM Review 58, Theorem 2.1).

    Args:
        states: the stage states Y_i of the step, as `step` returned them.
        w: cotangent of the step's end, shape ``[rows, P]``.
    """
    a, b, c = tableau.floats
    stages = tableau.solution_stages
    state_cotangents: dict[int, Tensor] = {}
    parameters: tuple[Tensor, ...] = ()
    size = w.new_zeros(w.shape[0])
    start = w
    for i in reversed(range(stages)):
        weights = [b[i], *(a[j][i] for j in range(i + 1, stages))]
        kappa = _combine(weights, [w, *(state_cotangents[j] for j in range(i + 1, stages))])
        pulled = field.vjp(t + c[i] * h, states[i], h * kappa)
        state_cotangents[i] = pulled.state
        start = start + pulled.state
        size = size + (kappa * pulled.value).sum(dim=1)
        parameters = add(parameters, pulled.parameters)
    return StepCotangents(start, parameters, size)


def add(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Add two tuples of cotangents; an empty one counts as zero."""
    if not left or not right:
        return left or right
    return tuple(x + y for x, y in zip(left, right, strict=True))


def _advance(y: Tensor, h: Time, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    if not slopes:
        return y
    return y + h * _combine(weights, slopes)


def _combine(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Return Σ wᵢ xᵢ over the non-zero weights."""
    terms = [(weight, tensor) for weight, tensor in zip(weights, tensors, strict=False) if weight != 0]
    if not terms:
        return tensors[0] * 0
    weight, tensor = terms[0]
    total = tensor if weight == 1 else tensor * weight
    for weight, tensor in terms[1:]:
        total = total.add(tensor, alpha=weight)
    return total
