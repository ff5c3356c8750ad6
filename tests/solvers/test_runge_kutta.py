from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from problems import LinearField, Recorder, TanhField, symmetric
from references import relative, runge_kutta
from torch import Tensor
from torch.func import jvp
from torchdiffeq import odeint

from adjoint_meta.solvers import TABLEAUS, VJP, ButcherTableau, RungeKutta, Step
from adjoint_meta.solvers.runge_kutta import combine
from adjoint_meta.solvers.stepper import add
from adjoint_meta.solvers.tableaus import MORE_TABLEAUS

ALL = {**TABLEAUS, **MORE_TABLEAUS}
# Those with f at the end of the step as their last stage, and with it dense output.
DENSE = {name: tableau.with_last_slope() for name, tableau in ALL.items()}
every_tableau = pytest.mark.parametrize("tableau", ALL.values(), ids=ALL)
every_dense = pytest.mark.parametrize("tableau", DENSE.values(), ids=DENSE)
every_pair = pytest.mark.parametrize("tableau", [t for t in [*ALL.values(), DENSE["heun"]] if t.embedded])

T, H = 0.3, 0.25
# A few dozen operations on either side, some of which cancel.
ROUNDING = 1e-13


def two_rows(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A state and a cotangent, ``[2, 3]``."""
    return torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)


def with_parameters(field: TanhField, weight: Tensor, bias: Tensor) -> TanhField:
    other = copy.copy(field)
    other.weight, other.bias = weight, bias
    return other


def on_paper(
    tableau: ButcherTableau, f: TanhField, t: Tensor | float, h: Tensor | float, y: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The end of a step and all its slopes, stage by stage; differentiable in everything."""
    slopes: list[Tensor] = []
    for row, node in zip(tableau.a, tableau.c, strict=True):
        stage = y + sum((h * float(weight) * slope for weight, slope in zip(row, slopes, strict=True)), 0 * y)
        slopes.append(f(t + float(node) * h, stage))
    return y + sum((h * float(weight) * slope for weight, slope in zip(tableau.b, slopes, strict=True)), 0 * y), slopes


def interpolated(
    tableau: ButcherTableau,
    y: Tensor,
    end: Tensor,
    h: Tensor | float,
    slopes: Sequence[Tensor],
    theta: Tensor | float,
) -> Tensor:
    """Cubic Hermite (Hairer, Nørsett, Wanner, Solving ODEs I, II.6, eq. 6.7), and the quartic part if there is one."""
    rise = end - y
    bend = (1 - 2 * theta) * rise + (theta - 1) * h * slopes[0] + theta * h * slopes[-1]
    inside = (1 - theta) * y + theta * end + theta * (theta - 1) * bend
    for weight, slope in zip(tableau.quartic or (), slopes, strict=False):
        inside = inside + h * theta**2 * (1 - theta) ** 2 * float(weight) * slope
    return inside


# What it says of itself


@every_tableau
def test_a_method_is_its_tableau(tableau):
    stepper = RungeKutta(tableau)
    assert (stepper.name, stepper.order) == (tableau.name, tableau.order)
    assert stepper.estimate_order == (0 if tableau.embedded is None else tableau.order - 1)
    assert stepper.stages(torch.ones(2)) is None
    assert stepper.limit() == tableau.stability_limit
    assert stepper == RungeKutta(tableau)


# Steps


@every_tableau
def test_the_field_is_evaluated_at_the_nodes(tableau, generator):
    field = Recorder(TanhField(generator, time=1.0))
    y = torch.randn(2, 3, generator=generator)
    taken = RungeKutta(tableau).step(field, T, H, y)
    nodes = [T + float(node) * H for node in tableau.c[: tableau.solution_stages]]
    assert [t for t, _ in field.calls] == pytest.approx(nodes, abs=1e-15)
    assert torch.equal(field.calls[0][1], y)
    assert all(torch.equal(state, seen) for state, (_, seen) in zip(taken.states, field.calls, strict=True))


@every_tableau
def test_a_step_is_the_textbook_formula(tableau, generator):
    field = TanhField(generator, time=1.0)
    y = torch.randn(2, 3, generator=generator)
    expected = runge_kutta(tableau, field, T, T + H, 1, y)
    assert relative(RungeKutta(tableau).step(field, T, H, y).end, expected) < 1e-15


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2"), ("heun3", "heun3"), ("rk4_38", "rk4")],
)
def test_a_step_is_torchdiffeqs(name, theirs, generator):
    field = TanhField(generator, time=1.0)
    y = torch.randn(2, 3, generator=generator)
    expected = odeint(field, y, torch.tensor([T, T + H]), method=theirs)[-1]
    assert relative(RungeKutta(ALL[name]).step(field, T, H, y).end, expected) < 1e-15


