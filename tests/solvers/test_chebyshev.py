from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial.chebyshev import Chebyshev as Series
from problems import LinearField, Recorder, TanhField, symmetric
from references import STEPS, order_of_convergence, relative, runge_kutta

from adjoint_meta.solvers import TABLEAUS
from adjoint_meta.solvers.chebyshev import Chebyshev, interval
from adjoint_meta.solvers.stepper import VJP

T, H = 0.3, 0.25
DAMPING = 2 / 13
DAMPINGS = (0.0, DAMPING, 1.0, 10.0, 20.0)
MIXED = (5, 2, 9, 5)
# Of R, divided by s²: T_s has slope s² at the end of the interval, by which the rounding of w1 is multiplied.
ROUNDING = 3e-13


class Forced:
    """f(t, y) = tanh(W y + sin(t) u) − y/2 with parameters (W, u); its pullback is autograd's, time included."""

    def __init__(self, generator: torch.Generator, size: int = 3) -> None:
        self.weight = torch.randn(size, size, generator=generator)
        self.force = torch.randn(size, generator=generator)

    @staticmethod
    def value(t, y, weight, force):
        return torch.tanh(y @ weight.T + torch.sin(torch.as_tensor(t)) * force) - y / 2

    def __call__(self, t, y):
        return self.value(t, y, self.weight, self.force)

    def vjp(self, t, y, w):
        times = torch.as_tensor(t, dtype=y.dtype).expand(len(y), 1)
        inputs = [tensor.detach().clone().requires_grad_() for tensor in (times, y, self.weight, self.force)]
        with torch.enable_grad():
            value = self.value(*inputs)
            time, state, *parameters = torch.autograd.grad(value, inputs, w)
        return VJP(value.detach(), state, tuple(parameters), time[:, 0])


class Coupled:
    """f(t, y)_i = t + y_i y_{i−1} − r y_i, a rate r a row: of products and sums only, so that batches cannot round."""

    def __init__(self, rates: torch.Tensor) -> None:
        self.rates = rates

    def __call__(self, t, y):
        return t + y * y.roll(1, dims=1) - self.rates * y

    def vjp(self, t, y, w):
        state = w * y.roll(1, dims=1) + (w * y).roll(-1, dims=1) - self.rates * w
        return VJP(self(t, y), state, (-(w * y).sum(dim=1),), w.sum(dim=1))


class Diagonal:
    """f(t, y) = λ y, elementwise."""

    def __init__(self, rates: torch.Tensor) -> None:
        self.rates = rates

    def __call__(self, t, y):
        return self.rates * y

    def vjp(self, t, y, w):
        return VJP(self(t, y), self.rates * w)


def constants(stages: int, damping: float):
    """w0, w1, and for every j a_j, b_j and c_j, from NumPy's Chebyshev series and their derivatives."""
    w0 = 1 + damping / stages**2
    series = [Series.basis(j) for j in range(stages + 1)]
    value = np.array([p(w0) for p in series])
    slope = np.array([p.deriv()(w0) for p in series])
    curvature = np.array([p.deriv(2)(w0) if j > 1 else 0.0 for j, p in enumerate(series)])
    b = np.empty(stages + 1)
    b[2:] = curvature[2:] / slope[2:] ** 2
    b[:2] = b[2]
    w1 = slope[-1] / curvature[-1]
    nodes = np.append([0.0, b[1] * w1], w1 * curvature[2:] / slope[2:])
    return w0, w1, 1 - b * value, b, nodes


def textbook(f, t, h, y, stages: int, damping: float = DAMPING):
    """One step as the paper prints it, in the states Y_j; differentiable in everything."""
    w0, w1, a, b, c = constants(stages, damping)
    first = f(t, y)
    before, now = y, y + b[1] * w1 * h * first
    for j in range(2, stages + 1):
        mu, nu, mu_tilde = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], 2 * b[j] * w1 / b[j - 1]
        slope = f(t + c[j - 1] * h, now)
        following = (1 - mu - nu) * y + mu * now + nu * before + mu_tilde * h * (slope - a[j - 1] * first)
        before, now = now, following
    return now


