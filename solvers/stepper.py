"""What loops and adjoints ask of fields and methods: a value and its pullback, a step and its transpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

# A time or a step size: a number, a 0-dimensional tensor, or one a row of shape [rows, 1].
Time: TypeAlias = "float | Tensor"


class VJP(NamedTuple):
    """The value of a vector field and the pullback of a cotangent w through it.

    Args:
        value: f(t, y), shape ``[rows, P]``; it falls out of the product, so no evaluation is spent on it.
        state: wᵀ ∂f/∂y, shape ``[rows, P]``.
        parameters: wᵀ ∂f/∂p for whatever the field depends on besides y, in an order that the field chooses.
        time: wᵀ ∂f/∂t, shape ``[rows]``; ``None`` for a field without explicit time.
    """

    value: Tensor
    state: Tensor
    parameters: tuple[Tensor, ...] = ()
    time: Tensor | None = None


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


class RowField(DifferentiableField, Protocol):
    """A differentiable field whose rows can be evaluated apart from each other, so that finished rows cost nothing."""

    def rows(self, index: Tensor, /) -> RowField:
        """Return the field on the rows ``index`` alone; its parameter cotangents keep the whole field's shapes."""
        ...


class Detached:
    """A field whose values carry no graph: a pullback replaces it, and grad mode may be on around a solve."""

    def __init__(self, field: Any) -> None:
        self._field = field

    def __call__(self, t: Time, y: Tensor, /) -> Tensor:
        """Return f(t, y)."""
        value: Tensor = self._field(t, y)
        return value.detach()

    def rows(self, index: Tensor, /) -> Detached:
        """Return the field on some rows."""
        return Detached(self._field.rows(index))

    def __getattr__(self, name: str) -> Any:
        if name == "_field":  # a copy is asked for its attributes before it has any
            raise AttributeError(name)
        return getattr(self._field, name)


class Step(NamedTuple):
    """A step taken.

    Args:
        end: where it ends, shape ``[rows, P]``.
        states: the states that its transpose needs, each ``[rows, P]``: those at which the field was evaluated.
        error: an estimate of the local error, shape ``[rows, P]``, when one was asked for.
        slope: f at the end of the step, if it fell out of the step; the next step starts with it.
        slopes: the stage slopes k_i, from which a dense output is made; empty where there is none.
        codes: status codes ``[rows]`` of a step that can fail (an implicit one); ``None`` if it cannot.
    """

    end: Tensor
    states: Sequence[Tensor]
    error: Tensor | None = None
    slope: Tensor | None = None
    slopes: Sequence[Tensor] = ()
    codes: Tensor | None = None


class StepCotangents(NamedTuple):
    """The pullback of a cotangent through one step.

    Args:
        start: to its start, shape ``[rows, P]``.
        parameters: to the field's parameters, in the field's order.
        size: to its size h, shape ``[rows]``.
        time: to the time at which it starts, shape ``[rows]``; ``None`` for a field without explicit time.
        stretch: the largest h·‖Jᵀκ‖ / ‖κ‖ over the products, shape ``[rows]``: a lower bound of h·‖J‖, which costs
            nothing and is tight where the transposed steps amplify.
    """

    start: Tensor
    parameters: tuple[Tensor, ...]
    size: Tensor
    time: Tensor | None
    stretch: Tensor


class Stepper(Protocol):
    """A one-step method. It knows neither tolerances nor how many steps there are."""

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    @property
    def order(self) -> int:
        """Order of convergence."""
        ...

    @property
    def estimate_order(self) -> int:
        """The p for which the estimate of the local error is O(h^(p+1)); 0 if the method has none."""
        ...

    def stages(self, z: Tensor) -> Tensor | None:
        """Return the stages a row, ``[rows]``, that keep a step with h·‖J‖ = z stable; ``None`` if they are fixed."""
        ...

    def limit(self, stages: Tensor | None = None) -> float | Tensor:
        """Return the largest h·‖J‖ at which a step with these stages is stable on the negative real axis.

        Args:
            stages: a row; ``None`` means all that there are, or that they are fixed. The result is ``[rows]`` then.
        """
        ...

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
        """Take one step of size h from (t, y).

        Args:
            slope: f(t, y), if it is known; saves an evaluation.
            stages: stages a row, as `stages` returned them.
            estimate: whether to estimate the local error, and to return the slope at the end.
        """
        ...

    def states(self, field: Field, t: Time, h: Time, y: Tensor, *, stages: Tensor | None = None) -> Sequence[Tensor]:
        """Return only the states that the transpose of a step from (t, y) needs."""
        ...

    def transpose(
        self,
        field: DifferentiableField,
        t: Time,
        h: Time,
        states: Sequence[Tensor],
        w: Tensor,
        *,
        stages: Tensor | None = None,
    ) -> StepCotangents:
        """Pull the cotangent w of the step's end back through it, exactly."""
        ...


def add(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Add two tuples of cotangents; an empty one counts as zero."""
    if not left or not right:
        return left or right
    return tuple(x + y for x, y in zip(left, right, strict=True))


def stretch(pulled: Tensor, kappa: Tensor) -> Tensor:
    """Return ‖Jᵀ(hκ)‖ / ‖κ‖ a row, ``[rows]``, from one product; 0 where κ vanishes."""
    size = torch.linalg.vector_norm(kappa, dim=1)
    pull: Tensor = torch.linalg.vector_norm(pulled, dim=1)
    return pull / torch.where(size > 0, size, torch.inf)
