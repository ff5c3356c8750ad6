"""The stability polynomial of RKC is the closed form, bounded on the interval that its stages are chosen by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from chebyshev_references import DAMPING, Diagonal, constants, drawn, rkc
from problems import LinearField, symmetric

from adjoint_meta.solvers.chebyshev import Chebyshev, interval

DAMPINGS = (0.0, DAMPING, 1.0, 10.0, 20.0)
# Of R, divided by s²: T_s has slope s² at the end of the interval, by which the rounding of w1 is multiplied.
ROUNDING = 3e-13


def polynomial(stages: int, damping: float, z: np.ndarray) -> np.ndarray:
    """R(z) = a_s + b_s T_s(w0 + w1 z), with T_s by cos and cosh."""
    w0, w1, a, b, _ = constants(stages, damping)
    x = w0 + w1 * z
    inside = np.cos(stages * np.arccos(np.clip(x, -1, 1)))
    outside = np.sign(x) ** stages * np.cosh(stages * np.arccosh(np.maximum(np.abs(x), 1)))
    return a[-1] + b[-1] * np.where(np.abs(x) <= 1, inside, outside)


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