def polynomial(stages: int, damping: float, z: np.ndarray) -> np.ndarray:
    """R(z) = a_s + b_s T_s(w0 + w1 z), with T_s by cos and cosh."""
    w0, w1, a, b, _ = constants(stages, damping)
    x = w0 + w1 * z
    inside = np.cos(stages * np.arccos(np.clip(x, -1, 1)))
    outside = np.sign(x) ** stages * np.cosh(stages * np.arccosh(np.maximum(np.abs(x), 1)))
    return a[-1] + b[-1] * np.where(np.abs(x) <= 1, inside, outside)


def rkc(stages: int, damping: float = DAMPING) -> Chebyshev:
    return Chebyshev(damping=damping, default_stages=stages)


def drawn(generator: torch.Generator, rows: int = len(MIXED), size: int = 3) -> torch.Tensor:
    return torch.randn(rows, size, generator=generator)


# The step


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("stages", [2, 3, 4, 7, 20, 33, 100])
def test_its_stability_polynomial_is_the_closed_form(stages, damping):
    z = -np.linspace(0, (1 + 0.2 / stages**2) * interval(stages, damping), 1001)
    field = Diagonal(torch.from_numpy(z)[None])
    found = rkc(stages, damping).step(field, 0.0, 1.0, torch.ones(1, len(z))).end[0]
    assert np.abs(found.numpy() - polynomial(stages, damping, z)).max() < ROUNDING * stages**2


def test_two_stages_without_damping_are_a_taylor_method():
    z = torch.linspace(-3, 3, 7)
    end = rkc(2, 0.0).step(Diagonal(z[None]), 0.0, 1.0, torch.ones(1, 7)).end
    assert torch.allclose(end[0], 1 + z + z**2 / 2, rtol=0, atol=1e-14)


@pytest.mark.parametrize("damping", [DAMPING, 5.0])
@pytest.mark.parametrize("stages", [2, 3, 6, 40])
@pytest.mark.parametrize("h", [H, -H])
def test_a_step_is_the_papers_recursion(stages, damping, h, generator):
    field = Forced(generator)
    y = drawn(generator)
    expected = textbook(field, T, h, y, stages, damping)
    assert relative(rkc(stages, damping).step(field, T, h, y).end, expected) < 1e-13


@pytest.mark.parametrize("stages", [None, torch.tensor(MIXED)], ids=["alike", "mixed"])
def test_the_field_is_evaluated_at_the_nodes(stages):
    # On y' = 1 from y = 0 at t = 0 a stage's state is the time at which it must be evaluated.
    seen = []

    def clock(t, y):
        seen.append((t, y))
        return torch.ones_like(y)

    taken = rkc(9).step(clock, 0.0, 2.0, torch.zeros(len(MIXED), 2), stages=stages, estimate=True)
    assert len(seen) == 10 and torch.allclose(taken.end, torch.tensor(2.0), rtol=0, atol=1e-14)
    for t, y in seen:
        assert torch.allclose(torch.as_tensor(t).expand(len(MIXED), 1), y, rtol=0, atol=1e-14)
    nodes = 2 * torch.from_numpy(constants(9, DAMPING)[-1])
    assert torch.allclose(torch.stack([y[2, 0] for _, y in seen]), nodes, rtol=0, atol=1e-14)


@pytest.mark.parametrize("stages", [2, 3, 5, 12])
def test_solution_and_gradient_are_of_second_order(stages, generator):
    method, field = rkc(stages), Forced(generator)
    y0, w = drawn(generator, rows=2).requires_grad_(), drawn(generator, rows=2)
    y1 = runge_kutta(TABLEAUS["dopri5"], field, 0.0, 1.0, 64, y0)
    (gradient,) = torch.autograd.grad(y1, y0, w)

    def errors(steps: int) -> tuple[float, float]:
        h, y, tape = 1 / steps, y0.detach(), []
        for n in range(steps):
            taken = method.step(field, n * h, h, y)
            tape.append(taken.states)
            y = taken.end
        costate = w
        for n in reversed(range(steps)):
            costate = method.transpose(field, n * h, h, tape[n], costate).start
        return relative(y, y1.detach()), relative(costate, gradient)

    for found in zip(*map(errors, STEPS[2]), strict=True):
        assert order_of_convergence(STEPS[2], found) == pytest.approx(2, abs=0.15)


