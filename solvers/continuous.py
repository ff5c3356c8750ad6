"""Continuous adjoints: the costate equation solved backward, over an interpolated or a re-integrated trajectory."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor

from . import checks
from .adjoints import Cotangents, Solve
from .paths import Path, Plan, put, take
from .runge_kutta import RungeKutta, combine
from .solution import SolverError
from .stepper import RowField, Time, add, stretch
from .tableaus import HEUN

_HEUN = RungeKutta(HEUN)


@dataclass(frozen=True)
class Interpolating:
    """The costate equation da/dt = −Jᵀa over the stored trajectory, interpolated by cubic Hermite polynomials.

    It is solved over the steps of the forward solve, the last one first, and converges at the lowest of its own order,
    the forward solve's, and 4. With Heun's method, whose nodes lie on the trajectory's, it is the scheme of Li, Wang,
    Narayan, Kirby, Zhe (2023), Algorithm 2 ("modified Euler").

    Args:
        stepper: what steps the costate.
    """

    stepper: RungeKutta = _HEUN

    def solve(self, plan: Plan, field: Any, y0: Tensor) -> Solve:
        """Solve from y0, keeping the start of every step."""
        checks.rows("the initial state", y0)
        end, codes, path, stats = plan.run(field, y0, "steps")

        def pullback(w: Tensor) -> Cotangents:
            sweep = _Sweep(self.stepper, field, w)
            after = end
            for index in reversed(range(path.steps)):
                rows, t, h = path.mesh(index)
                before = path.start(index)
                sweep.step(rows, t, h, _Hermite(sweep.on(rows), t, h, before, take(after, rows)))
                after = put(after, rows, before)
            return sweep.cotangents()

        return Solve(end, codes, pullback, stats)


@dataclass(frozen=True)
class Backsolve:
    """The costate equation together with the state's own, solved backward from the end: no trajectory is stored.

    Chen, Rubanova, Bettencourt, Duvenaud, NeurIPS 2018, Algorithm 1. Reversed, a contracting flow expands, and with it
    every error: so the state rebuilt is compared with the state that was there, at the start and at every anchor.

    Args:
        stepper: what steps the pair, over the steps of the forward solve.
        anchors: states to keep, evenly spread over the steps, from which the backward solve starts afresh.
        drift: most that the rebuilt state may be off, as a share of the distance that it moved in all.
    """

    stepper: RungeKutta = _HEUN
    anchors: int = 0
    drift: float = 1e-2

    def __post_init__(self) -> None:
        checks.count("anchors", self.anchors, least=0)
        checks.positive("drift", self.drift)

    def solve(self, plan: Plan, field: Any, y0: Tensor) -> Solve:
        """Solve from y0, keeping the anchors only."""
        checks.rows("the initial state", y0)
        path = plan.path(field)
        if path is None:  # only a solve can tell how many steps there are, and so where the anchors lie
            end, codes, path, stats = plan.run(field, y0, "nothing")
            kept, _ = self._walk(path, y0, path.steps if self.anchors else 0)
        else:
            kept, end = self._walk(path, y0, path.steps)
            codes, stats = path.codes(end), {}
        moved = torch.linalg.vector_norm(end - y0.detach(), dim=1)

        def pullback(w: Tensor) -> Cotangents:
            sweep = _Sweep(self.stepper, field, w)
            y = end
            for index in reversed(range(path.steps)):
                rows, t, h = path.mesh(index)
                back = _Reversed(self.stepper, h, take(y, rows))
                sweep.step(rows, t, h, back)
                y = put(y, rows, back.end())
                if index in kept:
                    self._check(y, kept[index], moved)
                    y = kept[index]
            return sweep.cotangents()

        return Solve(end, codes, pullback, stats)

    def _walk(self, path: Path, y0: Tensor, steps: int) -> tuple[dict[int, Tensor], Tensor]:
        """Take the first steps; return the states before those where an anchor lies, and the last."""
        every = ceil(path.steps / (self.anchors + 1))
        y = y0.detach()
        kept = {0: y}
        for index in range(steps):
            if index % every == 0:
                kept[index] = y
            y = path.advance(index, y)
        return kept, y

    def _check(self, rebuilt: Tensor, there: Tensor, moved: Tensor) -> None:
        """Refuse a state that was not rebuilt well enough.

        Raises:
            SolverError: naming the rows, how far they drifted, and the ways out.
        """
        off, kind = torch.linalg.vector_norm(rebuilt - there, dim=1), torch.finfo(moved.dtype)
        drift = off / moved.clamp(min=kind.tiny)
        # A row that hardly moved has nothing to be compared with: half of the state's digits are always enough.
        close = off <= kind.eps**0.5 * torch.linalg.vector_norm(there, dim=1)
        bad = ~(drift <= self.drift) & ~close & (moved > 0)
        if bool(bad.any()):
            raise SolverError(
                f"the backward solve drifted in {int(bad.sum())} of {len(bad)} rows: the state it rebuilt is off by "
                f"up to {float(drift[bad].max()):.3g} of the distance moved, where {self.drift:g} is allowed. A "
                "contracting flow expands when it is reversed; use the discrete or checkpointed adjoint, which are "
                "exact at any horizon, or more anchors, a shorter horizon or more steps"
            )


class _States(Protocol):
    """Where the costate's stages find the state."""

    def at(self, stage: int, share: float) -> Tensor:
        """Return the state for a stage, at t + share · h of a forward step."""
        ...

    def note(self, share: float, slope: Tensor) -> None:
        """See the field's value there."""
        ...


