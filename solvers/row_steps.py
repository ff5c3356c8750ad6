"""The loop whose rows step at their own pace, accepted or rejected one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .solution import Status
from .spectrum import Guard
from .step_size import Controller
from .stepper import RowField, Step, Stepper, Time

# Sees the accepted steps of some rows: (rows [n], t [n], h [n], stages [n] or None, the step on these rows).
RowRecorder = Callable[[Tensor, Tensor, Tensor, "Tensor | None", Step], None]


class RowStatistics(NamedTuple):
    """What a solve took, each ``[rows]``.

    Args:
        accepted, rejected: steps.
        evaluations: of the field by the steps, those of rejected ones included.
        radius: the largest estimate of ‖J‖, 0 without a guard.
        stability: the largest h·‖J‖ as a share of the stability interval, 0 without a guard; above 1 the transposed
            steps amplify.
        vector: the direction of the last estimate, ``[rows, P]``, with which the next solve may start; or ``None``.
    """

    accepted: Tensor
    rejected: Tensor
    evaluations: Tensor
    radius: Tensor
    stability: Tensor
    vector: Tensor | None


class RowSolve(NamedTuple):
    """A solve whose rows stepped at their own pace: ends ``[rows, P]``, status codes ``[rows]``, statistics."""

    end: Tensor
    codes: Tensor
    statistics: RowStatistics


@dataclass(frozen=True)
class RowSteps:
    """Steps from t0 to t1 that every row takes at its own pace; rows that are done leave the batch.

    Args:
        stepper: with an estimate of its error, if the controller wants one.
        t0, t1: ends of the interval, the same for all rows.
        controller: judges the steps.
        guard: keeps explicit steps stable, and tells a stabilised method how many stages to take; without one only
            the error is controlled.
        max_steps: most steps a row may try.
        steady: a row is done as soon as ‖f‖ is at most this; then t1 may be infinite. Explicit steps need a guard for
            it: error control alone lets them hover at the edge of stability, where ‖f‖ does not fall.
    """

    stepper: Stepper
    t0: Time
    t1: Time
    controller: Controller
    guard: Guard | None = None
    max_steps: int = 10_000
    steady: float = 0.0

    def __post_init__(self) -> None:
        checks.count("max_steps", self.max_steps)
        checks.at_least("steady", self.steady, 0.0)
        for name, t in (("t0", self.t0), ("t1", self.t1)):
            endless = name == "t1" and self.steady > 0
            # Tensors are not read back from their device.
            if not isinstance(t, Tensor) and not (math.isfinite(t) or (endless and math.isinf(t))):
                raise ValueError(f"{name} must be finite, or t1 infinite with steady above 0, got {name}={t}")

    def integrate(self, field: RowField, y0: Tensor, record: RowRecorder | None = None) -> RowSolve:
        """Solve from y0 ``[rows, P]``; ``record`` sees the accepted steps."""
        run = _Run(self, field, y0)
        for _ in range(self.max_steps):
            if len(run.index) == 0:
                break
            run.attempt(record)
        return run.finish()


class _Run:
    """One solve: the rows on their way, all of which have made as many attempts, and what is known of every row."""

    def __init__(self, plan: RowSteps, field: RowField, y0: Tensor) -> None:
        self.plan, self.whole, self.field = plan, field, field
        start, self.stop = (torch.as_tensor(t, dtype=y0.dtype, device=y0.device) for t in (plan.t0, plan.t1))
        rows = len(y0)
        # Of every row.
        self.end = y0.clone()
        self.codes = torch.full((rows,), Status.STEP_LIMIT.code, dtype=torch.long, device=y0.device)
        self.accepted, self.rejected, self.evaluations = (torch.zeros_like(self.codes) for _ in range(3))
        self.radius, self.stability = y0.new_zeros(rows), y0.new_zeros(rows)
        self.vector = None if plan.guard is None else torch.zeros_like(y0)
        # Of the rows on their way.
        self.index = torch.arange(rows, device=y0.device)
        self.t, self.y, self.slope = start.expand(rows), y0, field(start, y0)
        self.spectrum = None if plan.guard is None else plan.guard.begin(field, start, y0, self.slope)
        order = plan.stepper.estimate_order
        self.h = plan.controller.first(field, start, self.stop - start, y0, self.slope, order)
        self.ratio = torch.ones_like(self.h)
        self.since_renewal = torch.zeros_like(self.index)
        codes = torch.full_like(self.codes, Status.SUCCESS.code)
        codes[~torch.isfinite(self.slope).all(dim=1)] = Status.NON_FINITE.code
        if self.spectrum is not None:
            codes[self.spectrum.value.isnan()] = Status.NON_FINITE.code
        self._retire(self._steady() | (start == self.stop) | (codes != Status.SUCCESS.code), codes)

    def attempt(self, record: RowRecorder | None) -> None:
        """Try one step in every row on its way: propose, step, judge, record, advance, retire."""
        plan, stepper = self.plan, self.plan.stepper
        h, last, stages = self._propose()
        taken = stepper.step(
            self.field, self.t[:, None], h[:, None], self.y, slope=self.slope, stages=stages, estimate=True
        )
        if taken.error is None or taken.slope is None:
            lacks = "slope at the end of its step" if stepper.estimate_order else "estimate of its error"
            raise ValueError(f"{stepper.name} has no {lacks}, so its rows cannot step at their own pace")
        verdict = plan.controller.judge(taken.error, self.y, taken.end, self.ratio, stepper.estimate_order)
        accept = verdict.accept
        self._count(accept, h, stages, len(taken.states))
        if record is not None:
            _record(record, accept, self.index, self.t, h, stages, taken)

        before, slope = self.t, self.slope
        chosen = accept[:, None]
        self.t = torch.where(accept, self.t + h, self.t)
        self.y = torch.where(chosen, taken.end, self.y)
        self.slope = torch.where(chosen, taken.slope, self.slope)
        self.ratio = torch.where(accept, verdict.ratio, self.ratio)
        self.h = h * verdict.factor

        codes = torch.full_like(self.index, Status.SUCCESS.code)
        # Steps that do not move t may still grow out of it, as the first ones do.
        stuck = (verdict.factor <= 1) & ~(accept & last) & (self.h.abs() <= self._resolution(before))
        codes[stuck] = Status.UNDERFLOW.code
        codes[stuck & ~torch.isfinite(taken.end + taken.error).all(dim=1)] = Status.NON_FINITE.code
        codes[accept & ~torch.isfinite(self.slope).all(dim=1)] = Status.NON_FINITE.code
        steady = self._steady()
        codes[accept & ~last & ~steady & self._stagnant(slope)] = Status.STAGNATION.code
        self._retire((accept & last) | steady | (codes != Status.SUCCESS.code), codes)

    def _propose(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the steps to try, which of them end the interval, and their stages."""
        plan = self.plan
        h = self.h
        self._renew()
        if plan.guard is not None and self.spectrum is not None:
            longest = plan.guard.safety * plan.stepper.limit() / self.spectrum.value
            h = torch.sign(h) * torch.minimum(h.abs(), longest)
        # The rest is split evenly when two steps would do, so that the last one is not tiny.
        left = (self.stop - self.t) / h
        last = left <= 1 + 1e-3
        h = torch.where(last, self.stop - self.t, torch.where(left < 2, (self.stop - self.t) / 2, h))
        # The step that t can take, for in float32 the rounding of t adds up; one that does not move it stays. It is
        # rounded down: a step that was rejected must not come back at its old length.
        reached = self.t + h
        reached = torch.where((reached - self.t).abs() > h.abs(), torch.nextafter(reached, self.t), reached)
        moved = reached - self.t
        h = torch.where(last | (moved == 0), h, moved)
        if plan.guard is None or self.spectrum is None:
            return h, last, None
        return h, last, plan.stepper.stages(h.abs() * self.spectrum.value / plan.guard.safety)

    def _renew(self) -> None:
        """Take a step of power iteration where the estimate of ‖J‖ may have aged."""
        guard, spectrum = self.plan.guard, self.spectrum
        if guard is None or spectrum is None:
            return
        # Each row's own evaluations decide, so that it steps as it would alone; a product for one serves all.
        due = self.since_renewal >= guard.every
        if bool(due.any()):
            spectrum.update(self.field, self.t[:, None], self.y, due)
            self.since_renewal = torch.where(due, 0, self.since_renewal)

    def _count(self, accept: Tensor, h: Tensor, stages: Tensor | None, states: int) -> None:
        at = self.index
        self.accepted[at] += accept
        self.rejected[at] += ~accept
        evaluations = torch.full_like(at, states) if stages is None else stages
        self.evaluations[at] += evaluations
        self.since_renewal += evaluations
        if self.spectrum is not None and self.vector is not None:
            value = self.spectrum.value
            share = (h.abs() * value / self.plan.stepper.limit(stages)).to(h.dtype)
            self.radius[at] = torch.maximum(self.radius[at], value)
            self.stability[at] = torch.maximum(self.stability[at], torch.where(accept, share, 0.0))
            self.vector[at] = self.spectrum.vector

    def _resolution(self, t: Tensor) -> Tensor:
        """Return the shortest step that still moves t; around t = 0, a tiny share of the interval."""
        eps = torch.finfo(t.dtype).eps
        span = torch.nan_to_num(self.stop - self.t, posinf=0.0, neginf=0.0).abs()
        return eps * torch.maximum(t.abs(), eps * span)

    def _steady(self) -> Tensor:
        if self.plan.steady == 0:
            return torch.zeros_like(self.index, dtype=torch.bool)
        size: Tensor = torch.linalg.vector_norm(self.slope, dim=1)
        return size <= self.plan.steady

    def _stagnant(self, before: Tensor) -> Tensor:
        """Return the rows whose slope is no more than what rounding y makes of it, and fell no further in this step."""
        if self.plan.steady == 0 or self.spectrum is None:
            return torch.zeros_like(self.index, dtype=torch.bool)
        old, new, size = (torch.linalg.vector_norm(x, dim=1) for x in (before, self.slope, self.y))
        rounding = 8 * torch.finfo(size.dtype).eps * self.spectrum.value * size
        stagnant: Tensor = (new <= rounding) & (new > 0.9 * old)
        return stagnant

    def _retire(self, done: Tensor, codes: Tensor) -> None:
        """Note the ends of the rows that are done, and go on with the others."""
        leaving = done.nonzero().squeeze(1)
        if len(leaving) == 0:
            return
        self.end[self.index[leaving]] = self.y[leaving]
        self.codes[self.index[leaving]] = codes[leaving]
        keep = (~done).nonzero().squeeze(1)
        names = ("index", "t", "h", "y", "slope", "ratio", "since_renewal")
        for name in names:
            setattr(self, name, getattr(self, name)[keep])
        if len(keep) > 0:
            self.field = self.whole.rows(self.index)
            self.spectrum = None if self.spectrum is None else self.spectrum.rows(keep)

    def finish(self) -> RowSolve:
        """Return what became of every row."""
        self.end[self.index] = self.y
        found = RowStatistics(self.accepted, self.rejected, self.evaluations, self.radius, self.stability, self.vector)
        return RowSolve(self.end, self.codes, found)


def _record(
    record: RowRecorder, accept: Tensor, index: Tensor, t: Tensor, h: Tensor, stages: Tensor | None, taken: Step
) -> None:
    """Hand the accepted rows of a step to the recorder."""
    rows = accept.nonzero().squeeze(1)
    if len(rows) == 0:
        return
    if len(rows) < len(index):
        index, t, h = index[rows], t[rows], h[rows]
        stages = None if stages is None else stages[rows]
        taken = Step(
            taken.end[rows],
            [state[rows] for state in taken.states],
            slope=None if taken.slope is None else taken.slope[rows],
            slopes=[slope[rows] for slope in taken.slopes],
        )
    record(index, t, h, stages, taken)