def test_the_number_of_stages_barely_matters_for_smooth_problems(generator):
    # The error constant tends to a limit as s grows: more stages buy stability, and cost no accuracy.
    field, y = Forced(generator), drawn(generator)
    exact = runge_kutta(TABLEAUS["dopri5"], field, T, T + H, 16, y)
    few, many = (relative(rkc(stages).step(field, T, H, y).end, exact) for stages in (6, 150))
    assert many < 2 * few < 1e-2


# Stability


@pytest.mark.parametrize("damping", DAMPINGS)
def test_it_is_stable_on_the_whole_interval_and_damped_behind_the_first_minimum(damping):
    for stages in (*range(2, 26), 49, 50, 199, 200):
        beta = interval(stages, damping)
        z = -np.linspace(0, beta, 200 * stages + 1)
        r = polynomial(stages, damping, z)
        assert np.abs(r).max() <= 1 + ROUNDING * stages**2
        _, _, a, b, _ = constants(stages, damping)
        first = int(np.argmax(np.diff(r) > 0)) or len(z) - 1
        assert np.all(np.diff(r[: first + 1]) < 0)
        assert np.abs(r[first:]).max() <= a[-1] + b[-1] + ROUNDING * stages**2
        assert np.abs(r[-1]) == pytest.approx(a[-1] + b[-1], abs=ROUNDING * stages**2)


def test_it_is_unstable_beyond_the_interval():
    for stages in (*range(2, 60), 199, 200):
        beta = interval(stages, DAMPING)
        beyond = polynomial(stages, DAMPING, -np.linspace(beta, 1.05 * beta, 101))
        assert np.all(np.diff(np.abs(beyond)) > 0) and np.abs(beyond[-1]) > 1.0005
        assert np.abs(beyond[-1]) > (1.05 if stages > 2 else 1)


def test_the_interval_is_about_the_published_one():
    for stages in (20, 50, 200):
        published = 2 / 3 * (stages**2 - 1) * (1 - 2 * DAMPING / 15)
        assert published < interval(stages, DAMPING) < 1.001 * published


def test_a_stiff_flow_stays_bounded_with_the_stages_it_asks_for_and_not_with_fewer(generator):
    eigenvalues = torch.tensor([[0.1, 3.0, 100.0], [0.1, 20.0, 1000.0]])
    a = symmetric(generator, eigenvalues)
    field, start = LinearField(a, torch.zeros(2, 3)), drawn(generator, rows=2)
    method = Chebyshev()
    stages = method.stages(0.5 * eigenvalues[:, -1])
    assert stages.tolist() == [9, 28]

    def flow(stages: torch.Tensor) -> torch.Tensor:
        y = start
        for n in range(40):
            y = method.step(field, 0.5 * n, 0.5, y, stages=stages).end
        return y

    # What is left is the slowest mode, e^(−0.1 · 20) of it.
    assert torch.all(flow(stages).norm(dim=1) < 0.2 * start.norm(dim=1))
    assert torch.all(flow(stages - 1).norm(dim=1) > 1e6 * start.norm(dim=1))


@pytest.mark.parametrize("damping", DAMPINGS)
def test_stages_are_the_fewest_that_hold_z(damping):
    method = Chebyshev(damping, max_stages=60)
    every = torch.arange(2, 61)
    lengths = method.stability(every)
    assert lengths.tolist() == [interval(stages, damping) for stages in range(2, 61)]
    assert torch.all(torch.diff(lengths) > 0)
    assert method.stages(lengths).tolist() == every.tolist()
    assert method.stages(lengths * (1 + 1e-9)).tolist() == [*range(3, 61), 60]
    assert method.limit() == lengths[-1]


def test_stages_are_clipped():
    z = torch.tensor([-1.0, 0.0, 1e-3, math.inf, math.nan, 1e9])
    assert Chebyshev(max_stages=30).stages(z).tolist() == [2, 2, 2, 30, 30, 30]
    assert Chebyshev(max_stages=2).stages(z).tolist() == [2] * 6
    found = Chebyshev().stages(torch.tensor([3.0, 7.0]).float()[:1].expand(4))
    assert found.dtype == torch.int64 and found.tolist() == [3] * 4