class _Hermite:
    """The states of a forward step by cubic Hermite interpolation (Hairer, Nørsett, Wanner II.6, eq. 6.7)."""

    def __init__(self, field: RowField, t: Time, h: Time, start: Tensor, end: Tensor) -> None:
        self._field, self._t, self._h = field, t, h
        self._ends = {0.0: start, 1.0: end}
        self._slopes: dict[float, Tensor] = {}

    def at(self, stage: int, share: float) -> Tensor:
        if share in self._ends:
            return self._ends[share]
        start, end = self._ends[0.0], self._ends[1.0]
        chord = end - start
        bend = (1 - 2 * share) * chord + self._h * ((share - 1) * self._slope(0.0) + share * self._slope(1.0))
        return start + share * chord + share * (share - 1) * bend

    def _slope(self, end: float) -> Tensor:
        if end not in self._slopes:
            self._slopes[end] = self._field(self._t + end * self._h, self._ends[end]).detach()
        return self._slopes[end]

    def note(self, share: float, slope: Tensor) -> None:
        if share in self._ends:
            self._slopes[share] = slope


@dataclass
class _Reversed:
    """The states of a Runge-Kutta step of size −h from the end of a forward step."""

    stepper: RungeKutta
    h: Time
    end_state: Tensor
    slopes: list[Tensor] = field(default_factory=list)

    def at(self, stage: int, share: float) -> Tensor:
        return self._back(self.stepper.tableau.floats[0][stage])

    def note(self, share: float, slope: Tensor) -> None:
        self.slopes.append(slope)

    def end(self) -> Tensor:
        """Return the state at the start of the forward step, as rebuilt."""
        return self._back(self.stepper.tableau.floats[1])

    def _back(self, weights: tuple[float, ...]) -> Tensor:
        return self.end_state - self.h * combine(weights, self.slopes) if self.slopes else self.end_state


class _Sweep:
    """The costate on its way back, and the integrals that make up the other cotangents."""

    def __init__(self, stepper: RungeKutta, field: RowField, w: Tensor) -> None:
        self._stepper, self._field, self._costate = stepper, field, w
        self._parameters: tuple[Tensor, ...] = ()
        self._duration = self._stability = w.new_zeros(len(w))
        self._entered = torch.zeros(len(w), dtype=torch.bool, device=w.device)
        self._shift: Tensor | None = None

    def on(self, rows: Tensor | None) -> RowField:
        """Return the field on these rows."""
        return self._field if rows is None else self._field.rows(rows)

    def step(self, rows: Tensor | None, t: Time, h: Time, states: _States) -> None:
        """Step the costate of these rows from t + h back to t: a ← a + Σ b_i hJᵀA_i, A_i = a + Σ a_ij hJᵀA_j."""
        a, b, c = self._stepper.tableau.floats
        field, costate = self.on(rows), take(self._costate, rows)
        pulled: list[Tensor] = []
        largest = shift = costate.new_zeros(len(costate))
        for i in range(self._stepper.tableau.solution_stages):
            share = 1 - c[i]
            stage = costate + combine(a[i], pulled) if pulled else costate
            found = field.vjp(t + share * h, states.at(i, share), h * stage)
            states.note(share, found.value)
            pulled.append(found.state)
            largest = torch.maximum(largest, stretch(found.state, stage))
            self._parameters = add(self._parameters, tuple(b[i] * part for part in found.parameters))
            if i == 0:
                self._enter(rows, (costate * found.value).sum(dim=1))
            if found.time is not None:
                shift = shift + b[i] * found.time
                self._shift = torch.zeros_like(self._duration) if self._shift is None else self._shift
        none = torch.zeros_like(self._duration)
        self._costate = put(self._costate, rows, costate + combine(b, pulled))
        self._stability = torch.maximum(self._stability, put(none, rows, largest))
        self._shift = None if self._shift is None else self._shift + put(none, rows, shift)

    def _enter(self, rows: Tensor | None, duration: Tensor) -> None:
        """Note ⟨a(T), f(T)⟩, which is dJ/dT, of the rows whose last step this is."""
        none = torch.zeros_like(self._duration)
        here = torch.ones_like(self._entered)
        here = here if rows is None else put(torch.zeros_like(here), rows, here[rows])
        self._duration = torch.where(here & ~self._entered, put(none, rows, duration), self._duration)
        self._entered = self._entered | here

    def cotangents(self) -> Cotangents:
        """Return what the sweep has found."""
        stability = self._stability / self._stepper.limit()
        return Cotangents(self._costate, self._parameters, self._duration, self._shift, stability)
