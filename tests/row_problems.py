"""Fields whose rows can be evaluated apart, what each row costs, and recorded steps taken again on paper."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from problems import LinearField
from references import runge_kutta
from torch import Tensor

from adjoint_meta.solvers import TABLEAUS, VJP, ButcherTableau, Cotangents, PIController, RowSteps, RungeKutta
from adjoint_meta.solvers.row_steps import RowSolve
from adjoint_meta.solvers.solution import statuses

PAIRS = ("heun", "bosh3", "dopri5", "tsit5")

# One list of (t, h) a row.
Recorded = list[list[tuple[Tensor, Tensor]]]


class RowTanh:
    """f(t, y) = tanh(W y + sin(4t) u) − r∘y, with W and u shared and rates r ``[rows, P]``; its pullback is autograd's.

    Nonlinear, not symmetric, not autonomous. W y is summed elementwise, so that batches cannot round differently.
    """

    def __init__(self, generator: torch.Generator, rates: Tensor, force: float = 1.0) -> None:
        size = rates.shape[1]
        self.weight = torch.randn(size, size, generator=generator)
        self.force = force * torch.randn(size, generator=generator)
        self.rates = rates
        self.index = torch.arange(len(rates))

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.force, self.rates

    @staticmethod
    def value(t: Tensor, y: Tensor, weight: Tensor, force: Tensor, rates: Tensor) -> Tensor:
        return torch.tanh((weight * y[:, None, :]).sum(dim=2) + torch.sin(4 * t) * force) - rates * y

    def __call__(self, t: Tensor | float, y: Tensor) -> Tensor:
        return self.value(torch.as_tensor(t, dtype=y.dtype), y, self.weight, self.force, self.rates[self.index])

    def vjp(self, t: Tensor | float, y: Tensor, w: Tensor) -> VJP:
        times = torch.as_tensor(t, dtype=y.dtype).expand(len(y), 1)
        inputs = [tensor.detach().clone().requires_grad_() for tensor in (times, y, *self.parameters)]
        with torch.enable_grad():
            value = self.value(*inputs[:4], inputs[4][self.index])
            time, state, *parameters = torch.autograd.grad(value, inputs, w)
        return VJP(value.detach(), state, tuple(parameters), time[:, 0])

    def rows(self, index: Tensor) -> RowTanh:
        some = copy.copy(self)
        some.index = self.index[index]
        return some

    def float(self) -> RowTanh:
        other = copy.copy(self)
        other.weight, other.force, other.rates = (x.float() for x in self.parameters)
        return other


class RowLinear(LinearField):
    """`LinearField` on some of its rows."""

    def rows(self, index: Tensor) -> RowLinear:
        return RowLinear(self.a[index], self.b[index])


class Elementwise:
    """Any f(t, y) that treats the entries of y alike, with the number of the row as a third argument if it wants it."""

    def __init__(self, f: Callable[..., Tensor], index: Tensor | None = None) -> None:
        self.f, self.index = f, index

    def __call__(self, t: Tensor | float, y: Tensor) -> Tensor:
        return self.f(t, y)

    def vjp(self, t: Tensor | float, y: Tensor, w: Tensor) -> VJP:
        y = y.detach().requires_grad_()
        with torch.enable_grad():
            value = self.f(t, y)
            (state,) = torch.autograd.grad(value, y, w)
        return VJP(value.detach(), state)

    def rows(self, index: Tensor) -> Elementwise:
        return self


class Gradient:
    """The gradient flow f(y) = −Q tanh(D Qᵀ(y − b)), a row a problem; its Jacobian −Q diag(D/cosh²) Qᵀ is symmetric."""

    def __init__(self, basis: Tensor, steepness: Tensor, b: Tensor) -> None:
        self.basis, self.steepness, self.b = basis, steepness, b

    def __call__(self, t: Tensor | float, y: Tensor) -> Tensor:
        return -_times(self.basis, torch.tanh(self.steepness * self._inner(y)))

    def vjp(self, t: Tensor | float, y: Tensor, w: Tensor) -> VJP:
        bend = self.steepness / torch.cosh(self.steepness * self._inner(y)) ** 2
        return VJP(self(t, y), -_times(self.basis, bend * _times(self.basis.mT, w)))

    def _inner(self, y: Tensor) -> Tensor:
        return _times(self.basis.mT, y - self.b)

    def radius(self, y: Tensor) -> Tensor:
        """‖J(y)‖ of each row, ``[rows]``."""
        return (self.steepness / torch.cosh(self.steepness * self._inner(y)) ** 2).abs().amax(dim=1)

    def rows(self, index: Tensor) -> Gradient:
        return Gradient(self.basis[index], self.steepness[index], self.b[index])


def _times(matrices: Tensor, rows: Tensor) -> Tensor:
    return torch.einsum("rij,rj->ri", matrices, rows)


class Counted:
    """Any row field, with the number of evaluations and of products that each row cost."""

    def __init__(self, field: object, rows: int) -> None:
        self.field, self.index = field, torch.arange(rows)
        self.evaluations, self.products = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.long)

    def __call__(self, t: Tensor | float, y: Tensor) -> Tensor:
        assert len(y) == len(self.index)
        self.evaluations[self.index] += 1
        return self.field(t, y)

    def vjp(self, t: Tensor | float, y: Tensor, w: Tensor) -> VJP:
        assert len(y) == len(self.index)
        self.products[self.index] += 1
        return self.field.vjp(t, y, w)

    def rows(self, index: Tensor) -> Counted:
        some = copy.copy(self)
        some.field, some.index = self.field.rows(index), self.index[index]
        return some


def pair(name: str) -> RungeKutta:
    """An explicit method that knows the slope at the end of its steps, as adaptive solves need it."""
    return RungeKutta(TABLEAUS[name].with_last_slope())


def adaptive(name: str = "dopri5", t1: float = 2.0, tol: float = 1e-5, t0: float = 0.0, **more) -> RowSteps:
    """An adaptive solve; the tolerance is relative and absolute."""
    return RowSteps(pair(name), t0, t1, more.pop("controller", PIController(tol, tol)), **more)


def mixed(generator, rates=(0.3, 30.0, 4.0, 0.3), force: float = 4.0) -> tuple[RowTanh, torch.Tensor]:
    """A nonlinear problem whose rows need very different steps; the forces make some of them too long."""
    field = RowTanh(generator, torch.tensor(rates)[:, None].expand(-1, 3), force)
    return field, torch.randn(len(rates), 3, generator=generator)


def names(solved: RowSolve) -> list[str]:
    """How each row ended."""
    return [status.name for status in statuses(solved.codes)]


def recorded(plan: RowSteps, field: object, y0: Tensor) -> tuple[RowSolve, Recorded, list[list[Tensor]]]:
    """The solve, the accepted steps of every row, and the states from which they were taken."""
    steps: Recorded = [[] for _ in y0]
    starts: list[list[Tensor]] = [[] for _ in y0]

    def record(rows, t, h, stages, taken) -> None:
        for k, row in enumerate(rows.tolist()):
            steps[row].append((t[k], h[k]))
            starts[row].append(taken.states[0][k])

    return plan.integrate(field, y0, record), steps, starts


def replay(
    tableau: ButcherTableau,
    field: object,
    steps: Recorded,
    y0: Tensor,
    t0: float = 0.0,
    longer: Tensor | None = None,
    later: Tensor | None = None,
) -> Tensor:
    """Every recorded step of every row on its own, as on paper, in an interval made longer (a factor a row) and later.

    Differentiable in y0, longer, later, and in whatever the field holds.
    """
    longer = torch.ones(len(y0)) if longer is None else longer
    later = torch.zeros(len(y0)) if later is None else later
    ends = []
    for row, taken in enumerate(steps):
        alone, y = field.rows(torch.tensor([row])), y0[row : row + 1]
        for t, h in taken:
            t, h = t0 + (t - t0) * longer[row] + later[row], h * longer[row]
            slopes: list[Tensor] = []
            for weights, node in zip(tableau.a, tableau.c, strict=True):
                slopes.append(alone(t + float(node) * h, _combined(y, h, weights, slopes)))
            y = _combined(y, h, tableau.b, slopes)
        ends.append(y)
    return torch.cat(ends)


def _combined(y: Tensor, h: Tensor, weights, slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        y = y + h * float(weight) * slope
    return y


def problem(generator: torch.Generator, rows: int = 2) -> tuple[RowTanh, Tensor, Tensor]:
    """A smooth nonlinear problem: a field, an initial state, and a cotangent."""
    field = RowTanh(generator, 0.3 + torch.rand(rows, 3, generator=generator))
    return field, *(torch.randn(rows, 3, generator=generator) for _ in range(2))


def exact(field: RowTanh, y: Tensor, w: Tensor, t0: float, t1: float):
    """The end, and the cotangents (start, duration, shift, *parameters), by autograd through very small steps."""
    y = y.clone().requires_grad_()
    begin, end = (torch.full((len(y), 1), t).requires_grad_() for t in (t0, t1))
    parameters = [p.requires_grad_() for p in field.parameters]
    solution = runge_kutta(TABLEAUS["dopri5"], field, begin, end, 150, y)
    start, at_begin, at_end, *rest = torch.autograd.grad(solution, (y, begin, end, *parameters), w)
    for p in parameters:
        p.requires_grad_(False)
    # t0 + shift and t1 + shift; the duration moves t1 alone.
    return solution.detach(), [start, at_end[:, 0], (at_begin + at_end)[:, 0], *rest]


def cotangents(pulled: Cotangents) -> list[Tensor]:
    """Those that `exact` has, in its order."""
    return [pulled.start, pulled.duration, pulled.shift, *pulled.parameters]
