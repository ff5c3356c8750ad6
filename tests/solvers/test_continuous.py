from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import LinearField, symmetric
from references import STEPS, order_of_convergence, relative, rows_times, runge_kutta
from row_problems import Counted, Elementwise, Gradient, RowLinear, adaptive, cotangents, exact, mixed, names, problem
from scipy.interpolate import CubicHermiteSpline

from adjoint_meta.solvers import (
    TABLEAUS,
    Backsolve,
    Discrete,
    Guard,
    Interpolating,
    OwnSteps,
    RungeKutta,
    SolverError,
    UniformGrid,
    UniformSteps,
)

every_tableau = pytest.mark.parametrize("tableau", TABLEAUS.values(), ids=TABLEAUS)
# The check of the drift has tests of its own.
BUILDS = {"interpolating": Interpolating, "backsolve": lambda stepper: Backsolve(stepper, drift=10.0)}
every_build = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
T0, T1 = 0.2, 1.4


def uniform(tableau, steps: int, t0: float = T0, t1: float = T1) -> UniformSteps:
    return UniformSteps(RungeKutta(tableau), UniformGrid(t0, t1, steps))


# Interpolating


def test_heuns_method_is_modified_euler_of_the_paper(generator):
    # papers: λ̃_j = λ_{j+1} + h H(u_{j+1}) λ_{j+1},  λ_j = λ_{j+1} + h/2 [H(u_{j+1}) λ_{j+1} + H(u_j) λ̃_j].
    basis, _ = torch.linalg.qr(torch.randn(2, 4, 4, generator=generator))
    field = Gradient(basis, torch.rand(2, 4, generator=generator) * 3, torch.randn(2, 4, generator=generator))
    u, w = torch.randn(2, 4, generator=generator), torch.randn(2, 4, generator=generator)
    steps, h = 6, 0.2
    solved = Interpolating().solve(uniform(TABLEAUS["rk4"], steps, 0.0, steps * h), field, u)
    pulled = solved.pullback(w)

    states = [u]
    for _ in range(steps):
        states.append(runge_kutta(TABLEAUS["rk4"], field, 0.0, h, 1, states[-1]))

    def hessian(u):
        """The Jacobian of f, that is minus the Hessian of the loss, dense."""
        return torch.stack([torch.autograd.functional.jacobian(lambda v: field(0.0, v), u)[i, :, i] for i in range(2)])

    costate = w
    for j in reversed(range(steps)):
        now, before = hessian(states[j + 1]), hessian(states[j])
        predicted = costate + h * rows_times(now, costate)
        costate = costate + h / 2 * (rows_times(now, costate) + rows_times(before, predicted))
    assert relative(solved.end, states[-1]) < 1e-14
    assert relative(pulled.start, costate) < 1e-13
    assert relative(pulled.duration, (w * field(0.0, states[-1])).sum(dim=1)) < 1e-14
    assert pulled.shift is None and pulled.parameters == ()