def test_stability_keeps_the_shape_of_its_argument():
    found = Chebyshev().stability(torch.tensor([[3, 2], [7, 200]], dtype=torch.int32))
    assert found.shape == (2, 2) and found[1, 1] == Chebyshev().limit()
    assert Chebyshev().stability(torch.empty(0, dtype=torch.int64)).shape == (0,)


# Rows


def test_rows_with_their_own_stages_end_exactly_where_they_would_alone(generator):
    rates = torch.tensor([[30.0], [2.0], [100.0], [40.0]])
    sizes = torch.tensor([[0.25], [0.5], [0.3], [0.1]])
    times = torch.tensor([[0.0], [1.0], [-0.5], [0.3]])
    y, w = drawn(generator, size=5), drawn(generator, size=5)
    method, stages = Chebyshev(), torch.tensor(MIXED)
    together = method.step(Coupled(rates), times, sizes, y, stages=stages, estimate=True)
    pulled = method.transpose(Coupled(rates), times, sizes, together.states, w, stages=stages)
    assert len(together.states) == max(MIXED)
    for r, count in enumerate(MIXED):
        row = slice(r, r + 1)
        field, t, h = Coupled(rates[row]), times[row], sizes[row]
        alone = method.step(field, t, h, y[row], stages=stages[row], estimate=True)
        expected = method.transpose(field, t, h, alone.states, w[row], stages=stages[row])
        assert len(alone.states) == count
        for found, single in zip(together[:4:2], alone[:4:2], strict=True):
            assert torch.equal(found[row], single)
        assert torch.equal(together.slope[row], alone.slope)
        for state, single in zip(together.states[:count], alone.states, strict=True):
            assert torch.equal(state[row], single)
        assert all(torch.equal(state[row], alone.end) for state in together.states[count:])
        for name in ("start", "size", "time", "stretch"):
            assert torch.equal(getattr(pulled, name)[row], getattr(expected, name))
        assert torch.equal(pulled.parameters[0][row], expected.parameters[0])


def test_plain_numbers_are_the_coefficients_of_rows_alike(generator):
    # The same numbers from a table: a second row with more stages forces it.
    field, method = Coupled(torch.full((2, 1), 7.0)), Chebyshev()
    y = drawn(generator, rows=1).expand(2, 3)
    plain = method.step(field, T, H, y, stages=torch.tensor([6, 6]))
    table = method.step(field, T, H, y, stages=torch.tensor([6, 8]))
    default = rkc(6).step(field, T, H, y)
    assert torch.equal(plain.end[0], table.end[0]) and torch.equal(plain.end, default.end)
    assert not torch.equal(table.end[1], plain.end[1])


