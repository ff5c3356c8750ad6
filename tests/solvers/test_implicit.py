from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import LinearField, symmetric
from references import central_difference, matrix_exponential, order_of_convergence, relative, runge_kutta
from scipy.integrate import solve_ivp
from torch import Tensor

from adjoint_meta.solvers import (
    SDIRK2,
    TABLEAUS,
    VJP,
    Checkpointed,
    Discrete,
    ImplicitEuler,
    SolverError,
    Status,
    UniformGrid,
    UniformSteps,
)
from adjoint_meta.solvers.newton_cg import Stage, newton_cg

METHODS = [ImplicitEuler, SDIRK2]
every_method = pytest.mark.parametrize("method", METHODS, ids=["implicit_euler", "sdirk2"])
GAMMA = 1 - 1 / math.sqrt(2)
# (A, b, c) of each method, from which the dense reference knows all it knows.
BUTCHER = {
    ImplicitEuler: ([[1.0]], [1.0], [1.0]),
    SDIRK2: ([[GAMMA, 0.0], [1 - GAMMA, GAMMA]], [1 - GAMMA, GAMMA], [GAMMA, 1.0]),
}
TIGHT = {"newton_tol": 1e-14, "cg_tol": 1e-14}
T, H = 0.3, 0.8

# (t, y [rows, P], *parameters) → [rows].
Energy = Callable[..., Tensor]


# Fields and what is known of them


