"""An implicit step solves the equations of its tableau, is stable, and converges at its order, gradient included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from implicit_problems import (
    BUTCHER,
    SIZES,
    TIGHT,
    Linearising,
    T,
    WithPotential,
    apply,
    convex,
    dense,
    draw,
    every_method,
    pull_through,
    some_convex,
    stability,
)
from problems import LinearField, symmetric
from references import matrix_exponential, order_of_convergence, relative, runge_kutta
from scipy.integrate import solve_ivp

from adjoint_meta.solvers import TABLEAUS, ImplicitEuler, Status


@every_method
@pytest.mark.parametrize(("kind", "h"), SIZES)
def test_a_step_solves_the_equations_of_its_tableau(method, kind, h, generator):
    field, y = some_convex(kind, generator), draw(generator, rows=2)
    taken = method(**TIGHT).step(field, T, h, y)
    expected = dense(method, convex, torch.tensor(T), torch.full((2,), h), y, field.parameters)
    assert relative(taken.end, expected) < 1e-12
    assert torch.all(taken.codes == Status.SUCCESS.code)
    # What the loops rely on: the start comes first, the end last, and the slope there saves the next evaluation.
    assert torch.equal(taken.states[0], y) and torch.equal(taken.states[-1], taken.end)
    assert torch.equal(taken.slope, field(T + h, taken.end))
    assert taken.error is None and len(taken.states) == 1 + len(BUTCHER[method][0])


@every_method
def test_a_step_of_no_length_stays(method, generator):
    field, y = some_convex(WithPotential, generator), draw(generator)
    taken = method().step(field, T, 0.0, y)
    assert torch.equal(taken.end, y) and torch.all(taken.codes == Status.SUCCESS.code)


@every_method
@pytest.mark.parametrize("h", [0.1, 3.0])
def test_steps_and_transposes_of_linear_fields_are_the_stability_function(method, h, generator):
    a, b = symmetric(generator, 5 * torch.rand(3, 4, generator=generator)), draw(generator)
    field, y, w = LinearField(a, b), draw(generator), draw(generator)
    stepper = method(**TIGHT)
    taken, factor = stepper.step(field, 0.0, h, y), stability(method, a, h)
    assert relative(taken.end, b + apply(factor, y - b)) < 1e-13
    pulled = stepper.transpose(field, 0.0, h, taken.states, w)
    assert relative(pulled.start, apply(factor, w)) < 1e-13
    assert pulled.time is None and pulled.parameters == ()


@every_method
def test_stiff_components_vanish_in_one_step(method, generator):
    stiffness = torch.tensor([[0.5, 1e2, 1e4, 1e6, 1e8]])
    a = torch.diag_embed(stiffness)
    field, y, w = LinearField(a, torch.zeros(1, 5)), 1 + torch.rand(1, 5, generator=generator), torch.ones(1, 5)
    stepper = method(**TIGHT)
    taken, factor = stepper.step(field, 0.0, 1.0, y), stability(method, a, 1.0).diagonal(dim1=1, dim2=2)
    pulled = stepper.transpose(field, 0.0, 1.0, taken.states, w)
    # |R(−z)| → 1/z and (√2 + 1)·2/z: stiffly accurate methods damp at that rate.
    assert torch.all((taken.end / y).abs() < 5 / stiffness)
    assert torch.allclose(taken.end / y, factor, rtol=1e-6, atol=1e-14)
    assert torch.allclose(pulled.start, factor, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
def test_a_step_of_one_over_lambda_is_the_proximal_point_and_its_transpose_imaml(strength, generator):
    a, b = symmetric(generator, 0.2 + 2 * torch.rand(3, 4, generator=generator)), draw(generator)
    theta, c = draw(generator), draw(generator)
    field, stepper, h = LinearField(a, b), ImplicitEuler(**TIGHT), 1 / strength
    damped = a + strength * torch.eye(4)
    # ∇ of ½(φ−b)ᵀA(φ−b) + ½λ‖φ−θ‖² vanishes at (A + λI)⁻¹ (A b + λ θ).
    proximal_point = torch.linalg.solve(damped, apply(a, b) + strength * theta)
    taken = stepper.step(field, 0.0, h, theta)
    assert relative(taken.end, proximal_point) < 1e-13
    pulled = stepper.transpose(field, 0.0, h, taken.states, c)
    assert relative(pulled.start, strength * torch.linalg.solve(damped, c)) < 1e-13


STEPS = (16, 32, 64)


@every_method
def test_order_of_the_solution(method, generator):
    field, y = some_convex(Linearising, generator, scale=0.5), draw(generator, rows=2)

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        return field(t, torch.as_tensor(state).reshape(2, 4)).reshape(-1).numpy()

    found = solve_ivp(slope, (0, 1), y.reshape(-1).numpy(), method="DOP853", rtol=1e-12, atol=1e-13)
    exact = torch.from_numpy(found.y[:, -1]).reshape(2, 4)
    errors = []
    for n in STEPS:
        state = y
        for i in range(n):
            state = method().step(field, i / n, 1 / n, state).end
        errors.append(relative(state, exact))
    assert order_of_convergence(STEPS, errors) == pytest.approx(method().order, abs=0.15)


@every_method
def test_order_of_the_gradient_against_the_matrix_exponential(method, generator):
    a, b = symmetric(generator, 3 * torch.rand(2, 3, generator=generator)), draw(generator, 2, 3)
    y, w = draw(generator, 2, 3), draw(generator, 2, 3)
    flow = matrix_exponential(-a)
    start, length = apply(flow, w), -(w * apply(a @ flow, y - b)).sum(dim=1)
    found = [pull_through(method(), LinearField(a, b), n, y, w) for n in STEPS]
    for errors in zip(*((relative(s, start), relative(d, length)) for s, d in found), strict=True):
        assert order_of_convergence(STEPS, errors) == pytest.approx(method().order, abs=0.15)


@every_method
def test_order_of_the_gradient_of_a_nonlinear_flow(method, generator):
    field, y, w = some_convex(Linearising, generator, scale=0.5), draw(generator, 2), draw(generator, 2)
    y0, t1 = y.clone().requires_grad_(), torch.tensor(1.0, requires_grad=True)

    def slope(t, state):
        inner = state @ field.parameters[0].T + field.parameters[1] + t
        return -torch.tanh(inner) @ field.parameters[0] - state / 3

    exact = torch.autograd.grad(runge_kutta(TABLEAUS["rk4"], slope, 0.0, t1, 100, y0), (y0, t1), w)
    found = [pull_through(method(), field, n, y, w) for n in STEPS]
    start = [relative(s, exact[0]) for s, _ in found]
    length = [relative(d.sum(), exact[1]) for _, d in found]
    for errors in (start, length):
        assert order_of_convergence(STEPS, errors) == pytest.approx(method().order, abs=0.15)
