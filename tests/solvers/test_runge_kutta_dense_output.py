"""Dense output of a Runge-Kutta step is the interpolant, and its transpose autograd's through it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from problems import Recorder, TanhField
from references import relative
from tableau_references import ROUNDING, H, T, every_dense, on_paper, two_rows
from torch import Tensor
from torch.func import jvp

from adjoint_meta.solvers import ButcherTableau, RungeKutta, Step
from adjoint_meta.solvers.runge_kutta import combine


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