@every_tableau
def test_the_costate_is_stepped_over_the_hermite_interpolant(tableau, generator):
    # Dense Jacobians, SciPy's interpolant, and the equations as on paper, with dA/ds = JᵀA in s = t1 − t.
    field, y, w = problem(generator, rows=1)
    steps, h = 3, (T1 - T0) / 3
    pulled = Interpolating(RungeKutta(tableau)).solve(uniform(TABLEAUS["heun"], steps), field, y).pullback(w)
    times, states = [T0 + j * h for j in range(steps + 1)], [y]
    for t in times[:-1]:
        states.append(runge_kutta(TABLEAUS["heun"], field, t, t + h, 1, states[-1]))
    slopes = [field(t, u) for t, u in zip(times, states, strict=True)]
    spline = CubicHermiteSpline(times, torch.cat(states).numpy(), torch.cat(slopes).numpy())

    def products(t: float, costate: torch.Tensor) -> list[torch.Tensor]:
        """costateᵀ ∂f/∂(y, t, parameters) on the interpolant."""
        at = torch.from_numpy(spline(t))[None].requires_grad_()
        time = torch.tensor(t, requires_grad=True)
        value = field(time, at)
        return list(torch.autograd.grad(value, (at, time, *field.parameters), costate))

    for parameter in field.parameters:
        parameter.requires_grad_()
    costate, integrals = w, [torch.zeros(())] + [torch.zeros_like(p) for p in field.parameters]
    for t in reversed(times[1:]):
        found: list[list[torch.Tensor]] = []
        for row, node in zip(tableau.a, tableau.c, strict=True):
            stage = costate + h * sum((float(a) * k[0] for a, k in zip(row, found, strict=True)), torch.zeros(1, 3))
            found.append(products(t - float(node) * h, stage))
        for b, k in zip(tableau.b, found, strict=True):
            costate = costate + h * float(b) * k[0]
            integrals = [total + h * float(b) * part for total, part in zip(integrals, k[1:], strict=True)]
    assert relative(pulled.start, costate) < 1e-13
    assert relative(pulled.shift, integrals[0][None]) < 1e-12
    assert all(relative(*pair) < 1e-12 for pair in zip(pulled.parameters, integrals[1:], strict=True))
    assert relative(pulled.duration, (w * slopes[-1]).sum(dim=1)) < 1e-14


@every_tableau
@every_build
def test_the_order_of_every_cotangent(tableau, build, generator):
    field, y, w = problem(generator)
    _, expected = exact(field, y, w, T0, T1)
    order = min(tableau.order, 4) if build is Interpolating else tableau.order
    counts = STEPS[tableau.order] if order > 3 else [2 * n for n in STEPS[tableau.order]]
    errors = []
    for n in counts:
        pulled = build(RungeKutta(tableau)).solve(uniform(tableau, n), field, y).pullback(w)
        errors.append([relative(*pair) for pair in zip(cotangents(pulled), expected, strict=True)])
    for found in np.array(errors).T:
        # Some cotangents start out better than their order, which spoils the fit.
        slope = max(order_of_convergence(counts, found), np.log2(found[1] / found[2]))
        assert slope > order - 0.15
    assert order_of_convergence(counts, np.array(errors)[:, 0]) < order + 0.5


def test_two_products_a_step_with_heun_and_no_evaluation(generator):
    field, y, w = problem(generator)
    counted = Counted(field, 2)
    solved = Interpolating().solve(uniform(TABLEAUS["rk4"], 5), counted, y)
    assert counted.evaluations.tolist() == [20, 20]
    solved.pullback(w)
    assert counted.products.tolist() == [10, 10] and counted.evaluations.tolist() == [20, 20]
    # Nodes inside a step need the slopes at its ends: one of them falls out of the products.
    counted.evaluations.zero_()
    Interpolating(RungeKutta(TABLEAUS["midpoint"])).solve(uniform(TABLEAUS["rk4"], 5), counted, y).pullback(w)
    assert int(counted.evaluations[0]) <= 20 + 10


@pytest.mark.parametrize("guard", [None, Guard()], ids=["free", "guarded"])
@every_build
@pytest.mark.parametrize("name", ["bosh3", "dopri5", "tsit5"])
def test_on_steps_that_rows_chose(name, build, guard, generator):
    field, y = mixed(generator, rates=(0.3, 3.0, 1.0, 0.3), force=12.0)
    w = torch.randn(4, 3, generator=generator)
    end, expected = exact(field, y, w, T0, T1)
    errors = []
    for tol in (1e-4, 1e-6):
        plan = OwnSteps(adaptive(name, T1, tol, T0, guard=guard))
        solved = build(RungeKutta(TABLEAUS[name])).solve(plan, field, y)
        assert len(set(solved.stats["accepted"].tolist())) > 2
        assert relative(solved.end, end) < 100 * tol
        errors.append([relative(*pair) for pair in zip(cotangents(solved.pullback(w)), expected, strict=True)])
    assert max(errors[-1]) < 5e-3 and all(fine < 0.3 * coarse for coarse, fine in zip(*errors, strict=True))