def test_rk4_is_kuttas_classical_method(generator):
    # Written out, since torchdiffeq's "rk4" is the 3/8 rule.
    f = TanhField(generator, time=1.0)
    y = torch.randn(2, 3, generator=generator)
    k1 = f(T, y)
    k2 = f(T + H / 2, y + H / 2 * k1)
    k3 = f(T + H / 2, y + H / 2 * k2)
    k4 = f(T + H, y + H * k3)
    expected = y + H / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    assert relative(RungeKutta(TABLEAUS["rk4"]).step(f, T, H, y).end, expected) < 1e-15


@every_tableau
def test_without_an_estimate_only_the_solution_is_computed(tableau, generator):
    field = TanhField(generator)
    taken = RungeKutta(tableau).step(field, T, H, torch.randn(2, 3, generator=generator))
    assert len(taken.states) == tableau.solution_stages
    assert (taken.error, taken.slope, taken.slopes, taken.codes) == (None, None, (), None)


@every_pair
def test_the_estimate_is_the_difference_to_the_embedded_method(tableau, generator):
    field = Recorder(TanhField(generator, time=1.0))
    y = torch.randn(2, 3, generator=generator)
    taken = RungeKutta(tableau).step(field, T, H, y, estimate=True)
    assert len(field.calls) == tableau.stages and len(taken.states) == tableau.solution_stages
    end, slopes = on_paper(tableau, field.field, T, H, y)
    assert relative(taken.end, end) < 1e-15
    assert len(taken.slopes) == tableau.stages
    assert all(relative(found, slope) < 1e-14 for found, slope in zip(taken.slopes, slopes, strict=True))
    embedded = y + H * sum(float(weight) * slope for weight, slope in zip(tableau.embedded, slopes, strict=True))
    # Relative to the solution: the two agree in most of their digits.
    assert (taken.error - (end - embedded)).norm() < 1e-15 * end.norm()
    assert taken.error.norm() > 1e-9 * end.norm()


@every_dense
def test_the_last_slope_is_f_at_the_end(tableau, generator):
    field = TanhField(generator, time=1.0)
    taken = RungeKutta(tableau).step(field, T, H, torch.randn(2, 3, generator=generator), estimate=True)
    assert relative(taken.slope, field(T + H, taken.end)) < 1e-15
    assert taken.slope is taken.slopes[-1]
    assert len(taken.slopes) == tableau.stages and len(taken.states) == tableau.solution_stages


@pytest.mark.parametrize("name", ["heun", "fehlberg2"])
def test_a_method_whose_last_stage_is_not_the_end_returns_no_slope(name, generator):
    taken = RungeKutta(ALL[name]).step(TanhField(generator), T, H, torch.ones(2, 3), estimate=True)
    assert taken.slope is None and taken.error is not None


@every_dense
@pytest.mark.parametrize("estimate", [False, True])
def test_a_known_slope_saves_an_evaluation(tableau, estimate, generator):
    field = Recorder(TanhField(generator, time=1.0))
    y, stepper = torch.randn(2, 3, generator=generator), RungeKutta(tableau)
    expected = stepper.step(field, T, H, y, estimate=estimate)
    evaluations = len(field.calls)
    found = stepper.step(field, T, H, y, slope=field.field(T, y), estimate=estimate)
    assert len(field.calls) == 2 * evaluations - 1
    assert torch.equal(found.end, expected.end)
    assert all(torch.equal(x, z) for x, z in zip(found.states, expected.states, strict=True))
    assert all(torch.equal(x, z) for x, z in zip(found.slopes, expected.slopes, strict=True))


