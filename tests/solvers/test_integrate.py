from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import LinearField, Recorder, TanhField, symmetric
from references import STEPS, matrix_exponential, order_of_convergence, relative, rows_times, runge_kutta
from scipy.integrate import solve_ivp

from adjoint_meta.solvers import TABLEAUS, Discrete, RungeKutta, UniformGrid, UniformSteps, integrate

every_tableau = pytest.mark.parametrize("tableau", TABLEAUS.values(), ids=TABLEAUS)


@every_tableau
def test_integrate_is_the_textbook_loop(tableau, generator):
    field = TanhField(generator, time=1.0)
    y = torch.randn(2, 3, generator=generator)
    found = integrate(RungeKutta(tableau), field, UniformGrid(0.2, 1.7, 5), y)
    assert relative(found, runge_kutta(tableau, field, 0.2, 1.7, 5, y)) < 1e-14


@every_tableau
def test_a_backward_grid(tableau, generator):
    field = TanhField(generator, time=1.0)
    y = torch.randn(2, 3, generator=generator)
    found = integrate(RungeKutta(tableau), field, UniformGrid(1.7, 0.2, 5), y)
    assert relative(found, runge_kutta(tableau, field, 1.7, 0.2, 5, y)) < 1e-14


@every_tableau
def test_order_on_a_linear_system_for_solution_and_adjoint(tableau, generator):
    rows, size, horizon = 2, 3, 2.0
    a = symmetric(generator, 0.3 + torch.rand(rows, size, generator=generator))
    b, y, w = (torch.randn(rows, size, generator=generator) for _ in range(3))
    propagator = matrix_exponential(-horizon * a)
    end, start = b + rows_times(propagator, y - b), rows_times(propagator.mT, w)
    field = LinearField(a, b)
    errors, adjoint_errors, time_errors = [], [], []
    for n in STEPS[tableau.order]:
        solved = Discrete().solve(UniformSteps(RungeKutta(tableau), UniformGrid(0.0, horizon, n)), field, y)
        pulled = solved.pullback(w)
        errors.append(relative(solved.end, end))
        adjoint_errors.append(relative(pulled.start, start))
        # d/dT of ⟨w, y(T)⟩ is ⟨w, f(y(T))⟩
        time_errors.append(relative(pulled.duration, (w * field(0.0, end)).sum(dim=1)))
    for found in (errors, adjoint_errors, time_errors):
        assert order_of_convergence(STEPS[tableau.order], found) == pytest.approx(tableau.order, abs=0.15)


@every_tableau
def test_order_on_a_nonlinear_equation_for_solution_and_adjoint(tableau, generator):
    field = TanhField(generator)
    # A symmetric negative matrix makes it a gradient flow, which contracts.
    field.weight = -symmetric(generator, 0.5 + torch.rand(1, 3, generator=generator))[0]
    weight, bias = field.weight.numpy(), field.bias.numpy()
    y, w, horizon = torch.randn(1, 3, generator=generator), torch.randn(1, 3, generator=generator), 2.0

    def augmented(_t: float, z: np.ndarray) -> np.ndarray:
        """y′ = f(y) and the variational equation Φ′ = J(y) Φ."""
        state, flow = z[:3], z[3:].reshape(3, 3)
        value = np.tanh(weight @ state + bias)
        jacobian = (1 - value**2)[:, None] * weight - np.eye(3) / 2
        return np.concatenate([value - state / 2, (jacobian @ flow).ravel()])

    z0 = np.concatenate([y[0].numpy(), np.eye(3).ravel()])
    exact = solve_ivp(augmented, (0, horizon), z0, method="DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    end, start = torch.from_numpy(exact[:3]), torch.from_numpy(exact[3:].reshape(3, 3)).T @ w[0]
    errors, adjoint_errors = [], []
    for n in STEPS[tableau.order]:
        solved = Discrete().solve(UniformSteps(RungeKutta(tableau), UniformGrid(0.0, horizon, n)), field, y)
        errors.append(relative(solved.end[0], end))
        adjoint_errors.append(relative(solved.pullback(w).start[0], start))
    assert order_of_convergence(STEPS[tableau.order], errors) == pytest.approx(tableau.order, abs=0.15)
    assert order_of_convergence(STEPS[tableau.order], adjoint_errors) == pytest.approx(tableau.order, abs=0.15)


@given(steps=st.integers(1, 12), cut=st.integers(0, 12), name=st.sampled_from(list(TABLEAUS)))
def test_a_solve_taken_in_two_pieces_is_the_same_bit_for_bit(steps, cut, name):
    generator = torch.Generator().manual_seed(1)
    field, y = TanhField(generator, time=1.0), torch.randn(2, 3, generator=generator)
    grid, cut = UniformGrid(-0.3, 1.1, steps), min(cut, steps)
    stepper = RungeKutta(TABLEAUS[name])
    half = integrate(stepper, field, grid, y, last=cut)
    assert torch.equal(integrate(stepper, field, grid, half, first=cut), integrate(stepper, field, grid, y))


@every_tableau
def test_evaluations_and_records(tableau, generator):
    field, seen = Recorder(TanhField(generator)), []
    y = torch.randn(2, 3, generator=generator)
    grid = UniformGrid(0.0, 1.0, 4)
    end = integrate(RungeKutta(tableau), field, grid, y, record=lambda index, taken: seen.append((index, taken)))
    assert len(field.calls) == 4 * tableau.solution_stages
    assert [index for index, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[0][1].states[0], y)
    for (_, taken), (_, following) in pairwise(seen):
        assert torch.equal(taken.end, following.states[0])
    assert torch.equal(seen[-1][1].end, end)


def test_the_grid():
    grid = UniformGrid(1.0, 3.0, 4)
    assert grid.step_size == 0.5
    assert [grid.time(i) for i in range(5)] == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert UniformGrid(3.0, 1.0, 4).step_size == -0.5


def test_a_grid_of_tensors_keeps_its_graph(generator):
    t1 = torch.tensor(2.0, requires_grad=True)
    field, y = TanhField(generator), torch.randn(1, 3, generator=generator)
    rk4 = RungeKutta(TABLEAUS["rk4"])
    (found,) = torch.autograd.grad(integrate(rk4, field, UniformGrid(0.0, t1, 3), y).sum(), t1)
    # At a fixed number of steps, dy/dT is a sum over steps, not f(y(T)): compare with a difference quotient, whose
    # error is of the size h² + ε/h.
    h = 1e-5
    up, down = (integrate(rk4, field, UniformGrid(0.0, 2.0 + s * h, 3), y).sum() for s in (1, -1))
    assert float(found) == pytest.approx(float(up - down) / (2 * h), rel=1e-8)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_grid_without_steps_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps must be at least 1, got {steps}"):
        UniformGrid(0.0, 1.0, steps)


@pytest.mark.parametrize("steps", [2.0, True, "3"])
def test_a_number_of_steps_that_is_no_whole_number_is_refused(steps):
    with pytest.raises(TypeError, match="steps must be a whole number"):
        UniformGrid(0.0, 1.0, steps)