# Both


BOTH = [Interpolating(), Backsolve(), Backsolve(anchors=2)]
both = pytest.mark.parametrize("adjoint", BOTH, ids=["interpolating", "backsolve", "anchored"])


@both
def test_rows_at_rest_hand_their_cotangent_through(adjoint, generator):
    field = RowLinear(symmetric(generator, torch.ones(2, 3)), torch.zeros(2, 3))
    y, w = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    y[0] = 0
    plan = OwnSteps(adaptive(t1=1.0, tol=1e-6, steady=1e-9))
    pulled = adjoint.solve(plan, field, y).pullback(w)
    assert torch.equal(pulled.start[0], w[0]) and float(pulled.duration[0]) == 0
    assert relative(pulled.start[1], w[1] * math.exp(-1)) < 1e-2
    pulled = adjoint.solve(plan, field, 0 * y).pullback(w)
    assert torch.equal(pulled.start, w) and not pulled.duration.any()


@both
def test_a_solve_that_failed_is_told_by_its_codes(adjoint):
    field = Elementwise(lambda t, y: torch.where(y > 0, math.nan, -y))
    solved = adjoint.solve(OwnSteps(adaptive()), field, torch.tensor([[1.0], [-1.0]]))
    assert names(solved) == ["NON_FINITE", "SUCCESS"]
    with pytest.raises(SolverError, match="1 of 2 rows"):
        solved.raise_if_failed()


@both
def test_the_pullback_is_linear_leaves_no_graph_and_may_be_called_again(adjoint, generator):
    field, y, w = problem(generator)
    for tensor in (y, *field.parameters):
        tensor.requires_grad_()
    for plan in (uniform(TABLEAUS["heun"], 12), OwnSteps(adaptive("heun", T1, 1e-3, T0))):
        solved = adjoint.solve(plan, field, y)
        once, twice = solved.pullback(w), solved.pullback(-2 * w)
        assert all(relative(b, -2 * a) < 1e-14 for a, b in zip(cotangents(once), cotangents(twice), strict=True))
        assert not any(x.requires_grad for x in (solved.end, *cotangents(once)))


@both
def test_the_stability_is_that_of_the_products(adjoint):
    field = LinearField(torch.diag_embed(torch.tensor([[1.0, 1.0], [4.0, 4.0]])), torch.zeros(2, 2))
    solved = adjoint.solve(uniform(TABLEAUS["heun"], 40, 0.0, 1.0), field, torch.ones(2, 2))
    assert relative(solved.pullback(torch.ones(2, 2)).stability, torch.tensor([1.0, 4.0]) / 40 / 2) < 1e-12


@both
def test_float32_stays_float32(adjoint, generator):
    field, y, w = problem(generator)
    for plan in (uniform(TABLEAUS["heun"], 20), OwnSteps(adaptive("heun", T1, 1e-3, T0))):
        expected = Discrete().solve(plan, field, y).pullback(w)
        solved = adjoint.solve(plan, field.float(), y.float())
        pulled = solved.pullback(w.float())
        assert {x.dtype for x in (solved.end, pulled.stability, *cotangents(pulled))} == {torch.float32}
        assert relative(pulled.start.double(), expected.start) < 2e-2


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="anchors must be at least 0"):
        Backsolve(anchors=-1)
    with pytest.raises(TypeError, match="anchors must be a whole number"):
        Backsolve(anchors=1.5)
    with pytest.raises(ValueError, match="drift must be positive"):
        Backsolve(drift=0.0)
    for adjoint in BOTH:
        with pytest.raises(ValueError, match=r"initial state must have shape \[rows, P\]"):
            adjoint.solve(uniform(TABLEAUS["heun"], 2), None, torch.zeros(3))