@every_tableau
def test_the_states_alone_cost_one_evaluation_less(tableau, generator):
    field = Recorder(TanhField(generator, time=1.0))
    y, stepper = torch.randn(2, 3, generator=generator), RungeKutta(tableau)
    found = stepper.states(field, T, H, y)
    assert len(field.calls) == tableau.solution_stages - 1
    expected = stepper.step(field, T, H, y).states
    assert all(torch.equal(x, z) for x, z in zip(found, expected, strict=True))


@every_dense
def test_every_row_may_have_its_own_time_and_size(tableau, generator):
    field, stepper = TanhField(generator, time=2.0), RungeKutta(tableau)
    y, w = two_rows(generator)
    times, sizes = torch.tensor([[0.2], [1.3]]), torch.tensor([[0.1], [0.4]])
    together = stepper.step(field, times, sizes, y, estimate=True)
    pulled = stepper.transpose(field, times, sizes, together.states, w)
    parameters = [torch.zeros_like(parameter) for parameter in field.parameters]
    for row in range(2):
        one, t, h = slice(row, row + 1), float(times[row]), float(sizes[row])
        alone = stepper.step(field, t, h, y[one], estimate=True)
        expected = stepper.transpose(field, t, h, alone.states, w[one])
        assert relative(together.end[one], alone.end) < 1e-15
        if tableau.embedded is not None:
            assert (together.error[one] - alone.error).norm() < 1e-15
        assert relative(together.slope[one], alone.slope) < 1e-14
        assert relative(pulled.start[one], expected.start) < ROUNDING
        assert relative(pulled.size[one], expected.size) < ROUNDING
        assert relative(pulled.time[one], expected.time) < ROUNDING
        assert relative(pulled.stretch[one], expected.stretch) < ROUNDING
        parameters = [x + z for x, z in zip(parameters, expected.parameters, strict=True)]
    for found, summed in zip(pulled.parameters, parameters, strict=True):
        assert relative(found, summed) < ROUNDING


@every_dense
def test_float32_stays_float32_with_a_float64_time(tableau, generator):
    field, stepper = TanhField(generator), RungeKutta(tableau)
    field.weight, field.bias, field.drift = (x.float() for x in (field.weight, field.bias, field.drift))
    y = torch.randn(2, 3, generator=generator).float()
    h = torch.tensor(0.25, dtype=torch.float64)
    taken = stepper.step(field, 0.0, h, y, estimate=True)
    outputs = [
        (tableau.dense_weights(0.5), y),
        (tableau.dense_weights(torch.rand((2, 1), generator=generator).float()), y),
    ]
    pulled = stepper.transpose(field, 0.0, h, [*taken.states, taken.end], y, outputs=outputs)
    tensors = [taken.end, *taken.states, taken.slope, *taken.slopes]
    tensors += [taken.error] if tableau.embedded is not None else []
    tensors += [pulled.start, pulled.size, pulled.stretch, *pulled.parameters]
    assert {x.dtype for x in tensors} == {torch.float32}


# Transposes


@every_dense
@pytest.mark.parametrize("h", [H, -H])
def test_transpose_is_the_transposed_derivative(tableau, h, generator):
    # ⟨w, J v⟩ = ⟨Jᵀ w, v⟩ for J with respect to the state, the time, the size and the parameters at once.
    field, stepper = TanhField(generator, time=2.0), RungeKutta(tableau)
    y, w = two_rows(generator)
    times, sizes = torch.full((2, 1), T), torch.full((2, 1), h)
    pulled = stepper.transpose(field, T, h, stepper.step(field, T, h, y).states, w)

    at = (y, times, sizes, *field.parameters)
    v = tuple(torch.randn(x.shape, generator=generator) for x in at)
    _, along = jvp(lambda y, t, h, *p: on_paper(tableau, with_parameters(field, *p), t, h, y)[0], at, v)
    there = (w * along).sum()
    back = [pulled.start, pulled.time[:, None], pulled.size[:, None], *pulled.parameters]
    products = torch.stack([(x * z).sum() for x, z in zip(back, v, strict=True)])
    assert abs(there - products.sum()) < 1e-12 * products.abs().sum()
    assert (products.abs() > 1e-4 * products.abs().max()).all()  # each of the five is seen


