from __future__ import annotations

import math

import pytest
import torch
from problems import symmetric
from references import central_difference, relative, rows_times
from row_problems import Counted, adaptive
from torch import Tensor

from adjoint_meta.solvers import (
    TABLEAUS,
    VJP,
    Chebyshev,
    Guard,
    OwnSteps,
    PIController,
    RowSteps,
    RungeKutta,
    SolverError,
    SteadyState,
    UniformGrid,
    UniformSteps,
)


class Proximal:
    """f(y) = −A(y − b) − λ(y − θ) with parameters (θ, λ): it rests at (A + λI)⁻¹(Ab + λθ), as iMAML's inner problem."""

    def __init__(self, a: Tensor, b: Tensor, theta: Tensor, strength: float, index: Tensor | None = None) -> None:
        self.a, self.b, self.theta, self.strength = a, b, theta, strength
        self.index = torch.arange(len(a)) if index is None else index

    def __call__(self, t, y: Tensor) -> Tensor:
        a, b, theta = self.a[self.index], self.b[self.index], self.theta[self.index]
        return -torch.einsum("rij,rj->ri", a, y - b) - self.strength * (y - theta)

    def vjp(self, t, y: Tensor, w: Tensor) -> VJP:
        state = -torch.einsum("rij,rj->ri", self.a[self.index], w) - self.strength * w
        theta = torch.zeros_like(self.theta).index_copy(0, self.index, self.strength * w)
        return VJP(self(t, y), state, (theta, -(w * (y - self.theta[self.index])).sum()))

    def rows(self, index: Tensor) -> Proximal:
        return Proximal(self.a, self.b, self.theta, self.strength, self.index[index])

    @property
    def matrix(self) -> Tensor:
        return self.a + self.strength * torch.eye(self.a.shape[1], dtype=self.a.dtype)

    @property
    def rest(self) -> Tensor:
        return torch.linalg.solve(self.matrix, rows_times(self.a, self.b) + self.strength * self.theta)


def proximal(generator: torch.Generator, strength: float = 0.7) -> tuple[Proximal, Tensor, Tensor]:
    """Rows of curvature 0.1 to 1, 1 to 10 and 5 to 50; the first one is not convex without the proximal term."""
    spectra = torch.tensor([[0.1], [1.0], [5.0]]) * torch.tensor([1.0, 3.0, 5.0, 10.0])
    spectra[0, 0] = -0.3
    a = symmetric(generator, spectra)
    b, theta, y, c = (torch.randn(3, 4, generator=generator) for _ in range(4))
    return Proximal(a, b, theta, strength), y, c


