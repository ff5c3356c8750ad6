"""Inside the stability interval the meta-gradient is that of the flow; outside, the solve says so."""

from __future__ import annotations

import warnings

import pytest
import torch
from flow_references import quadratic_flow
from problems import Quadratic, half_squares, mlp, quadratic, regression
from references import relative
from torch import nn

from adjoint_meta import MAML, AdjointMAML, Batch, MetaLearner, TaskBatch

mse = nn.functional.mse_loss

# The lengths of the real stability intervals, where |R(−x)| of 1 − x, 1 − x + x²/2, … passes 1 (Hairer, Wanner II).
LIMITS = {"euler": 2.0, "midpoint": 2.0, "heun": 2.0, "bosh3": 2.5127, "rk4": 2.7853, "dopri5": 3.3066}
WARNING = "the inner steps left the stability interval in {} of 3 tasks"


def stiff(generator: torch.Generator, tops: tuple[float, ...]) -> Quadratic:
    """Quadratic tasks whose ‖A‖ are given, the other eigenvalues between 0.2 and 2."""
    tasks = quadratic(generator, tasks=len(tops))
    eigenvalues, basis = torch.linalg.eigh(tasks.a)
    eigenvalues[:, -1] = torch.tensor(tops)
    return tasks._replace(a=basis @ (eigenvalues[:, :, None] * basis.mT))


@pytest.mark.parametrize("solver", LIMITS)
@pytest.mark.parametrize("adjoint", ["discrete", "checkpointed"])
def test_equal_steps_outside_are_reported(solver, adjoint, generator):
    # h = 0.1: two tasks at 1.3 and 1.1 of the limit, one at half of it.
    limit = LIMITS[solver]
    tasks = stiff(generator, (13 * limit, 5 * limit, 11 * limit))
    learner = MetaLearner(tasks.model, half_squares, AdjointMAML(horizon=3.0, solver=solver, steps=30, adjoint=adjoint))
    with pytest.warns(RuntimeWarning, match=WARNING.format(2)) as caught:
        stability = learner.meta_gradient(tasks.tasks).stats["stability"]
    assert len(caught) == 1 and "Take more steps, a shorter horizon, or an adaptive solver" in str(caught[0].message)
    # Products bound ‖A‖ from below, the better the longer the transposed steps amplify.
    assert stability[[0, 2]].tolist() == pytest.approx([1.3, 1.1], rel=0.03)
    assert bool((stability <= torch.tensor([1.3, 0.5, 1.1]) + 1e-4).all())
    assert f"{float(stability.max()):.2f} of its limit" in str(caught[0].message)


@pytest.mark.parametrize("solver", LIMITS)
def test_equal_steps_inside_are_not(solver, generator):
    limit = LIMITS[solver]
    tasks = stiff(generator, (9.9 * limit, 5 * limit, 1 * limit))
    learner = MetaLearner(tasks.model, half_squares, AdjointMAML(horizon=3.0, solver=solver, steps=30))
    # Warnings are errors in these tests.
    stability = learner.meta_gradient(tasks.tasks).stats["stability"]
    assert bool((stability <= torch.tensor([0.99, 0.5, 0.1]) + 1e-4).all()) and bool((stability > 0).all())
    assert stability.shape == (3,)


def test_the_backward_pass_warns_too(generator):
    tasks = stiff(generator, (30.0, 30.0, 30.0))
    learner = MetaLearner(tasks.model, half_squares, AdjointMAML(horizon=2.0, solver="euler", steps=20))
    with pytest.warns(RuntimeWarning, match=WARNING.format(3)):
        learner(tasks.tasks)
    # Without a gradient there is nothing to distrust.
    with torch.no_grad():
        learner(tasks.tasks)
    learner.adapt(tasks.tasks.support)


def test_descent_is_not_measured_against_a_flow(generator):
    # MAML's meta-gradient is that of its steps, whatever the flow does; how far they reach is in the statistics.
    tasks = stiff(generator, (30.0, 20.0, 10.0))
    found = MetaLearner(tasks.model, half_squares, MAML(steps=30, inner_lr=0.1)).meta_gradient(tasks.tasks)
    assert found.stats["stability"][:2].tolist() == pytest.approx([1.5, 1.0], rel=0.03)
    assert float(found.stats["stability"][2]) <= 0.5


@pytest.mark.parametrize("solver", ["heun", "bosh3", "dopri5", "tsit5", "rkc"])
@pytest.mark.parametrize("adjoint", ["discrete", "checkpointed"])
def test_adaptive_steps_stay_inside(solver, adjoint, generator):
    # The error of φ(T) alone would let dopri5 work at the edge of its interval and beyond.
    tasks = stiff(generator, (50.0, 10.0, 2.0))
    method = AdjointMAML(horizon=4.0, solver=solver, rtol=1e-2, adjoint=adjoint)
    found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks)
    assert bool((found.stats["stability"] <= 1).all())
    # ‖A‖ is estimated from below; nearly all of it is found.
    assert found.stats["radius"].tolist() == pytest.approx([50.0, 10.0, 2.0], rel=0.1)
    assert bool((found.stats["radius"] <= torch.tensor([50.0, 10.0, 2.0]) * (1 + 1e-9)).all())
    expected = quadratic_flow(tasks, 4.0)
    assert relative(found.grad["phi"], expected.theta) < 0.3


@pytest.mark.parametrize("stages", [2, 5, 20])
def test_stages_of_rkc_reach_as_far_as_they_must(stages, generator):
    # About 0.65 s² for s stages, of which nine tenths are used.
    top = 0.55 * stages**2
    tasks = stiff(generator, (top, top / 2, 0.1))
    method = AdjointMAML(horizon=3.0, solver="rkc", steps=3)
    found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks)
    assert bool((found.stats["stability"] <= 1).all())
    assert found.stats["evaluations"][0] <= 3 * (stages + 1)
    assert found.stats["evaluations"][0] >= 3 * (stages - 1)
    # An eigenvalue of 2 is left in the third task: three stages a step.
    assert int(found.stats["evaluations"][2]) == 9


def test_implicit_steps_have_no_limit(generator):
    tasks = stiff(generator, (500.0, 50.0, 0.5))
    for solver in ("implicit_euler", "sdirk2"):
        method = AdjointMAML(horizon=2.0, solver=solver, steps=2)
        found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks)
        assert torch.equal(found.stats["stability"], torch.zeros(3))


def test_an_interpolated_costate_has_a_limit_of_its_own(generator):
    # Heun's method steps the costate of rkc, over steps that only rkc survives.
    tasks = stiff(generator, (50.0, 1.0, 1.0))
    method = AdjointMAML(horizon=1.0, solver="rkc", steps=3, adjoint="interpolating")
    with pytest.warns(RuntimeWarning, match=WARNING.format(1)):
        stability = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks).stats["stability"]
    assert float(stability[0]) == pytest.approx(50 / 3 / 2, rel=0.05)


@pytest.mark.parametrize("solver", ["dopri5", "rkc"])
def test_a_network_whose_stiffness_changes_on_the_way(solver, generator):
    # Large inputs: the Hessian at φ(T) is not that at θ. Rarely is an estimate late, and then the solve says so.
    model, tasks = mlp(generator, hidden=8), regression(generator, tasks=4, points=10)
    hard = TaskBatch(Batch(4 * tasks.support.x, tasks.support.y), tasks.query)
    learner = MetaLearner(model, mse, AdjointMAML(horizon=5.0, solver=solver, rtol=1e-2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stability = learner.meta_gradient(hard).stats["stability"]
    assert bool((stability > 1).any()) == bool(caught)
    assert float(stability.max()) > 0.5