@every_dense
@pytest.mark.parametrize("h", [H, -H])
def test_transpose_is_autograd_through_the_step(tableau, h, generator):
    field, stepper = TanhField(generator, time=2.0), RungeKutta(tableau)
    y, w = two_rows(generator)
    pulled = stepper.transpose(field, T, h, stepper.step(field, T, h, y).states, w)

    time, size = torch.full((2, 1), T), torch.full((2, 1), h)
    inputs = [x.requires_grad_() for x in (y, time, size, *field.parameters)]
    end, _ = on_paper(tableau, field, time, size, y)
    start, begin, duration, *parameters = torch.autograd.grad(end, inputs, w)
    assert relative(pulled.start, start) < ROUNDING
    assert relative(pulled.time, begin[:, 0]) < ROUNDING
    assert relative(pulled.size, duration[:, 0]) < ROUNDING
    assert len(pulled.parameters) == len(parameters) == 2
    for found, expected in zip(pulled.parameters, parameters, strict=True):
        assert relative(found, expected) < ROUNDING


@every_tableau
def test_a_field_without_explicit_time_has_no_cotangent_to_it(tableau, generator):
    field, stepper = TanhField(generator), RungeKutta(tableau)
    y, w = two_rows(generator)
    assert stepper.transpose(field, T, H, stepper.step(field, T, H, y).states, w).time is None


@every_tableau
def test_transpose_is_the_transposed_jacobian(tableau, generator):
    field, stepper = TanhField(generator), RungeKutta(tableau)
    y = torch.randn(1, 3, generator=generator)
    jacobian = torch.autograd.functional.jacobian(lambda y: stepper.step(field, T, H, y[None]).end[0], y[0])
    states = stepper.step(field, T, H, y).states
    rows = [stepper.transpose(field, T, H, states, unit[None]).start[0] for unit in torch.eye(3)]
    assert relative(torch.stack(rows), jacobian) < ROUNDING


@every_dense
def test_transpose_spends_one_product_a_stage_and_no_evaluation(tableau, generator):
    field, stepper = Recorder(TanhField(generator)), RungeKutta(tableau)
    y = torch.randn(2, 3, generator=generator)
    states = stepper.step(field, T, H, y).states
    evaluations = len(field.calls)
    stepper.transpose(field, T, H, states, y)
    assert evaluations == field.products == tableau.solution_stages
    assert len(field.calls) == evaluations


# Transposes of dense output


def as_theta(theta: float | list[list[float]]) -> Tensor | float:
    """A number as it is, a list as a tensor ``[rows, 1]``."""
    return theta if isinstance(theta, float) else torch.tensor(theta)


def outputs_of(
    tableau: ButcherTableau, thetas: Sequence[Tensor | float], generator: torch.Generator
) -> list[tuple[list[Tensor | float], Tensor]]:
    return [(tableau.dense_weights(theta), torch.randn(2, 3, generator=generator)) for theta in thetas]


@every_dense
@pytest.mark.parametrize("theta", [0.4, [[0.4]], [[0.15], [0.8]]], ids=["a number", "a tensor", "one a row"])
def test_dense_output_is_the_interpolant(tableau, theta, generator):
    theta = as_theta(theta)
    field, stepper = TanhField(generator, time=2.0), RungeKutta(tableau)
    y = torch.randn(2, 3, generator=generator)
    taken = stepper.step(field, T, H, y, estimate=True)
    found = y + H * combine(tableau.dense_weights(theta), taken.slopes)
    end, slopes = on_paper(tableau, field, T, H, y)
    assert relative(found, interpolated(tableau, y, end, H, slopes, theta)) < 1e-14