PLANS = {
    "dopri5": OwnSteps(adaptive("dopri5", math.inf, 1e-4, steady=1e-10, guard=Guard())),
    "heun": OwnSteps(adaptive("heun", math.inf, 1e-2, steady=1e-10, guard=Guard())),
    "rkc": OwnSteps(RowSteps(Chebyshev(), 0.0, math.inf, PIController(1e-2, 1e-2), Guard(), steady=1e-10)),
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


@every_plan
def test_the_cotangents_of_the_point_of_rest(plan, generator):
    field, y, c = proximal(generator)
    solved = SteadyState(cg_tol=1e-12).solve(plan, field, y)
    solved.raise_if_failed()
    pulled = solved.pullback(c)
    v = torch.linalg.solve(field.matrix, c)
    assert relative(solved.end, field.rest) < 1e-8
    # λ(A + λI)⁻¹c, and of λ −⟨v, y* − θ⟩.
    assert relative(pulled.parameters[0], field.strength * v) < 1e-9
    assert float(pulled.parameters[1]) == pytest.approx(-float((v * (field.rest - field.theta)).sum()), rel=1e-8)
    # Neither where it started, nor how long it took, has an influence.
    assert not any(x.any() for x in (pulled.start, pulled.duration, pulled.stability)) and pulled.shift is None


def test_the_strength_against_finite_differences(generator):
    field, y, c = proximal(generator)

    def objective(strength: Tensor) -> float:
        other = Proximal(field.a, field.b, field.theta, float(strength))
        return float((c * SteadyState().solve(PLANS["dopri5"], other, y).end).sum())

    found = SteadyState(cg_tol=1e-12).solve(PLANS["dopri5"], field, y).pullback(c).parameters[1]
    expected = central_difference(objective, torch.tensor([field.strength]), 1e-4)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_it_does_not_matter_how_it_came_to_rest(generator):
    field, y, c = proximal(generator, strength=2.0)
    long = UniformSteps(RungeKutta(TABLEAUS["rk4"]), UniformGrid(0.0, 15.0, 300))
    adjoint = SteadyState(cg_tol=1e-12)
    one, other = adjoint.solve(long, field, y), adjoint.solve(PLANS["rkc"], field, -y)
    assert relative(one.end, other.end) < 1e-9
    assert relative(one.pullback(c).parameters[0], other.pullback(c).parameters[0]) < 1e-9


def test_a_curvature_that_depends_on_where_it_rests(generator):
    class Quartic:
        """f(y) = p − y³ − y/2, whose rest y* has dy*/dp = 1 / (3y*² + ½)."""

        def __init__(self, p: Tensor) -> None:
            self.p = p

        def __call__(self, t, y):
            return self.p - y**3 - y / 2

        def vjp(self, t, y, w):
            return VJP(self(t, y), -(3 * y**2 + 0.5) * w, (w,))

        def rows(self, index):
            return Quartic(self.p[index])

    p, c = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    solved = SteadyState(cg_tol=1e-12).solve(PLANS["dopri5"], Quartic(p), torch.zeros(2, 3))
    assert float(Quartic(p)(0.0, solved.end).norm()) < 1e-9
    assert relative(solved.pullback(c).parameters[0], c / (3 * solved.end**2 + 0.5)) < 1e-9


def test_nothing_of_the_way_is_kept_and_cg_is_what_the_pullback_costs(generator):
    field, y, c = proximal(generator)
    counted = Counted(field, 3)
    solved = SteadyState(cg_tol=1e-8).solve(PLANS["dopri5"], counted, y)
    assert solved.stats["accepted"].min() > 3
    before = counted.products.clone()
    evaluations = counted.evaluations.clone()
    solved.pullback(c)
    # Four dimensions take four CG steps, and one product gives the parameters.
    assert int((counted.products - before).max()) <= 6 and torch.equal(counted.evaluations, evaluations)
    assert torch.all(solved.stats["cg_iterations"] <= 5) and torch.all(solved.stats["cg_residual"] <= 1e-8)


# Failures


def test_a_curvature_that_is_not_positive_is_refused(generator):
    # At a saddle: the flow rests there, but the point is no minimum.
    a = symmetric(generator, torch.tensor([[1.0, 2.0], [-0.5, 1.0]]))
    field = Proximal(a, torch.zeros(2, 2), torch.zeros(2, 2), 0.1)
    solved = SteadyState().solve(PLANS["dopri5"], field, torch.zeros(2, 2))
    solved.raise_if_failed()
    with pytest.raises(SolverError, match=r"the linear solve failed in 1 of 2 rows \(row 1\).*negative curvature"):
        solved.pullback(torch.linalg.eigh(a)[1][:, :, 0])


def test_cg_that_does_not_converge_is_refused(generator):
    field, y, c = proximal(generator)
    solved = SteadyState(cg_tol=1e-10, cg_steps=2).solve(PLANS["dopri5"], field, y)
    with pytest.raises(SolverError, match=r"the linear solve failed in 3 of 3 rows.*allow more steps"):
        solved.pullback(c)


def test_rows_that_never_rest_are_told(generator):
    # λ = 0.1 leaves the first row a direction in which it flees.
    field, y, _ = proximal(generator, strength=0.1)
    plan = OwnSteps(adaptive("dopri5", math.inf, 1e-4, steady=1e-6, guard=Guard(), max_steps=300))
    solved = SteadyState().solve(plan, field, y)
    with pytest.raises(SolverError, match=r"the inner solve failed in 1 of 3 rows \(row 0\)"):
        solved.raise_if_failed()


def test_float32_stays_float32(generator):
    field, y, c = proximal(generator)
    other = Proximal(field.a.float(), field.b.float(), field.theta.float(), field.strength)
    plan = OwnSteps(adaptive("dopri5", math.inf, 1e-3, steady=1e-4, guard=Guard()))
    solved = SteadyState(cg_tol=1e-5).solve(plan, other, y.float())
    pulled = solved.pullback(c.float())
    kinds = {x.dtype for x in (solved.end, pulled.start, pulled.duration, pulled.stability, *pulled.parameters)}
    assert kinds == {torch.float32}
    expected = field.strength * torch.linalg.solve(field.matrix, c)
    assert relative(pulled.parameters[0].double(), expected) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cg_tol": 0.0}, ValueError, "cg_tol must be positive"),
        ({"cg_tol": "tight"}, TypeError, "cg_tol must be a number"),
        ({"cg_steps": 0}, ValueError, "cg_steps must be at least 1"),
        ({"cg_steps": 1.5}, TypeError, "cg_steps must be a whole number"),
    ],
)
def test_wrong_settings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        SteadyState(**arguments)


def test_a_wrong_initial_state_is_refused(generator):
    with pytest.raises(ValueError, match=r"initial state must have shape \[rows, P\]"):
        SteadyState().solve(PLANS["rkc"], proximal(generator)[0], torch.zeros(4))
