"""What an implicit step costs: few Newton steps, cheap at first, and no evaluation or product in vain."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from implicit_problems import (
    BUTCHER,
    Gradient,
    H,
    Linearising,
    T,
    WithPotential,
    convex,
    draw,
    every_kind,
    every_method,
    some_convex,
)
from problems import LinearField, symmetric
from references import relative

from adjoint_meta.solvers import ImplicitEuler, Status
from adjoint_meta.solvers.newton_cg import Stage, newton_cg


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