@every_dense
def test_dense_output_is_smooth_from_one_step_to_the_next(tableau, generator):
    field, stepper = TanhField(generator, time=2.0), RungeKutta(tableau)
    first = stepper.step(field, T, H, torch.randn(2, 3, generator=generator), estimate=True)
    second = stepper.step(field, T + H, 2 * H, first.end, slope=first.slope, estimate=True)

    def slope(taken: Step, theta: float) -> Tensor:
        """dy/dt inside the step, from d/dϑ of its weights."""
        _, speeds = jvp(lambda theta: _tensors(tableau.dense_weights(theta)), (torch.tensor(theta),), (torch.ones(()),))
        return sum(speed * k for speed, k in zip(speeds, taken.slopes, strict=True))

    assert relative(slope(first, 1.0), slope(second, 0.0)) < ROUNDING
    assert relative(slope(first, 1.0), field(T + H, first.end)) < ROUNDING


def _tensors(weights: Sequence[Tensor | float]) -> Tensor:
    return torch.stack([torch.as_tensor(weight) for weight in weights])


@every_dense
@pytest.mark.parametrize(
    "thetas",
    [(0.4,), (0.1, 0.5, 0.95), ([[0.15], [0.8]], [[0.7], [0.2]], 0.3), (0.0, 1.0)],
    ids=["one", "several", "one a row", "ends"],
)
def test_transpose_of_dense_outputs_is_autograd_through_the_interpolation(tableau, thetas, generator):
    field, stepper = TanhField(generator, time=2.0), RungeKutta(tableau)
    y, w = two_rows(generator)
    time, size, thetas = torch.tensor([[0.2], [1.3]]), torch.tensor([[0.1], [0.4]]), [*map(as_theta, thetas)]
    outputs = outputs_of(tableau, thetas, generator)
    taken = stepper.step(field, time, size, y)
    # The weights use the last stage, whose state is the end of the step.
    pulled = stepper.transpose(field, time, size, [*taken.states, taken.end], w, outputs=outputs)

    inputs = [x.requires_grad_() for x in (y, time, size, *field.parameters)]
    end, slopes = on_paper(tableau, field, time, size, y)
    inside = [interpolated(tableau, y, end, size, slopes, theta) for theta in thetas]
    start, begin, duration, *parameters = torch.autograd.grad([end, *inside], inputs, [w, *(o[1] for o in outputs)])
    assert relative(pulled.start, start) < ROUNDING
    assert relative(pulled.time, begin[:, 0]) < ROUNDING
    assert relative(pulled.size, duration[:, 0]) < ROUNDING
    for found, expected in zip(pulled.parameters, parameters, strict=True):
        assert relative(found, expected) < ROUNDING


@every_dense
def test_outputs_cost_one_more_product(tableau, generator):
    field, stepper = Recorder(TanhField(generator)), RungeKutta(tableau)
    y, w = two_rows(generator)
    taken = stepper.step(field, T, H, y)
    outputs = outputs_of(tableau, (0.2, 0.6), generator)
    stepper.transpose(field, T, H, [*taken.states, taken.end], w, outputs=outputs)
    assert field.products == tableau.stages


@every_dense
def test_an_output_at_the_end_is_the_end(tableau, generator):
    field, stepper = TanhField(generator, time=2.0), RungeKutta(tableau)
    y, w = two_rows(generator)
    taken = stepper.step(field, T, H, y)
    states, nothing = [*taken.states, taken.end], torch.zeros_like(w)
    found = stepper.transpose(field, T, H, states, nothing, outputs=[(tableau.dense_weights(1.0), w)])
    expected = stepper.transpose(field, T, H, taken.states, w)
    assert relative(found.start, expected.start) < ROUNDING
    assert relative(found.size, expected.size) < ROUNDING


# The bound of h‖J‖


@every_tableau
def test_stretch_is_a_lower_bound_of_the_norm(tableau, generator):
    field, stepper = TanhField(generator), RungeKutta(tableau)
    y, w = two_rows(generator)
    taken = stepper.step(field, T, H, y)
    pulled = stepper.transpose(field, T, H, taken.states, w)

    def norms(state: Tensor) -> Tensor:
        jacobians = [torch.autograd.functional.jacobian(lambda y: field(T, y[None])[0], row) for row in state]
        return torch.stack([torch.linalg.matrix_norm(jacobian, 2) for jacobian in jacobians])

    largest = torch.stack([H * norms(state) for state in taken.states]).amax(dim=0)
    assert pulled.stretch.shape == (2,)
    assert (pulled.stretch <= largest * (1 + 1e-14)).all()
    assert (pulled.stretch > 0.2 * largest).all()