class Gradient:
    """f = −∂E/∂y by autograd, which counts its uses and remembers where it was."""

    def __init__(self, energy: Energy, parameters: Sequence[Tensor] = (), *, timed: bool = False) -> None:
        self.energy, self.parameters, self.timed = energy, tuple(parameters), timed
        self.values = self.pullbacks = 0
        self.seen: list[Tensor] = []

    def _slope(self, t: Tensor | float, y: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        (gradient,) = torch.autograd.grad(self.energy(t, y, *parameters).sum(), y, create_graph=True)
        return -gradient

    def __call__(self, t: Tensor | float, y: Tensor) -> Tensor:
        self.values += 1
        self.seen.append(y.detach().clone())
        with torch.enable_grad():
            return self._slope(t, y.detach().requires_grad_(), self.parameters).detach()

    def vjp(self, t: Tensor | float, y: Tensor, w: Tensor) -> VJP:
        self.pullbacks += 1
        y = y.detach().requires_grad_()
        parameters = [parameter.detach().requires_grad_() for parameter in self.parameters]
        time = (torch.as_tensor(t, dtype=y.dtype).expand(len(y), 1) + 0.0).requires_grad_(self.timed)
        inputs = [y, *([time] if self.timed else []), *parameters]
        with torch.enable_grad():
            value = self._slope(time if self.timed else t, y, parameters)
            state, *rest = torch.autograd.grad(value, inputs, w, allow_unused=True, materialize_grads=True)
        shift = rest.pop(0)[:, 0] if self.timed else None
        return VJP(value.detach(), state, tuple(rest), shift)


class WithPotential(Gradient):
    energies = 0

    def potential(self, t: Tensor | float, y: Tensor) -> Tensor:
        self.energies += 1
        return self.energy(t, y, *self.parameters)


class Line:
    """−∇E at one state, whose graph is kept."""

    def __init__(self, field: Linearising, t: Tensor | float, y: Tensor) -> None:
        self.field, self.y = field, y.detach().requires_grad_()
        with torch.enable_grad():
            self.slope = field._slope(t, self.y, field.parameters)

    @property
    def value(self) -> Tensor:
        return self.slope.detach()

    def product(self, w: Tensor) -> Tensor:
        self.field.products += 1
        return torch.autograd.grad(self.slope, self.y, w, retain_graph=True)[0]


class Linearising(WithPotential):
    lines = products = 0

    def linearise(self, t: Tensor | float, y: Tensor) -> Line:
        self.lines += 1
        self.seen.append(y.detach().clone())
        return Line(self, t, y)


KINDS = [Gradient, WithPotential, Linearising]
every_kind = pytest.mark.parametrize("kind", KINDS)


def convex(t: Tensor | float, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Σ log cosh(W y + b + t) + ½ y²/3: strictly convex, its curvature between 1/3 and 1/3 + ‖W‖²."""
    inner = y @ weight.T + bias + t
    return torch.log(torch.cosh(inner)).sum(dim=1) + y.square().sum(dim=1) / 6


def wells(t: Tensor | float, y: Tensor, coupling: Tensor) -> Tensor:
    """Σ (y² − 1)²/4 + ½ yᵀKy: minima near the corners of a cube, a maximum or saddle at the origin."""
    return ((y.square() - 1).square() / 4).sum(dim=1) + 0.5 * (y * (y @ coupling)).sum(dim=1)


def some_convex(kind: type[Gradient], generator: torch.Generator, size: int = 4, scale: float = 1.0) -> Gradient:
    weight, bias = torch.randn(size, size, generator=generator), torch.randn(size, generator=generator)
    return kind(convex, (scale * weight, bias), timed=True)


def some_wells(kind: type[Gradient], generator: torch.Generator, size: int = 4, strength: float = 0.1) -> Gradient:
    coupling = torch.randn(size, size, generator=generator)
    return kind(wells, (strength * (coupling + coupling.T),))


def draw(generator: torch.Generator, rows: int = 3, size: int = 4) -> Tensor:
    return torch.randn(rows, size, generator=generator)


# Dense references: a row at a time, all stages at once, full Jacobians


def dense(method: type, energy: Energy, t: Tensor, h: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """A step of the Butcher tableau by Newton's method on all its stages, differentiable in all its arguments.

    The last iteration is taken on the graph, at a solution without one: that differentiates the implicit function.
    """
    return torch.stack([_dense_row(method, energy, t, h[i], y[i], parameters) for i in range(len(y))])


def _dense_row(method: type, energy: Energy, t: Tensor, h: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    a, b, c = BUTCHER[method]

    def slope(i: int, state: Tensor) -> Tensor:
        def at(state: Tensor) -> Tensor:
            return energy(t + c[i] * h, state[None], *parameters)[0]

        return -torch.func.grad(at)(state)

    def defect(stages: Tensor) -> Tensor:
        slopes = [slope(i, stage) for i, stage in enumerate(stages)]
        return torch.stack(
            [
                stages[i] - y - h * sum(weight * k for weight, k in zip(a[i], slopes, strict=True))
                for i in range(len(stages))
            ]
        )

    def newton(stages: Tensor, share: float = 1.0) -> Tensor:
        jacobian = torch.func.jacrev(defect)(stages).reshape(stages.numel(), stages.numel()).detach()
        return stages - share * torch.linalg.solve(jacobian, defect(stages).reshape(-1)).reshape(stages.shape)

    stages = y.detach().expand(len(a), -1).clone()
    for _ in range(100):
        error = defect(stages).norm().detach()
        if error < 1e-14 * (1 + h.abs()):
            break
        tries = (newton(stages, 0.5**k).detach() for k in range(20))
        stages = next((found for found in tries if defect(found).norm() < error), stages)
    assert error < 1e-13 * (1 + h.abs())
    stages = newton(stages)
    return y + h * sum(weight * slope(i, stage) for i, (weight, stage) in enumerate(zip(b, stages, strict=True)))


def stability(method: type, a: Tensor, h: float) -> Tensor:
    """R(−hA) of symmetric matrices [rows, P, P]."""
    z, basis = torch.linalg.eigh(a)
    z = -h * z
    values = 1 / (1 - z) if method is ImplicitEuler else (1 + (1 - 2 * GAMMA) * z) / (1 - GAMMA * z) ** 2
    return basis @ (values[:, :, None] * basis.mT)


def apply(matrices: Tensor, rows: Tensor) -> Tensor:
    return torch.einsum("rij,rj->ri", matrices, rows)


def objective(field: Gradient, t: float, c: float, b: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (y - b).square().sum(dim=1) + c * field.energy(t, y, *field.parameters)


def proximal_hessian(field: Gradient, c: float, y: Tensor) -> Tensor:
    """I + c ∇²E of the double wells, [rows, P, P]."""
    (coupling,) = field.parameters
    return torch.eye(y.shape[1]) + c * (torch.diag_embed(3 * y.square() - 1) + coupling)


# The step


SIZES = [(Linearising, 0.05), (Gradient, H), (WithPotential, 20.0), (Linearising, 20.0), (WithPotential, -0.02)]


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


def pull_through(stepper, field, n: int, y: Tensor, w: Tensor, horizon: float = 1.0) -> tuple[Tensor, Tensor]:
    """The cotangents of the start and of the horizon, by n transposed steps."""
    h, states = horizon / n, []
    for i in range(n):
        states.append(stepper.step(field, i * h, h, y).states)
        y = states[-1][-1]
    length = torch.zeros(len(y))
    for i in reversed(range(n)):
        pulled = stepper.transpose(field, i * h, h, states[i], w)
        w = pulled.start
        length += pulled.size / n + (0 if pulled.time is None else pulled.time * i / n)
    return w, length


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


# The transpose


@every_method
@pytest.mark.parametrize(("kind", "h"), SIZES)
def test_transpose_is_implicit_differentiation_with_dense_matrices(method, kind, h, generator):
    field, y, w = some_convex(kind, generator), draw(generator, 2), draw(generator, 2)
    stepper = method(**TIGHT)
    pulled = stepper.transpose(field, T, h, stepper.step(field, T, h, y).states, w)

    inputs = [y, torch.full((2,), h), torch.tensor(T), *field.parameters]
    y, size, time, *parameters = inputs = [x.detach().requires_grad_() for x in inputs]
    start, size, time, *parameters = torch.autograd.grad(dense(method, convex, time, size, y, parameters), inputs, w)
    assert relative(pulled.start, start) < 1e-12
    assert relative(pulled.size, size) < 1e-11
    assert relative(pulled.time.sum(), time) < 1e-11
    assert len(pulled.parameters) == len(parameters) == 2
    for found, expected in zip(pulled.parameters, parameters, strict=True):
        assert relative(found, expected) < 1e-11


@every_method
@pytest.mark.parametrize("h", [0.05, H, 20.0])
def test_transpose_is_the_transposed_jacobian(method, h, generator):
    field, y = some_convex(Linearising, generator), draw(generator, 2)
    v, w = draw(generator, 2), draw(generator, 2)
    stepper = method(**TIGHT)
    pulled = stepper.transpose(field, T, h, stepper.step(field, T, h, y).states, w)

    def step(y: Tensor) -> Tensor:
        return dense(method, convex, torch.tensor(T), torch.full((2,), h), y, field.parameters)

    jacobian = torch.autograd.functional.jacobian(step, y)
    pushed = torch.einsum("ripq,pq->ri", jacobian, v)
    inner, scale = (w * pushed).sum(dim=1), w.norm(dim=1) * pushed.norm(dim=1)
    assert torch.all((inner - (pulled.start * v).sum(dim=1)).abs() < 1e-12 * scale)


@every_method
def test_cotangents_are_difference_quotients_of_the_step(method, generator):
    field, y, w = some_convex(Linearising, generator, size=3), draw(generator, 2, 3), draw(generator, 2, 3)
    stepper = method(**TIGHT)
    pulled = stepper.transpose(field, T, H, stepper.step(field, T, H, y).states, w)

    def after(t: float = T, h: Tensor | float = H, y: Tensor = y, parameters: Sequence[Tensor] = field.parameters):
        other = Linearising(convex, parameters, timed=True)
        return float((stepper.step(other, t, h, y).end * w).sum())

    weight, bias = field.parameters
    sizes = torch.full((2, 1), H)
    assert relative(pulled.start, central_difference(lambda x: after(y=x), y)) < 1e-8
    assert relative(pulled.size[:, None], central_difference(lambda x: after(h=x), sizes)) < 1e-8
    assert relative(pulled.time.sum(), central_difference(lambda x: after(t=float(x)), torch.tensor(T))) < 1e-8
    assert relative(pulled.parameters[0], central_difference(lambda x: after(parameters=(x, bias)), weight)) < 1e-8
    assert relative(pulled.parameters[1], central_difference(lambda x: after(parameters=(weight, x)), bias)) < 1e-8


@every_method
def test_stretch_is_below_the_norm_of_the_jacobian_and_reaches_it(method, generator):
    stiffness = torch.tensor([[1.0, 3.0], [2.0, 7.0]])
    field, y = LinearField(torch.diag_embed(stiffness), torch.zeros(2, 2)), draw(generator, 2, 2)
    stepper, h = method(**TIGHT), 0.5
    states = stepper.step(field, 0.0, h, y).states
    assert torch.all(stepper.transpose(field, 0.0, h, states, draw(generator, 2, 2)).stretch <= h * stiffness[:, 1])
    along = stepper.transpose(field, 0.0, h, states, torch.tensor([[0.0, 1.0], [0.0, 0.0]])).stretch
    assert along.tolist() == pytest.approx([1.5, 0.0], rel=1e-12)


@every_method
def test_transpose_at_a_maximum_is_refused(method):
    # The origin is stationary, so that the step stays there; 1 + h E'' = 1 − h is negative for h > 1.
    field = Gradient(wells, (torch.zeros(2, 2),))
    y = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    stepper = method()
    taken = stepper.step(field, 0.0, 5.0, y)
    assert torch.equal(taken.end, y) and torch.all(taken.codes == Status.SUCCESS.code)
    with pytest.raises(SolverError, match=r"1 of 2 rows \(row 1\): A direction of negative curvature .* proximal"):
        stepper.transpose(field, 0.0, 5.0, taken.states, torch.ones(2, 2))


@every_method
def test_a_transposed_solve_that_does_not_converge_is_refused(method, generator):
    field, y = some_convex(Gradient, generator), draw(generator)
    states = method().step(field, T, H, y).states
    with pytest.raises(SolverError, match=r"transposed solve .* residual was still above the tolerance"):
        method(cg_steps=1).transpose(field, T, H, states, y)
    with pytest.raises(SolverError, match="transposed solve"):
        method().transpose(field, T, H, [state * math.nan for state in states], y)


@every_method
def test_the_tolerance_of_the_transpose_is_the_one_asked_for(method, generator):
    field = some_convex(Gradient, generator, size=30)
    y, w = draw(generator, 3, 30), draw(generator, 3, 30)
    states = method(**TIGHT).step(field, T, H, y).states
    exact = method(**TIGHT).transpose(field, T, H, states, w).start
    loose, default = (method(cg_tol=tol).transpose(field, T, H, states, w).start for tol in (1e-2, 1e-10))
    assert 1e-6 < relative(loose, exact) < 3e-2
    assert relative(default, exact) < 3e-10


# Where the potential is not convex


@every_method
@every_kind
@pytest.mark.parametrize("h", [0.5, 5.0, 500.0])
def test_double_wells_are_descended_into(method, kind, h, generator):
    field, y = some_wells(kind, generator), 0.3 * draw(generator, rows=8)
    taken, infos = method().solve(field, 0.0, h, y)
    assert all(info.status == [Status.SUCCESS] * 8 for info in infos)
    slopes = [field(0.0, state) for state in taken.states[1:]]
    a, _, _ = BUTCHER[method]
    for i, state in enumerate(taken.states[1:]):
        b, c = y + h * sum(a[i][j] * slopes[j] for j in range(i)), a[i][i] * h
        # b is off by what the stage before left, over γ.
        assert torch.all((state - b - c * slopes[i]).norm(dim=1) <= 1e-9 * (state - b).norm(dim=1))
        assert torch.all(objective(field, 0.0, c, b, state) <= objective(field, 0.0, c, b, b))
        assert torch.all(torch.linalg.eigvalsh(proximal_hessian(field, c, state)) > 0)


@pytest.mark.parametrize("h", [5.0, 500.0])
def test_newtons_method_without_the_line_search_would_climb(h, generator):
    # From the starts of the test above the plain method ends where the proximal objective is not smallest.
    field, b = some_wells(WithPotential, generator), 0.3 * draw(generator, rows=8)
    y = b
    for _ in range(60):
        residual = y - b - h * field(0.0, y)
        y = y - torch.linalg.solve(proximal_hessian(field, h, y), residual)
    climbed = torch.linalg.eigvalsh(proximal_hessian(field, h, y))[:, 0] < 0
    assert climbed.sum() >= 4
    ours = ImplicitEuler().step(field, 0.0, h, b).end
    assert torch.all((objective(field, 0.0, h, b, ours) < objective(field, 0.0, h, b, y))[climbed])


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    h=st.sampled_from([0.1, 1.0, 10.0, 1e4]),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
    strength=st.sampled_from([0.0, 0.3, 3.0]),
    kind=st.sampled_from(KINDS),
    budget=st.sampled_from([1, 3, 100]),
)
def test_a_row_that_succeeds_is_stationary_and_none_has_climbed(seed, h, spread, strength, kind, budget):
    generator = torch.Generator().manual_seed(seed)
    field, b = some_wells(kind, generator, strength=strength), spread * draw(generator)
    y, value, info = newton_cg(Stage(field, 0.0, h, b), b, max_steps=budget)
    assert torch.equal(value, field(0.0, y))
    residual = (y - b - h * value).norm(dim=1)
    assert torch.equal(residual, info.residual)
    assert set(info.status) <= {Status.SUCCESS, Status.NEWTON}
    done = info.codes == Status.SUCCESS.code
    amplification = torch.linalg.matrix_norm(proximal_hessian(field, h, y), ord=2).clamp(min=1)
    size = torch.maximum(y.norm(dim=1), b.norm(dim=1))
    assert torch.all((residual <= 1e-10 * (y - b).norm(dim=1) + 2.3e-16 * (2 + amplification) * size)[done])
    assert torch.all(info.steps <= budget) and torch.all(info.cg_steps <= info.products)
    if kind is not Gradient:
        before = objective(field, 0.0, h, b, b)
        assert torch.all(objective(field, 0.0, h, b, y) <= before + 1e-12 * before.abs())
        assert budget < 100 or done.all()


@every_kind
def test_a_start_without_curvature(kind):
    # I + h∇²E = 3y² vanishes at y = 0, where CG has no first step; the stage is y³ + 0.3 = 0.
    field = kind(lambda _, y: ((y.square() - 1).square() / 4 + 0.3 * y).sum(dim=1))
    taken = ImplicitEuler(**TIGHT).step(field, 0.0, 1.0, torch.zeros(1, 2))
    assert torch.allclose(taken.end, torch.full((1, 2), -(0.3 ** (1 / 3))), rtol=1e-12)


@every_method
def test_each_stage_starts_where_its_objective_can_only_fall(method, generator):
    field, y = some_wells(WithPotential, generator), draw(generator)
    middle = method().step(field, 0.0, H, y).states[1]
    seen = field.seen
    assert torch.equal(seen[0], y)
    if method is SDIRK2:
        b = y + (1 - GAMMA) / GAMMA * (middle - y)
        assert any(torch.allclose(state, b, rtol=1e-14, atol=1e-15) for state in seen)


def test_a_step_into_a_wall():
    # Overflow on the way: the trial points of a line search may be infinite, their potential too.
    field = WithPotential(lambda _, y: torch.exp(y.square()).sum(dim=1))
    y = torch.tensor([[3.0, -4.0], [5.0, 0.1], [0.1, 0.2]])
    taken, (info,) = ImplicitEuler().solve(field, 0.0, 10.0, y)
    assert info.status == [Status.SUCCESS] * 3
    assert torch.all((taken.end - y - 10 * field(0.0, taken.end)).norm(dim=1) < 1e-9)


# Rows


@every_method
@every_kind
def test_rows_in_a_batch_are_rows_alone(method, kind, generator):
    field, y = some_wells(kind, generator), torch.cat([3 * draw(generator), 0.01 * draw(generator)])
    w = torch.randn(y.shape, generator=generator)
    h = torch.tensor([0.01, 3.0, 50.0, 0.1, 7.0, 300.0])[:, None]
    stepper = method()
    together, infos = stepper.solve(field, 0.0, h, y)
    assert torch.all(together.codes == Status.SUCCESS.code)
    for row in range(6):
        size = float(h[row])
        alone, its = stepper.solve(field, 0.0, size, y[row : row + 1])
        assert torch.equal(alone.codes, together.codes[row : row + 1])
        for one, all_ in zip(its, infos, strict=True):
            assert torch.equal(one.steps, all_.steps[row : row + 1])
            assert torch.equal(one.cg_steps, all_.cg_steps[row : row + 1])
        assert relative(alone.end[0], together.end[row]) < 1e-12
    pulled = stepper.transpose(field, 0.0, h, together.states, w)
    for row in range(6):
        states = [state[row : row + 1] for state in together.states]
        alone = stepper.transpose(field, 0.0, float(h[row]), states, w[row : row + 1])
        assert relative(alone.start[0], pulled.start[row]) < 1e-12
        assert relative(alone.size, pulled.size[row : row + 1]) < 1e-10


@every_kind
def test_rows_that_have_converged_do_not_move(kind, generator):
    field, b = some_wells(kind, generator), 0.3 * draw(generator, rows=4)
    b[1] = ImplicitEuler(newton_tol=1e-15).step(field, 0.0, 1e3, b[1:2]).end[0]
    b[2] *= 1e-9
    b[3] = 0.0  # stationary
    field.seen.clear()
    info = newton_cg(Stage(field, 0.0, 20.0, b), b).info
    states = torch.stack(field.seen)
    assert torch.equal(states[:, 3], torch.zeros(len(states), 4)) and info.steps[3] == info.cg_steps[3] == 0
    assert info.steps[1] < info.steps[2], "these rows are meant to converge at different times"
    residuals = torch.stack([(y - b - 20.0 * field(0.0, y)).norm(dim=1) for y in states])
    bounds = 1e-10 * (states - b).norm(dim=2)
    for row in range(3):
        first = int((residuals[:, row] <= bounds[:, row]).int().argmax())
        assert torch.all(states[first:, row] == states[first, row])
        assert residuals[first, row] <= bounds[first, row] or info.codes[row] != Status.SUCCESS.code


@every_method
def test_every_form_of_the_step_size(method, generator):
    field, y, w = some_convex(WithPotential, generator), draw(generator), draw(generator)
    stepper = method()
    forms = [H, torch.tensor(H), torch.full((3, 1), H), torch.full((3, 1), H, requires_grad=True)]
    taken = [stepper.step(field, T, h, y) for h in forms]
    pulled = [stepper.transpose(field, T, h, taken[0].states, w) for h in forms]
    for step, back in zip(taken, pulled, strict=True):
        assert torch.equal(step.end, taken[0].end) and not step.end.requires_grad
        assert torch.equal(back.start, pulled[0].start) and torch.equal(back.size, pulled[0].size)
    assert torch.equal(stepper.step(field, T, 1, y).end, stepper.step(field, T, 1.0, y).end)


# What it costs


def test_convergence_near_the_solution_is_quadratic():
    # One entry a row, so that CG is exact after one step and only Newton's convergence is seen.
    field = Gradient(lambda _, y: y.exp().sum(dim=1))
    b = torch.tensor([[0.5], [2.0], [-1.0]])
    residuals = [newton_cg(Stage(field, 0.0, 1.0, b), b, max_steps=k, tol=1e-15).info.residual for k in range(1, 8)]
    assert torch.all(residuals[-1] < 1e-14)
    for before, after in pairwise(residuals):
        # ‖G⁺‖ ≤ max|∂³Φ| ‖A⁻¹‖² ‖G‖² / 2, and a few roundings.
        assert torch.all(after <= 0.5 * math.e**2 * before.square() + 1e-15)


def test_steps_are_cheap_at_first_and_few(generator):
    matrix = symmetric(generator, torch.logspace(0, 2, 40)[None])[0]
    field = Linearising(lambda _, y: 0.5 * ((y @ matrix) * y).sum(dim=1) + torch.log(torch.cosh(3 * y)).sum(dim=1))
    b = draw(generator, 1, 40)
    found = [newton_cg(Stage(field, 0.0, 1.0, b), b, max_steps=k, tol=1e-12).info for k in range(1, 9)]
    assert found[-1].status == [Status.SUCCESS] and found[-1].steps[0] <= 7
    found = found[: int(found[-1].steps[0])]
    cost = [int(info.cg_steps[0]) for info in found]
    # The first solve gains a digit, the last ones four.
    assert cost[0] < 0.5 * (cost[-1] - cost[-2])
    assert found[-1].residual[0] < 1e-3 * found[-2].residual[0]


@every_method
def test_a_linearisation_replaces_pullbacks(method, generator):
    plain, linear = (some_convex(kind, torch.Generator().manual_seed(7)) for kind in (WithPotential, Linearising))
    y, w = draw(generator), draw(generator)
    stages = len(BUTCHER[method][0])
    ends, starts = [], []
    for field in (plain, linear):
        taken, infos = method().solve(field, T, H, y)
        products = sum(info.products for info in infos)
        # Every point is evaluated once: where each stage starts, and after each Newton step.
        points = sum(int(info.steps.max()) for info in infos) + stages
        assert field.energies >= points
        ends.append(taken.end)
        assert 0 < max(int(info.cg_steps.max()) for info in infos) <= products
        if field is plain:
            assert (plain.values, plain.pullbacks) == (points, products)
        else:
            assert (linear.values, linear.pullbacks, linear.products) == (0, 0, products)
            assert linear.lines == points
        field.values = field.pullbacks = linear.lines = 0
        starts.append(method().transpose(field, T, H, taken.states, w).start)
    assert linear.pullbacks == linear.lines == stages and linear.values == 0
    assert plain.pullbacks > stages and plain.values == 0
    assert relative(ends[1], ends[0]) < 1e-14 and relative(starts[1], starts[0]) < 1e-9


@every_kind
def test_a_row_at_rest_stays_there(kind):
    # Where y³ − y + tilt vanishes but for its rounding.
    tilt, y = torch.linspace(0.05, 0.35, 9), torch.full((2, 9), 1.0)
    for _ in range(10):
        y = y - (y**3 - y + tilt) / (3 * y.square() - 1)
    field = kind(lambda _, y: ((y.square() - 1).square() / 4 + tilt * y).sum(dim=1))
    assert 0 < field(0.0, y[:1]).abs().max() < 1e-15
    y[1] += 1e-3
    taken, (info,) = ImplicitEuler().solve(field, 0.0, 1.0, y)
    assert torch.equal(taken.end[0], y[0]) and info.steps[0] == 0 < info.steps[1]
    assert info.status == [Status.SUCCESS] * 2


def test_slow_progress_is_not_taken_for_rounding():
    # Steepest descent in place of CG creeps, by corrections far below the state itself.
    stiffness = torch.logspace(0, 2, 20)
    b = 1 + 1e-9 * torch.linspace(1.0, 2.0, 20)[None]
    field = LinearField(torch.diag(stiffness)[None], torch.ones(1, 20))
    for budget in (3, 30, 300, 3000):
        info = newton_cg(Stage(field, 0.0, 1.0, b), b, max_steps=budget, cg_steps=1).info
        rounding = 2.3e-16 * 101 * b.norm()
        assert info.status == [Status.SUCCESS if info.residual[0] <= rounding else Status.NEWTON]
    assert info.status == [Status.SUCCESS]


@every_method
def test_asking_for_more_than_the_dtype_holds_costs_nothing(method, generator):
    field, y = some_convex(Linearising, generator, size=30), draw(generator, 3, 30).float()
    field = Linearising(convex, [parameter.float() for parameter in field.parameters])
    states = method().step(field, T, H, y).states
    products = []
    for tol in (8 * torch.finfo(torch.float32).eps, 1e-10, 1e-30):
        field.products = 0
        method(cg_tol=tol).transpose(field, T, H, states, y)
        products.append(field.products)
    assert products[0] == products[1] == products[2]


@every_method
def test_a_small_step_takes_few_products(method, generator):
    field, y = some_convex(WithPotential, generator), draw(generator)
    _, infos = method().solve(field, T, 1e-3, y)
    assert all(info.products <= 6 and info.steps.max() <= 4 for info in infos)


# What can go wrong


@every_method
def test_rows_that_fail_say_so_and_leave_the_others_alone(method, generator):
    field, y = some_wells(WithPotential, generator), 0.3 * draw(generator, rows=4)
    y[0] = 0.0
    y[1, 2], y[3, 0] = math.nan, math.inf
    stepper = method(newton_steps=2)
    taken, infos = stepper.solve(field, 0.0, 50.0, y)
    assert infos[0].status == [Status.SUCCESS, Status.NON_FINITE, Status.NEWTON, Status.NON_FINITE]
    assert torch.equal(taken.codes, infos[0].codes)
    assert torch.equal(taken.end[0], y[0]) and torch.isfinite(taken.end[2]).all()
    patient = method().step(field, 0.0, 50.0, y)
    alone = method().step(field, 0.0, 50.0, y[2:3])
    assert patient.codes[2] == Status.SUCCESS.code
    assert relative(patient.end[2], alone.end[0]) < 1e-12


def test_a_failure_of_the_first_stage_is_not_forgotten():
    # Nothing is left to do at the time of the second stage, which therefore succeeds.
    field = WithPotential(lambda t, y: (t < 0.5) * y.square().exp().sum(dim=1))
    taken, infos = SDIRK2(newton_steps=1).solve(field, 0.0, 1.0, torch.tensor([[2.0, 1.0], [0.0, 0.0]]))
    assert [info.status[0] for info in infos] == [Status.NEWTON, Status.SUCCESS]
    assert taken.codes.tolist() == [Status.NEWTON.code, Status.SUCCESS.code]


def test_a_potential_of_another_field_is_found_out(generator):
    field, y = some_wells(WithPotential, generator), draw(generator)
    field.potential = lambda t, y: -10 * field.energy(t, y, *field.parameters)
    taken, (info,) = ImplicitEuler().solve(field, 0.0, 0.1, y)
    assert info.status == [Status.NEWTON] * 3 and torch.equal(taken.end, y)
    # Nothing is tried again where nothing has changed.
    assert field.values <= 3 and field.pullbacks <= 8


def test_a_field_that_is_not_a_gradient_is_found_out(generator):
    # A rotation: its vjp is not its jvp, so Newton's directions are wrong, but never the verdict.
    turn = torch.tensor([[0.0, 4.0], [-4.0, 0.0]])
    y = draw(generator, 3, 2)
    field = LinearField(turn.expand(3, 2, 2), torch.zeros(3, 2))
    taken = ImplicitEuler().step(field, 0.0, 1.0, y)
    exact = torch.linalg.solve(torch.eye(2) + turn, y[:, :, None])[:, :, 0]
    done = taken.codes == Status.SUCCESS.code
    assert torch.allclose(taken.end[done], exact[done], atol=1e-8)
    assert not done.all()


def test_the_advice_names_what_can_be_changed():
    assert all(word in Status.NEWTON.value for word in ("shorter", "newton_tol", "potential", "symmetric"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"newton_tol": 0.0}, ValueError, "newton_tol must be positive"),
        ({"newton_tol": "tight"}, TypeError, "newton_tol must be a number, got 'tight'"),
        ({"newton_steps": 0}, ValueError, "newton_steps must be at least 1"),
        ({"newton_steps": 2.5}, TypeError, "newton_steps must be a whole number"),
        ({"cg_tol": -1e-3}, ValueError, "cg_tol must be positive"),
        ({"cg_tol": math.nan}, ValueError, "cg_tol must be positive"),
        ({"cg_steps": 0}, ValueError, "cg_steps must be at least 1"),
        ({"cg_steps": True}, TypeError, "cg_steps must be a whole number"),
    ],
)
@every_method
def test_wrong_settings(method, arguments, error, message):
    with pytest.raises(error, match=message):
        method(**arguments)


@every_method
def test_wrong_arguments(method, generator):
    field, y = some_convex(WithPotential, generator), draw(generator)
    stepper = method()
    states = stepper.step(field, T, H, y).states
    for h in (torch.ones(3), torch.ones(1, 3), torch.ones(2, 1)):
        with pytest.raises(ValueError, match=r"h must be a number, or one a row of shape \[3, 1\], got"):
            stepper.step(field, T, h, y)
        with pytest.raises(ValueError, match="h must be a number"):
            stepper.transpose(field, T, h, states, y)
    for h in ("0.1", None, True):
        with pytest.raises(TypeError, match="h must be a number or a tensor, got"):
            stepper.step(field, T, h, y)
    with pytest.raises(ValueError, match=r"the state must have shape \[rows, P\]"):
        stepper.step(field, T, H, y[0])
    with pytest.raises(TypeError, match="the state must be floating point"):
        stepper.step(field, T, H, y.long())
    with pytest.raises(TypeError, match=r"a field with vjp.*function has none"):
        stepper.step(lambda t, y: -y, T, H, y)
    with pytest.raises(ValueError, match=f"has {len(states)} states, got 1"):
        stepper.transpose(field, T, H, states[-1:], y)
    with pytest.raises(ValueError, match=r"the cotangent must have shape \[3, 4\], got \[3, 3\]"):
        stepper.transpose(field, T, H, states, y[:, :3])
    with pytest.raises(TypeError, match=r"the cotangent must be torch\.float64"):
        stepper.transpose(field, T, H, states, y.float())


def test_wrong_fields(generator):
    y = draw(generator)
    with pytest.raises(ValueError, match=r"potential must return one value a row, \[3\], not \[\]"):
        ImplicitEuler().step(WithPotential(lambda _, y: y.square().sum()), T, H, y)
    short = some_convex(Gradient, generator)
    short.__class__ = type("Short", (Gradient,), {"__call__": lambda self, t, y: y[:, :2]})
    with pytest.raises(ValueError, match=r"the field's value must have shape \[3, 4\], got \[3, 2\]"):
        ImplicitEuler().step(short, T, H, y)


# Precision, graphs, and what the loops rely on


@every_method
@every_kind
@pytest.mark.parametrize("h", [0.1, 10.0])
def test_float32_converges_and_stays_float32(method, kind, h, generator):
    field, y, w = some_convex(kind, generator), draw(generator), draw(generator)
    half = kind(convex, [parameter.float() for parameter in field.parameters])
    time, size = torch.tensor(T), torch.tensor(h)  # of float64
    exact, rough = method(**TIGHT).step(field, T, h, y), method().step(half, time, size, y.float())
    assert torch.all(rough.codes == Status.SUCCESS.code)
    assert relative(rough.end.double(), exact.end) < 1e-6
    expected = method(**TIGHT).transpose(field, T, h, exact.states, w)
    pulled = method().transpose(half, time, size, rough.states, w.float())
    assert relative(pulled.start.double(), expected.start) < 1e-5
    rows = method().step(half, T, torch.full((3, 1), h), y.float())  # one float64 size a row
    kinds = {x.dtype for x in (*rough.states, rough.slope, rows.end, pulled.start, pulled.size, *pulled.parameters)}
    assert kinds == {torch.float32}


@every_method
@pytest.mark.parametrize("largest", [1e2, 1e4])
def test_stiff_float32_ends_at_what_rounding_allows(method, largest, generator):
    # Dense, so that every entry of A y is rounded at the size of the largest; P = 30 as in a small head.
    a = symmetric(generator, torch.logspace(-1, math.log10(largest), 30).expand(3, 30))
    b, y = draw(generator, 3, 30), draw(generator, 3, 30)
    rough = method().step(LinearField(a.float(), b.float()), 0.0, 1.0, y.float())
    exact = b + apply(stability(method, a, 1.0), y - b)
    assert torch.all(rough.codes == Status.SUCCESS.code)
    # Rounding A alone moves the solution by up to ε ‖A‖ ‖y‖.
    assert relative(rough.end.double(), exact) < max(1e-6, 3 * 1.2e-7 * largest)


def test_float32_that_decides_nothing_is_no_success(generator):
    # Rounding A y moves the solution by as much as the solution is long: whatever comes out is not to be trusted.
    a = symmetric(generator, torch.logspace(-1, 7, 30).expand(3, 30))
    b, y = draw(generator, 3, 30), draw(generator, 3, 30)
    stepper = ImplicitEuler(newton_steps=20)
    taken, (info,) = stepper.solve(LinearField(a.float(), b.float()), 0.0, 1.0, y.float())
    assert info.products <= 20 * 60, "CG ends after 2P steps, where only rounding is left to work on"
    exact = b + apply(stability(ImplicitEuler, a, 1.0), y - b)
    wrong = (taken.end.double() - exact).norm(dim=1) > 1e-2 * exact.norm(dim=1)
    assert wrong.any() and torch.all(taken.codes[wrong] == Status.NEWTON.code)


@every_method
def test_nothing_carries_a_graph_and_inputs_stay_as_they_were(method, generator):
    field, y, w = some_convex(Linearising, generator), draw(generator), draw(generator)
    before = (y.clone(), w.clone())
    taken = method().step(field, T, H, y.requires_grad_())
    pulled = method().transpose(field, T, H, taken.states, w)
    assert not any(x.requires_grad for x in (taken.end, *taken.states, taken.slope, pulled.start, pulled.size))
    assert torch.equal(y, before[0]) and torch.equal(w, before[1])
    with torch.no_grad():
        again = method().step(field, T, H, y)
    assert torch.equal(again.end, taken.end)


@every_method
def test_it_is_a_stepper(method, generator):
    stepper = method(cg_steps=7)
    assert stepper.name == {ImplicitEuler: "implicit_euler", SDIRK2: "sdirk2"}[method]
    assert stepper.order == METHODS.index(method) + 1 and stepper.estimate_order == 0
    assert stepper.stages(torch.ones(3)) is None
    assert stepper.limit() == stepper.limit(torch.ones(3)) == math.inf
    assert pickle.loads(pickle.dumps(stepper)) == stepper == eval(repr(stepper)) != method()
    field, y = some_convex(Gradient, generator), draw(generator)
    taken = method().step(field, T, H, y, slope=field(T, y), stages=None, estimate=True)
    states = method().states(field, T, H, y)
    assert all(torch.equal(one, other) for one, other in zip(taken.states, states, strict=True))


@every_method
@pytest.mark.parametrize("adjoint", [Discrete("stages"), Discrete("steps"), Checkpointed(2)])
def test_every_adjoint_transposes_the_same_steps(method, adjoint, generator):
    field, y, w = some_convex(Linearising, generator), draw(generator), draw(generator)
    solve = adjoint.solve(UniformSteps(method(), UniformGrid(0.0, 2.0, 3)), field, y)
    start, length = pull_through(method(), field, 3, y, w, horizon=2.0)
    pulled = solve.pullback(w)
    solve.raise_if_failed()
    assert relative(pulled.start, start) < 1e-13
    assert relative(pulled.duration, length) < 1e-12
    assert torch.all(pulled.stability == 0)  # no step is too long


def test_a_failed_step_fails_the_solve(generator):
    field, y = some_wells(WithPotential, generator), 0.3 * draw(generator)
    y[1] = 0.0
    solve = Discrete().solve(UniformSteps(ImplicitEuler(newton_steps=1), UniformGrid(0.0, 50.0, 2)), field, y)
    with pytest.raises(SolverError, match=r"2 of 3 rows \(row 0, 2\): Newton's method did not solve"):
        solve.raise_if_failed()
