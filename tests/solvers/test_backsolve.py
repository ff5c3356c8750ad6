from __future__ import annotations

import pytest
import torch
from problems import symmetric
from references import matrix_exponential, relative, rows_times, runge_kutta
from row_problems import Counted, RowLinear, adaptive, problem
from torchdiffeq import odeint_adjoint

from adjoint_meta.solvers import TABLEAUS, Backsolve, OwnSteps, RungeKutta, SolverError, UniformGrid, UniformSteps

uniformly_or_not = pytest.mark.parametrize("own", [False, True], ids=["uniform", "own"])
RK4 = RungeKutta(TABLEAUS["rk4"])
T0, T1 = 0.2, 1.4


def uniform(name: str, steps: int, t0: float = T0, t1: float = T1) -> UniformSteps:
    return UniformSteps(RungeKutta(TABLEAUS[name]), UniformGrid(t0, t1, steps))


@pytest.mark.parametrize(("name", "theirs"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2")])
def test_backsolve_is_torchdiffeqs_adjoint(name, theirs, generator):
    field, y, w = problem(generator)
    steps = 6
    pulled = Backsolve(RungeKutta(TABLEAUS[name]), drift=1e3).solve(uniform(name, steps), field, y).pullback(w)

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.ParameterList([p.clone() for p in field.parameters])

        def forward(self, t, y):
            return field.value(t, y, *self.inner)

    module, start, t = Module(), y.clone().requires_grad_(), torch.tensor([T0, T1], requires_grad=True)
    options = {"step_size": (T1 - T0) / steps}
    end = odeint_adjoint(module, start, t, method=theirs, options=options, adjoint_options=options)[-1]
    found = torch.autograd.grad((end * w).sum(), (start, t, *module.inner))
    assert relative(pulled.start, found[0]) < 1e-12
    assert float(pulled.duration.sum()) == pytest.approx(float(found[1][1]), rel=1e-12)
    assert float(pulled.shift.sum()) == pytest.approx(float(found[1].sum()), rel=1e-11)
    assert all(relative(*pair) < 1e-12 for pair in zip(pulled.parameters, found[2:], strict=True))


@pytest.mark.parametrize("horizon", [10.0, 1000.0])
@uniformly_or_not
def test_a_long_contracting_flow_is_refused(horizon, own, generator):
    # The second row's growth backward is e²⁰, and at the longer horizon more than a number can hold.
    rates = torch.tensor([[0.1 / horizon, 0.2 / horizon], [1.0, 2.0]])
    field = RowLinear(torch.diag_embed(rates), torch.zeros(2, 2))
    y, w = torch.ones(2, 2), torch.ones(2, 2)
    plan = OwnSteps(adaptive("bosh3", horizon, 1e-2)) if own else uniform("rk4", int(horizon), 0.0, horizon)
    solved = Backsolve(RK4).solve(plan, field, y)
    assert relative(solved.end[0], torch.exp(-torch.tensor([0.1, 0.2]))) < 1e-2
    with pytest.raises(SolverError, match=r"drifted in 1 of 2 rows.*discrete or checkpointed.*anchors"):
        solved.pullback(w)


@uniformly_or_not
def test_anchors_cure_it(own, generator):
    a = symmetric(generator, torch.tensor([[0.2, 1.0, 4.0], [0.3, 0.1, 0.2]]))
    y, w = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    field = RowLinear(a, torch.zeros(2, 3))
    plan = OwnSteps(adaptive("dopri5", 4.0, 1e-5)) if own else uniform("rk4", 60, 0.0, 4.0)
    with pytest.raises(SolverError, match="drifted in 1 of 2 rows"):
        Backsolve(RK4, drift=1e-4).solve(plan, field, y).pullback(w)
    pulled = Backsolve(RK4, anchors=20, drift=1e-4).solve(plan, field, y).pullback(w)
    assert relative(pulled.start, rows_times(matrix_exponential(-4.0 * a), w)) < 1e-3


def test_anchors_are_spread_evenly_and_taken_up_exactly(generator):
    field, y, w = problem(generator)

    class Watching(Counted):
        def vjp(self, t, y, w):
            seen.append(y)
            return super().vjp(t, y, w)

    plan, seen = uniform("heun", 10), []
    Backsolve(anchors=3).solve(plan, Watching(field, 2), y).pullback(w)
    states = [y]
    for index in range(10):
        t = plan.grid.time(index)
        states.append(runge_kutta(TABLEAUS["heun"], field, t, t + plan.grid.step_size, 1, states[-1]))
    # The first product of a step is at its end; after the anchors before the steps 9, 6 and 3 it is at the anchor.
    exactly = [index for index in range(11) if any(relative(first, states[index]) < 1e-15 for first in seen[::2])]
    assert exactly == [3, 6, 9, 10]


def test_the_drift_allowed_is_the_users(generator):
    field, y, w = problem(generator)
    plan = uniform("heun", 4)
    with pytest.raises(SolverError, match=r"where 1e-06 is allowed"):
        Backsolve(drift=1e-6).solve(plan, field, y).pullback(w)
    assert torch.isfinite(Backsolve(drift=10.0).solve(plan, field, y).pullback(w).start).all()


def test_a_row_that_rounding_alone_moves_does_not_drift(generator):
    # A task that is done but for the last digit is no failure, and its state is as good as rebuilt.
    field, eps = RowLinear(symmetric(generator, torch.ones(2, 3)), torch.ones(2, 3)), torch.finfo(torch.float64).eps
    y = torch.tensor([[2.0, 3.0, 4.0], [1 + 2 * eps, 1 - 2 * eps, 1 + 4 * eps]])
    pulled = Backsolve(RK4).solve(uniform("rk4", 2, 0.0, 1.0), field, y).pullback(torch.ones(2, 3))
    assert relative(pulled.start, torch.full((2, 3), 1.0).mul(torch.exp(torch.tensor(-1.0)))) < 1e-2