@every_tableau
@pytest.mark.parametrize("h", [H, -H])
def test_stretch_is_the_norm_along_the_top_eigenvector(tableau, h, generator):
    values = torch.tensor([[0.5, 1.0, 6.0], [0.1, 2.0, 3.0]])
    a = symmetric(generator, values)
    field, stepper = LinearField(a, torch.zeros(2, 3)), RungeKutta(tableau)
    y = torch.randn(2, 3, generator=generator)
    top = torch.linalg.eigh(a).eigenvectors[:, :, -1]
    pulled = stepper.transpose(field, T, h, stepper.step(field, T, h, y).states, top)
    assert relative(pulled.stretch, abs(h) * values[:, -1]) < ROUNDING


@pytest.mark.parametrize("h", [H, -H])
@every_tableau
def test_stretch_is_the_largest_of_all_products(tableau, h, generator):
    seen = []

    class Watched(TanhField):
        def vjp(self, t: Tensor | float, y: Tensor, w: Tensor) -> VJP:
            pulled = super().vjp(t, y, w)
            seen.append(abs(h) * pulled.state.norm(dim=1) / w.norm(dim=1))
            return pulled

    field, stepper = Watched(generator, time=2.0), RungeKutta(tableau)
    y, w = two_rows(generator)
    # Large and small slopes of tanh, so that the largest product is not that of the same stage in both rows.
    y[0] *= 3
    pulled = stepper.transpose(field, T, h, stepper.step(field, T, h, y).states, w)
    # h κ is what is pulled back, so its norm holds |h| once.
    assert relative(pulled.stretch, torch.stack(seen).amax(dim=0)) < ROUNDING


def test_the_stretch_of_a_vanishing_cotangent_is_zero(generator):
    field, stepper = TanhField(generator), RungeKutta(TABLEAUS["rk4"])
    y, w = two_rows(generator)
    w[0] = 0
    pulled = stepper.transpose(field, T, H, stepper.step(field, T, H, y).states, w)
    assert pulled.stretch[0] == 0 and pulled.stretch[1] > 0
    assert torch.equal(pulled.start[0], torch.zeros(3))


# The pieces


def test_inputs_are_left_as_they_were(generator):
    field, tableau = TanhField(generator), TABLEAUS["dopri5"]
    stepper, slope = RungeKutta(tableau), torch.randn(2, 3, generator=generator)
    y, w = two_rows(generator)
    inputs = (y, w, slope)
    before = [x.clone() for x in inputs]
    taken = stepper.step(field, 0.0, H, y, slope=slope, estimate=True)
    stepper.transpose(field, 0.0, H, [*taken.states, taken.end], w, outputs=[(tableau.dense_weights(0.5), w)])
    assert all(torch.equal(x, z) for x, z in zip(inputs, before, strict=True))


def test_adding_cotangents():
    one, two = (torch.ones(2),), (torch.full((2,), 2.0),)
    assert add((), ()) == ()
    assert add(one, ()) is one and add((), one) is one
    assert torch.equal(add(one, two)[0], torch.full((2,), 3.0))
    with pytest.raises(ValueError):
        add(one, (*two, *two))


@pytest.mark.parametrize("weights", [[2.0, 0.0, -1.0], [0.0, 1.0, 3.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
def test_a_combination_is_the_weighted_sum(weights, generator):
    tensors = [torch.randn(2, 3, generator=generator) for _ in weights]
    expected = sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True))
    assert torch.allclose(combine(weights, tensors), expected, rtol=1e-15, atol=0)
    a_row = [torch.full((2, 1), weight) for weight in weights]
    assert torch.allclose(combine(a_row, tensors), expected, rtol=1e-15, atol=0)
    mixed = [*weights[:2], a_row[2]]
    assert torch.allclose(combine(mixed, tensors), expected, rtol=1e-15, atol=0)
