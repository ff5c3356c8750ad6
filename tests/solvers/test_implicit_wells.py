"""Where the potential is not convex, implicit steps descend and end at a minimum of the proximal objective."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from implicit_problems import (
    BUTCHER,
    GAMMA,
    KINDS,
    TIGHT,
    Gradient,
    H,
    WithPotential,
    draw,
    every_kind,
    every_method,
    some_wells,
)
from torch import Tensor

from adjoint_meta.solvers import SDIRK2, ImplicitEuler, Status
from adjoint_meta.solvers.newton_cg import Stage, newton_cg


def objective(field: Gradient, t: float, c: float, b: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (y - b).square().sum(dim=1) + c * field.energy(t, y, *field.parameters)


def proximal_hessian(field: Gradient, c: float, y: Tensor) -> Tensor:
    """I + c ∇²E of the double wells, [rows, P, P]."""
    (coupling,) = field.parameters
    return torch.eye(y.shape[1]) + c * (torch.diag_embed(3 * y.square() - 1) + coupling)


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
