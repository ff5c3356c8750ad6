"""`solver="auto"`: the tolerance is one on the meta-gradient itself."""

from __future__ import annotations

import copy

import pytest
import torch
from flow_references import Watched, concatenated, quadratic_flow, through_taken_steps, through_the_flow
from problems import Quadratic, half_squares, mlp, quadratic, regression
from references import relative, through_every_step
from torch import nn

from adjoint_meta import AdjointMAML, MetaLearner, SolverError, TaskBatch
from adjoint_meta.inner_solvers import choose
from adjoint_meta.solvers import TABLEAUS

mse = nn.functional.mse_loss
every_tolerance = pytest.mark.parametrize("rtol", [1e-2, 1e-3])


def error(model: nn.Module, tasks: TaskBatch, horizon: float, rtol: float) -> float:
    """How far the meta-gradient is from the flow's."""
    method = AdjointMAML(horizon=horizon, solver="auto", rtol=rtol)
    found = MetaLearner(model, mse, method).meta_gradient(tasks)
    expected = through_the_flow(model, mse, tasks, horizon=horizon, steps=int(20 * max(1.0, horizon)))
    names = list(expected.grad)
    return relative(concatenated(found.grad, names), concatenated(expected.grad, names))


def draws(count: int):
    """Networks and tasks to try; the seeds are nothing special."""
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        yield mlp(generator), regression(generator, points=8)


@every_tolerance
def test_short_flows_of_networks_meet_it(rtol):
    for model, tasks in draws(3):
        assert error(model, tasks, 0.5, rtol) < 3 * rtol


@every_tolerance
def test_long_flows_of_networks_meet_it(rtol):
    for model, tasks in draws(2):
        assert error(model, tasks, 5.0, rtol) < 3 * rtol


def stiff(generator: torch.Generator, top: float) -> Quadratic:
    """Three quadratic tasks; the largest eigenvalue of the first is given, that of the second is half of it."""
    tasks = quadratic(generator)
    eigenvalues, basis = torch.linalg.eigh(tasks.a)
    eigenvalues[:, -1] = torch.tensor([top, top / 2, 1.0])
    return tasks._replace(a=basis @ (eigenvalues[:, :, None] * basis.mT))


@every_tolerance
@pytest.mark.parametrize("horizon", [0.5, 5.0])
@pytest.mark.parametrize("top", [1.0, 9.0, 20.0, 100.0])
def test_quadratic_tasks_meet_it(horizon, top, rtol, generator):
    tasks = stiff(generator, top)
    method = AdjointMAML(horizon=horizon, solver="auto", rtol=rtol)
    found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks)
    # Gradients that decay have large relative errors: within three times the tolerance.
    assert relative(found.grad["phi"], quadratic_flow(tasks, horizon).theta) < 3 * rtol
    assert bool((found.stats["stability"] <= 1).all())
    if top > 2:
        choice = choose(top * horizon, rtol)
        assert (found.stats["solver"], found.stats["steps"]) == (choice.solver, choice.steps)


def test_the_solvers_are_all_used(generator):
    used = set()
    for top in (1.0, 20.0, 400.0):
        tasks = stiff(generator, top)
        found = MetaLearner(tasks.model, half_squares, AdjointMAML(solver="auto")).meta_gradient(tasks.tasks)
        used.add(found.stats["solver"])
    assert used == {"rk4", "bosh3", "rkc"}


@pytest.mark.parametrize("horizon", [0.3, 3.0])
def test_the_gradient_is_that_of_the_steps_chosen(horizon, generator):
    model, tasks = mlp(generator), regression(generator)
    options = {"proximal": 0.4, "horizon": horizon}
    learner = MetaLearner(model, mse, AdjointMAML(**options, solver="auto", learn=("horizon", "proximal")), adapt="2.*")
    with pytest.MonkeyPatch.context() as patch:
        watched = Watched(patch)
        found = learner.meta_gradient(tasks)
    solver, steps = found.stats["solver"], found.stats["steps"]
    if steps is not None:
        expected = through_every_step(model, mse, tasks, **options, steps=steps, tableau=TABLEAUS[solver], adapt="2.*")
    else:
        expected = through_taken_steps(model, mse, tasks, solver, watched.steps, **options, adapt="2.*")
    for name in (*expected.grad, "horizon", "proximal"):
        reference = {**expected.grad, **expected.hyper}[name]
        assert relative({**found.grad, **found.hyper}[name], reference) < 1e-9, name


def test_the_default_is_a_hundredth(generator):
    tasks = stiff(generator, 20.0)
    one, other = (
        MetaLearner(tasks.model, half_squares, AdjointMAML(solver="auto", **rtol)).meta_gradient(tasks.tasks)
        for rtol in ({}, {"rtol": 1e-2})
    )
    assert torch.equal(one.grad["phi"], other.grad["phi"]) and one.stats["tolerance"] == other.stats["tolerance"]


@pytest.mark.parametrize("engine", [{"chunk_size": 2}, {"mode": "forward_over_reverse"}], ids=str)
@pytest.mark.parametrize("horizon", [0.3, 2.0])
def test_the_engine_does_not_matter(engine, horizon, generator):
    model, tasks = mlp(generator), regression(generator)
    method = AdjointMAML(horizon=horizon, solver="auto")
    plain = MetaLearner(model, mse, method, adapt="2.*").meta_gradient(tasks)
    other = MetaLearner(model, mse, method, adapt="2.*", **engine).meta_gradient(tasks)
    assert other.stats["solver"] == plain.stats["solver"]
    for name, gradient in plain.grad.items():
        assert relative(other.grad[name], gradient) < 1e-9


@pytest.mark.parametrize("horizon", [0.3, 2.0])
def test_float32_stays_float32(horizon, generator):
    model, tasks = mlp(generator), regression(generator)
    method = AdjointMAML(horizon=horizon, solver="auto", learn=("horizon",))
    exact = MetaLearner(model, mse, method).meta_gradient(tasks)
    found = MetaLearner(copy.deepcopy(model).float(), mse, method).meta_gradient(tasks.to(dtype=torch.float32))
    assert {x.dtype for x in (found.loss, *found.grad.values(), *found.hyper.values())} == {torch.float32}
    assert found.stats["radius"].dtype == found.stats["stability"].dtype == torch.float32
    for name, gradient in exact.grad.items():
        assert relative(found.grad[name].double(), gradient) < 1e-3


def test_losses_that_overflow_are_a_failed_solve(generator):
    model, tasks = mlp(generator), regression(generator)
    with torch.no_grad():
        model[2].weight.fill_(1e160)
    with pytest.raises(SolverError, match=r"inner solve failed in 3 of 3 rows.*finite"):
        MetaLearner(model, mse, AdjointMAML(solver="auto")).meta_gradient(tasks)