def test_idle_stages_pull_nothing_back_whatever_pads_their_states(generator):
    method, stages = Chebyshev(), torch.tensor(MIXED)
    field = Forced(generator)
    y, w = drawn(generator), drawn(generator)
    states = list(method.step(field, T, H, y, stages=stages).states)
    expected = method.transpose(field, T, H, states, w, stages=stages)
    garbage = [state.clone() for state in states]
    for j, state in enumerate(garbage):
        state[stages <= j] = 1e3 * torch.randn(3, generator=generator)
    garbage += [torch.full_like(y, math.nan)] * 2

    cotangents = []

    class Watched(Forced):
        def __init__(self, field):
            self.weight, self.force = field.weight, field.force

        def vjp(self, t, y, w):
            cotangents.insert(0, w)
            return super().vjp(t, y, w)

    found = method.transpose(Watched(field), T, H, garbage, w, stages=stages)
    assert len(cotangents) == max(MIXED)
    for j, cotangent in enumerate(cotangents):
        assert torch.equal(cotangent.abs().sum(dim=1) > 0, stages > j)
    for name in ("start", "size", "time", "stretch"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert all(map(torch.equal, found.parameters, expected.parameters))


# The transpose


@pytest.mark.parametrize("h", [H, -H, 2.0])
@pytest.mark.parametrize("stages", [MIXED, (2,) * 4, (3,) * 4, (50,) * 4, (2, 3, 100, 40)], ids=str)
def test_the_transpose_is_the_transposed_jacobian(stages, h, generator):
    field, method, stages = Forced(generator), Chebyshev(), torch.tensor(stages)
    y, v, w = drawn(generator), drawn(generator), drawn(generator)
    states = method.step(field, T, h, y, stages=stages).states
    start = method.transpose(field, T, h, states, w, stages=stages).start
    _, pushed = torch.func.jvp(lambda y: method.step(field, T, h, y, stages=stages).end, (y,), (v,))
    scale = w.norm(dim=1) * pushed.norm(dim=1)
    assert torch.all(((w * pushed).sum(dim=1) - (start * v).sum(dim=1)).abs() < 1e-12 * scale)


@pytest.mark.parametrize("damping", [DAMPING, 10.0])
def test_all_cotangents_are_autograds_through_the_papers_recursion(damping, generator):
    field, method, stages = Forced(generator), Chebyshev(damping), torch.tensor(MIXED)
    y, w = drawn(generator), drawn(generator)
    times, sizes = torch.tensor([[0.3], [-1.0], [0.0], [2.0]]), torch.tensor([[0.25], [0.5], [1.5], [-0.3]])
    states = method.step(field, times, sizes, y, stages=stages).states
    found = method.transpose(field, times, sizes, states, w, stages=stages)

    inputs = [tensor.requires_grad_() for tensor in (y, sizes, times, field.weight, field.force)]
    ends = [textbook(field, times[r], sizes[r], y[r], count, damping) for r, count in enumerate(MIXED)]
    start, size, time, *parameters = torch.autograd.grad(torch.stack(ends), inputs, w)
    assert relative(found.start, start) < 1e-12
    assert relative(found.size, size[:, 0]) < 1e-12
    assert relative(found.time, time[:, 0]) < 1e-12
    assert len(found.parameters) == 2
    assert all(relative(x, expected) < 1e-12 for x, expected in zip(found.parameters, parameters, strict=True))


def test_one_size_and_one_time_for_all_rows(generator):
    field, stages = Forced(generator), torch.tensor(MIXED)
    y, w = drawn(generator), drawn(generator)
    t, h = torch.tensor(T, requires_grad=True), torch.tensor(H, requires_grad=True)
    method = Chebyshev()
    time, size = torch.autograd.grad(method.step(field, t, h, y, stages=stages).end, (t, h), w)
    states = method.step(field, T, H, y, stages=stages).states
    found = method.transpose(field, T, H, states, w, stages=stages)
    assert relative(found.size.sum(), size) < 1e-12 and relative(found.time.sum(), time) < 1e-12


def test_a_field_without_time_has_no_cotangent_of_it(generator):
    field, method = TanhField(generator), rkc(4)
    y, w = drawn(generator), drawn(generator)
    h = torch.full((len(y), 1), H, requires_grad=True)
    (size,) = torch.autograd.grad(textbook(field, T, h, y, 4), h, w)
    found = method.transpose(field, T, H, method.step(field, T, H, y).states, w)
    assert found.time is None
    assert relative(found.size, size[:, 0]) < 1e-12


def test_the_transpose_spends_one_product_a_stage_and_no_evaluation(generator):
    field, method = Recorder(Forced(generator)), rkc(7)
    y = drawn(generator)
    states = method.step(field, T, H, y).states
    method.transpose(field, T, H, states, y)
    assert field.products == len(field.calls) == len(states) == 7


def test_stretch_bounds_h_times_the_norm_from_below(generator):
    rates = torch.tensor([[-1.0, -4.0, -9.0], [-3.0, -3.0, -3.0], [0.0, 0.0, 0.0]])
    field, method, stages = Diagonal(rates), Chebyshev(), torch.tensor([4, 2, 3])
    y, w = drawn(generator, rows=3), drawn(generator, rows=3)
    states = method.step(field, 0.0, 0.5, y, stages=stages).states
    found = method.transpose(field, 0.0, 0.5, states, w, stages=stages).stretch
    assert 0.5 < found[0] < 4.5
    assert found[1] == pytest.approx(1.5, rel=1e-14) and found[2] == 0
    still = method.transpose(field, 0.0, 0.5, states, torch.zeros_like(w), stages=stages)
    assert torch.equal(still.stretch, torch.zeros(3)) and torch.equal(still.start, torch.zeros(3, 3))


def test_stretch_is_the_largest_of_all_products(generator):
    ratios = []

    class Watched(Forced):
        def vjp(self, t, y, w):
            pulled = super().vjp(t, y, w)
            ratios.append(H * pulled.state.norm(dim=1) / w.norm(dim=1))
            return pulled

    field, method, y = Watched(generator), rkc(9), drawn(generator, rows=20)
    states = method.step(field, T, H, y).states
    found = method.transpose(field, T, H, states, drawn(generator, rows=20)).stretch
    largest, where = torch.stack(ratios).max(dim=0)
    assert torch.allclose(found, largest, rtol=1e-12, atol=0)
    assert len(where.unique()) > 2


# The estimate, and the slope that the next step starts with


@pytest.mark.parametrize("stages", [2, 3, 10])
def test_the_error_estimate_is_the_published_one_and_of_third_order(stages, generator):
    field, method, y = Forced(generator), rkc(stages), drawn(generator)
    sizes = [0.1, 0.05, 0.025]
    found = []
    for h in sizes:
        taken = method.step(field, T, h, y, estimate=True)
        slope = field(T + h, taken.end)
        published = 0.8 * (y - taken.end) + 0.4 * h * (field(T, y) + slope)
        assert relative(taken.slope, slope) < 1e-14
        assert relative(taken.error, published) < 1e-9
        found.append(float(taken.error.norm()))
    assert order_of_convergence([1 / h for h in sizes], found) == pytest.approx(method.estimate_order + 1, abs=0.15)


def test_the_error_estimate_is_as_large_as_the_error(generator):
    field, y, h = Forced(generator), drawn(generator), 0.05
    taken = rkc(10).step(field, T, h, y, estimate=True)
    error = (taken.end - runge_kutta(TABLEAUS["dopri5"], field, T, T + h, 8, y)).norm()
    assert 0.5 < float(taken.error.norm() / error) < 2


def test_without_an_estimate_nothing_is_evaluated_at_the_end(generator):
    field = Recorder(Forced(generator))
    taken = rkc(6).step(field, T, H, drawn(generator))
    assert len(field.calls) == 6 and taken.error is None and taken.slope is None and len(taken.slopes) == 0


def test_a_known_slope_saves_an_evaluation_and_changes_nothing(generator):
    field, method = Recorder(Forced(generator)), rkc(6)
    one = method.step(field, T, H, drawn(generator), estimate=True)
    assert len(field.calls) == 7
    known = method.step(field, T + H, H, one.end, slope=one.slope, estimate=True)
    assert len(field.calls) == 7 + 6
    fresh = method.step(field, T + H, H, one.end, estimate=True)
    assert len(field.calls) == 7 + 6 + 7
    assert torch.equal(known.end, fresh.end) and torch.equal(known.error, fresh.error)
    # The slope is used, not only trusted to be right.
    assert not torch.equal(method.step(field, T + H, H, one.end, slope=2 * one.slope).end, known.end)


# Numbers


@pytest.mark.parametrize("stages", [None, torch.tensor(MIXED)], ids=["alike", "mixed"])
def test_float32_stays_float32_with_a_float64_time(stages, generator):
    field = Forced(generator)
    field.weight, field.force = field.weight.float(), field.force.float()
    y, h = drawn(generator).float(), torch.tensor(0.25, dtype=torch.float64)
    method = Chebyshev()
    taken = method.step(field, 0.0, h, y, stages=stages, estimate=True)
    pulled = method.transpose(field, 0.0, h, taken.states, y, stages=stages)
    tensors = (taken.end, taken.error, taken.slope, *taken.states)
    cotangents = (pulled.start, pulled.size, pulled.time, pulled.stretch, *pulled.parameters)
    assert {x.dtype for x in (*tensors, *cotangents)} == {torch.float32}


def test_rounding_grows_slowly_with_the_stages(generator):
    rates = -torch.linspace(0, interval(200, DAMPING), 500)[None].float()
    y = drawn(generator, rows=1, size=500).float()
    single = rkc(200).step(Diagonal(rates), 0.0, 1.0, y).end
    double = rkc(200).step(Diagonal(rates.double()), 0.0, 1.0, y.double()).end
    assert relative(single.double(), double) < 1e-4


def test_a_small_step_loses_no_digits_to_the_stages(generator):
    # The recursion in the states themselves is off by 170 units of float32 rounding here.
    y, rates = drawn(generator, rows=1, size=500).float(), -torch.ones(1, 500)
    end = rkc(50).step(Diagonal(rates.float()), 0.0, 1e-3, y).end
    exact = rkc(50).step(Diagonal(rates), 0.0, 1e-3, y.double()).end
    assert relative(end.double(), exact) < torch.finfo(torch.float32).eps


def test_inputs_are_left_as_they_were(generator):
    field, method, stages = Forced(generator), Chebyshev(), torch.tensor(MIXED)
    y, w = drawn(generator), drawn(generator)
    slope = field(T, y)
    before = [x.clone() for x in (y, w, slope, stages)]
    taken = method.step(field, T, H, y, slope=slope, stages=stages, estimate=True)
    states = [state.clone() for state in taken.states]
    method.transpose(field, T, H, taken.states, w, stages=stages)
    assert all(map(torch.equal, (y, w, slope, stages), before))
    assert all(map(torch.equal, taken.states, states))


# Arguments


def test_it_prints_itself_and_says_what_it_is():
    method = Chebyshev()
    assert repr(method) == f"Chebyshev(damping={DAMPING}, max_stages=200, default_stages=10)"
    assert method == Chebyshev(DAMPING) and hash(method) == hash(Chebyshev(DAMPING))
    assert (method.name, method.order, method.estimate_order) == ("rkc", 2, 2)
    assert len(Chebyshev(max_stages=4).step(Diagonal(torch.ones(1, 1)), 0.0, 1.0, torch.ones(1, 1)).states) == 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"damping": -0.1}, ValueError, "damping must be finite and at least 0"),
        ({"damping": math.nan}, ValueError, "damping must be finite"),
        ({"damping": 21.0}, ValueError, "damping must be at most 20, got 21.0"),
        ({"damping": "strong"}, TypeError, "damping must be a number"),
        ({"max_stages": 1}, ValueError, "max_stages must be at least 2, got 1"),
        ({"max_stages": 10.0}, TypeError, "max_stages must be a whole number"),
        ({"default_stages": 1}, ValueError, "default_stages must be at least 2"),
        ({"default_stages": None}, TypeError, "default_stages must be a whole number"),
    ],
)
def test_wrong_settings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Chebyshev(**arguments)


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        (torch.tensor([2, 3, 4]), ValueError, r"stages must have shape \[rows\] = \[4\], got \[3\]"),
        (torch.tensor([[2], [3], [4], [5]]), ValueError, r"got \[4, 1\]"),
        (torch.tensor([2, 3, 1, 4]), ValueError, r"stages must lie in \[2, max_stages = 20\], got 1 to 4"),
        (torch.tensor([2, 3, 21, 4]), ValueError, "got 2 to 21"),
        (torch.tensor([2.0, 3.0, 4.0, 5.0]), TypeError, "tensor of integers, got torch.float"),
        (5, TypeError, "tensor of integers, got int"),
    ],
)
def test_wrong_stages_are_refused(stages, error, message):
    method, field, y = Chebyshev(max_stages=20), Diagonal(torch.ones(4, 1)), torch.ones(4, 1)
    with pytest.raises(error, match=message):
        method.step(field, 0.0, 1.0, y, stages=stages)
    with pytest.raises(error, match=message):
        method.transpose(field, 0.0, 1.0, [y] * 30, y, stages=stages)


@pytest.mark.parametrize("stages", [torch.tensor([2, 1]), torch.tensor([-1]), torch.tensor([201])], ids=str)
def test_no_interval_for_stages_that_there_are_not(stages):
    with pytest.raises(ValueError, match="stages must lie in"):
        Chebyshev().stability(stages)


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (3.0, TypeError, "z must be a floating-point tensor .* got float"),
        (torch.tensor([3]), TypeError, "got torch.int64"),
        (torch.tensor(3.0), ValueError, r"z must have shape \[rows\], got \[\]"),
        (torch.ones(2, 1), ValueError, r"got \[2, 1\]"),
    ],
)
def test_wrong_z_is_refused(z, error, message):
    with pytest.raises(error, match=message):
        Chebyshev().stages(z)


def test_too_few_states_are_refused():
    y = torch.ones(2, 1)
    with pytest.raises(ValueError, match="one state for each of 5 stages, got 4"):
        Chebyshev().transpose(Diagonal(y), 0.0, 1.0, [y] * 4, y, stages=torch.tensor([5, 2]))
