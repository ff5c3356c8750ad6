"""A solve that is read at given times: the path that it leaves, the exact transpose of that, and its replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .adjoints import Solve
from .function_field import FunctionField
from .interpolation import value
from .paths import Run, TapePath, Transposed
from .readings import Readings
from .runge_kutta import combine
from .schemes import Adaptive, Fixed
from .solution import Status
from .stepper import VJP, RowField, Step, Time
from .tape import Tape


class OutputCotangents(NamedTuple):
    """The pullback of cotangents of all outputs.

    Args:
        start: to y0, ``[rows, P]``.
        parameters: to the field's parameters.
        times: to the output times, ``[count]``, if the field wants that.
    """

    start: Tensor
    parameters: tuple[Tensor, ...]
    times: Tensor | None


class OutputPlan:
    """A way to solve for the states at given times, as the adjoints want it.

    Args:
        scheme: how to step, and the times.

    Attributes:
        outputs: the states at the times, ``[count, rows, P]``, once it ran.
        walked: the path that it left.
    """

    outputs: Tensor
    walked: OutputPath

    def __init__(self, scheme: Adaptive | Fixed) -> None:
        self.scheme = scheme

    def run(self, field: FunctionField, y0: Tensor, keep: str) -> Run:
        """Solve from y0, keeping of each step its ``"stages"``, its start (``"steps"``) or ``"nothing"``."""
        readings = self.scheme.readings(y0, field.timed)
        tape = Tape(y0, keep)

        def record(rows: Tensor, t: Tensor, h: Tensor, stages: Tensor | None, taken: Step) -> None:
            readings.read(rows, tape.count[rows], t, h, taken)
            tape.record(rows, t, h, stages, taken.states)

        end, codes, stats = self.scheme.solve(field, y0, record)
        codes = self._finish(readings, end, codes)
        self.walked = OutputPath(self.scheme, field, tape, readings, end)
        self.outputs = readings.take()
        return Run(end, codes, self.walked, stats)

    def path(self, field: FunctionField) -> None:
        """Return ``None``: outputs are read while the solve goes on."""

    def read(self, field: FunctionField, y0: Tensor) -> tuple[Tensor, Tensor]:
        """Solve without leaving a path; return the outputs ``[count, rows, P]`` and the status codes."""
        readings = self.scheme.readings(y0, False)
        index = torch.arange(len(y0), device=y0.device)

        def record(rows: Tensor, t: Tensor, h: Tensor, stages: Tensor | None, taken: Step) -> None:
            readings.read(rows, index, t, h, taken)

        end, codes, _ = self.scheme.solve(field, y0, record)
        codes = self._finish(readings, end, codes)
        return readings.take(), codes

    @staticmethod
    def _finish(readings: Readings, end: Tensor, codes: Tensor) -> Tensor:
        readings.values[-1] = end
        finite = torch.isfinite(readings.values).all(dim=2).all(dim=0)
        return torch.where((codes == Status.SUCCESS.code) & ~finite, Status.NON_FINITE.code, codes)


class OutputPath(TapePath):
    """The steps of a solve, and which of the output times lie in which step."""

    def __init__(
        self, scheme: Adaptive | Fixed, field: FunctionField, tape: Tape, readings: Readings, end: Tensor
    ) -> None:
        super().__init__(scheme.steps, field, tape)
        self._scheme, self._readings, self._end = scheme, readings, end

    def pull(self, solve: Solve, w: Tensor, field: FunctionField) -> OutputCotangents:
        """Pull cotangents ``[count, rows, P]`` of all outputs back.

        Args:
            solve: the solve that left this path.
            field: the field with the parameters whose cotangents are wanted.

        Raises:
            ValueError: if func has changed since the solve.
        """
        self._field, self._restricted = field, (None, field)
        self._w, self._ends = w[1:-1], self._end
        self._same, self._rounding = torch.ones((), dtype=torch.bool, device=w.device), field.rounding
        self._node_cotangents = w.new_zeros((self.steps + 1, w.shape[1]))
        self._time_cotangents = w.new_zeros(len(w))
        pulled = solve.pullback(w[-1])
        # Of all steps at once, so that the device is waited for only here.
        field.require_same(self._same)
        times = self._pull_times() if field.timed else None
        del self._w, self._ends, self._node_cotangents, self._time_cotangents
        return OutputCotangents(pulled.start + w[0], pulled.parameters, times)

    def transpose(self, index: int, states: Sequence[Tensor], w: Tensor) -> Transposed:
        """Pull the cotangent w of the ends of the steps number ``index`` back, with those of the outputs in them.

        Outputs inside a step enter as the moments m_p = Σ ϑ^p w of their cotangents w, as if there was one output
        y + h q_p a power. That counts Σ_p m_p for the y in them where it should be m_0, which is put right after.
        """
        piece, weights = self._tape.piece(index), self._readings.interpolant.weights
        rows = torch.arange(len(w), device=w.device) if piece.rows is None else piece.rows
        here, moments = self._moments(index, rows, w[rows])
        # The dense output needs f at the end of the step as well.
        stages = [*states, self._ends[rows]] if moments and len(weights) > 1 else states
        outputs = list(zip(weights, moments[1:], strict=False))
        field = _Noting(self._on(piece.rows))
        pulled = self._scheme.stepper.transpose(field, piece.t, piece.h, stages, here, outputs=outputs)
        self._compare(piece.h, states[0], field.values[::-1], self._ends[rows])
        start = pulled.start
        if moments:
            start = start + moments[0] - torch.stack(moments[1:]).sum(dim=0)
        if pulled.time is not None:
            self._pull_nodes(index, rows, pulled.size, pulled.time)
        self._ends = self._ends.index_copy(0, rows, states[0])
        none = w.new_zeros(len(w))
        stability = none.index_copy(0, rows, pulled.stretch / self._scheme.stepper.limit())
        return Transposed(w.index_copy(0, rows, start), pulled.parameters, none, None, stability)

    def _compare(self, h: Tensor, y: Tensor, slopes: list[Tensor], end: Tensor) -> None:
        """Note whether a step from y with the slopes that func returned on the way back still has this end.

        Stored starts leave no more than the rounding of one step; rebuilt ones carry that of all the steps before.
        """
        rise = h * combine(self._scheme.stepper.tableau.floats[1], slopes)
        kept = self._tape.keep != "nothing"
        slack = 16 * torch.finfo(y.dtype).eps if kept else self._rounding
        bound = self._rounding * _largest(rise) + slack * _largest(y)
        self._same = self._same & (_largest(y + rise - end) <= bound).all()

    def _moments(self, index: int, rows: Tensor, w: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return w with the cotangents of outputs at the ends, and the moments of those inside, from the power 0."""
        k, at = self._in(index, rows)
        if len(k) == 0:
            return w, []
        theta, cotangents = self._readings.theta[k, rows[at], None], self._w[k, rows[at]]
        at_end = theta == 1
        w = w.index_add(0, at, torch.where(at_end, cotangents, 0))
        if bool(at_end.all()):
            return w, []
        powers = [torch.where(at_end, 0, cotangents)]
        for _ in self._readings.interpolant.weights:
            powers.append(theta * powers[-1])
        return w, [torch.zeros_like(w).index_add(0, at, power) for power in powers]

    def _pull_nodes(self, index: int, rows: Tensor, size: Tensor, time: Tensor) -> None:
        """Note the cotangents of the times at the ends of a step, and of the output times in it."""
        k, at = self._in(index, rows)
        if len(k) > 0 and self._readings.slopes is not None:
            # Of ϑ = (t_k − t) / h, with ∂y/∂ϑ = h dy/dt.
            along = (self._w[k, rows[at]] * self._readings.slopes[k, rows[at]]).sum(dim=1)
            self._time_cotangents.index_add_(0, k + 1, along)
            time = time.index_add(0, at, -along)
            size = size.index_add(0, at, -self._readings.theta[k, rows[at]] * along)
        self._node_cotangents[index, rows] += time - size
        self._node_cotangents[index + 1, rows] += size

    def _pull_times(self) -> Tensor:
        """Return the cotangents of the output times, on which the ends of steps depend too."""
        with torch.enable_grad():
            t = self._scheme.t.detach().requires_grad_()
            nodes = self._scheme.nodes(t, self._tape)
        if not nodes.requires_grad:
            return self._time_cotangents
        (through,) = torch.autograd.grad(nodes, t, self._node_cotangents)
        return self._time_cotangents + through

    def _in(self, index: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return which inner outputs lie in the steps number ``index``, and of which of the rows."""
        k, at = (self._readings.owner[:, rows] == index).nonzero(as_tuple=True)
        return k, at

    def replay(self, field: FunctionField, y0: Tensor, t: Tensor) -> Tensor:
        """Return the outputs again, as plain differentiable operations on y0 ``[rows, P]`` and t ``[count]``.

        Raises:
            ValueError: if func has changed since the solve.
        """
        interpolant, nodes, y = self._readings.interpolant, self._scheme.nodes(t, self._tape), y0
        off, scale = y.new_zeros(len(y)), _largest(y)
        found, places = [y[:0]], [self._tape.count[:0]]
        for index in range(self.steps):
            piece = self._tape.piece(index)
            rows = torch.arange(len(y), device=y.device) if piece.rows is None else piece.rows
            if self._tape.keep != "nothing":
                off = off.index_copy(0, rows, torch.maximum(off[rows], _largest(y[rows] - self.start(index))))
            k, at = self._in(index, rows)
            inside = len(k) > 0
            start = nodes[index, rows, None]
            h = nodes[index + 1, rows, None] - start
            evaluate = (field if piece.rows is None else field.rows(piece.rows)).evaluate
            taken = self._scheme.stepper.step(
                evaluate, start, h, y[rows], estimate=inside and len(interpolant.weights) > 1
            )
            if inside:
                theta = (t[k + 1, None] - start[at]) / h[at]
                coefficients = [q[at] for q in interpolant.coefficients(y[rows], h, taken)]
                found.append(value(y[rows][at], h[at], coefficients, theta))
                places.append(k * len(y) + rows[at])
            y = y.index_copy(0, rows, taken.end)
            scale = torch.maximum(scale, _largest(y))
        off = torch.maximum(off, _largest(y - self._end))
        field.require_same((off <= field.rounding * scale).all())
        inner = torch.cat(found)[torch.cat(places).argsort()].reshape(-1, *y.shape)
        return torch.cat([y0[None], inner, y[None]])


class _Noting:
    """A field that notes the values that fall out of its pullbacks, from a step's last stage to its first."""

    def __init__(self, field: RowField) -> None:
        self._field = field
        self.values: list[Tensor] = []

    def __call__(self, t: Time, y: Tensor, /) -> Tensor:
        """Return f(t, y)."""
        return self._field(t, y)

    def vjp(self, t: Time, y: Tensor, w: Tensor, /) -> VJP:
        """Return f(t, y) and the pullback of w."""
        pulled = self._field.vjp(t, y, w)
        self.values.append(pulled.value)
        return pulled


def _largest(rows: Tensor) -> Tensor:
    """Return the largest modulus in each row, ``[rows]``."""
    found: Tensor = torch.linalg.vector_norm(rows.detach(), ord=torch.inf, dim=1)
    return found
