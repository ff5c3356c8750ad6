"""Continuous adjoints: the flow's meta-gradient in the limit, not that of the steps, and a guard against drift."""

from __future__ import annotations

import copy

import pytest
import torch
from flow_references import concatenated, quadratic_flow, through_the_flow
from problems import half_squares, mlp, quadratic, regression
from references import STEPS, order_of_convergence, relative
from torch import nn

from adjoint_meta import AdjointMAML, MetaLearner, SolverError
from adjoint_meta.solvers import TABLEAUS

mse = nn.functional.mse_loss
both_adjoints = pytest.mark.parametrize("adjoint", ["interpolating", "backsolve"])


@pytest.mark.parametrize("solver", TABLEAUS)
def test_the_costate_of_quadratic_tasks_converges_at_its_order(solver, generator):
    # Their Hessian is the same along the whole trajectory, so that only the costate's own order counts.
    tasks, order = quadratic(generator), TABLEAUS[solver].order
    expected, errors = quadratic_flow(tasks, 1.5), []
    for n in STEPS[order]:
        method = AdjointMAML(horizon=1.5, solver=solver, steps=n, adjoint="interpolating")
        found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks)
        errors.append(relative(found.grad["phi"], expected.theta))
    assert order_of_convergence(STEPS[order], errors) == pytest.approx(order, abs=0.15)


ORDERS = {**{name: min(tableau.order, 4) for name, tableau in TABLEAUS.items()}, "sdirk2": 2, "implicit_euler": 1}


@pytest.mark.parametrize("solver", ORDERS)
@both_adjoints
def test_every_gradient_of_a_network_converges(solver, adjoint, generator):
    # Heun's method steps the costate of the implicit ones, and cubic polynomials lie between the states.
    model, tasks = mlp(generator), regression(generator)
    options = {"horizon": 0.4, "proximal": 0.6}
    expected = through_the_flow(model, mse, tasks, steps=40, adapt="2.*", **options)
    learn = ("horizon", "proximal") if solver in ("implicit_euler", "sdirk2") else ("horizon", "proximal", "rates")
    names, errors, order = [*expected.grad, *learn], [], ORDERS[solver]
    steps = (40, 80) if solver == "euler" else {1: (20, 40), 2: (10, 20), 3: (8, 16), 4: (6, 12)}[order]
    for n in steps:
        # A state rebuilt from φ(T) by Euler's method would drift too far from θ; every state is an anchor.
        anchors = {"snapshots": n} if adjoint == "backsolve" else {}
        method = AdjointMAML(**options, **anchors, solver=solver, steps=n, adjoint=adjoint, learn=learn)
        found = MetaLearner(model, mse, method, adapt="2.*").meta_gradient(tasks)
        errors.append(
            relative(
                concatenated({**found.grad, **found.hyper}, names),
                concatenated({**expected.grad, **expected.hyper}, names),
            )
        )
    assert errors[1] < 0.1
    assert errors[0] / errors[1] > 2 ** (order - 0.4)


@pytest.mark.parametrize("solver", ["bosh3", "dopri5", "tsit5", "rkc"])
def test_adaptive_trajectories_are_interpolated(solver, generator):
    model, tasks = mlp(generator), regression(generator)
    expected = through_the_flow(model, mse, tasks, horizon=0.4, steps=40)
    names, errors = list(expected.grad), []
    for rtol in (1e-2, 1e-4):
        method = AdjointMAML(horizon=0.4, solver=solver, rtol=rtol, adjoint="interpolating")
        found = MetaLearner(model, mse, method).meta_gradient(tasks)
        errors.append(relative(concatenated(found.grad, names), concatenated(expected.grad, names)))
    assert errors[0] < 0.2 and errors[1] < 0.03
    assert errors[1] < errors[0]


def test_it_is_not_the_gradient_of_the_steps(generator):
    model, tasks = mlp(generator), regression(generator)
    discrete, interpolating, backsolve = (
        MetaLearner(model, mse, AdjointMAML(horizon=0.2, solver="heun", steps=8, adjoint=adjoint)).meta_gradient(tasks)
        for adjoint in ("discrete", "interpolating", "backsolve")
    )
    for found in (interpolating, backsolve):
        # One solve forward, whatever the adjoint; the ways back differ.
        assert torch.equal(found.loss, discrete.loss)
        assert 1e-6 < relative(found.grad["0.weight"], discrete.grad["0.weight"]) < 0.1


def test_what_they_cost(generator):
    model, tasks = mlp(generator), regression(generator)
    for adjoint in ("interpolating", "backsolve"):
        method = AdjointMAML(horizon=0.2, solver="heun", steps=8, adjoint=adjoint)
        stats = MetaLearner(model, mse, method).meta_gradient(tasks).stats
        # Heun's nodes are the ends of the steps, so that nothing has to be interpolated; products give f as well.
        assert (stats["n_grad"], stats["n_hvp"]) == (2 * 8 + 1, 2 * 8)


def test_a_long_way_back_is_refused_and_its_advice_works(generator):
    tasks = quadratic(generator)
    tasks = tasks._replace(a=tasks.a * 4)
    options = {"horizon": 5.0, "solver": "rk4", "steps": 60}
    with pytest.raises(SolverError, match=r"drifted in \d of 3 rows.*use the discrete or checkpointed adjoint"):
        MetaLearner(tasks.model, half_squares, AdjointMAML(**options, adjoint="backsolve")).meta_gradient(tasks.tasks)
    expected = quadratic_flow(tasks, 5.0).theta
    anchored = AdjointMAML(**options, adjoint="backsolve", snapshots=59)
    for method in (anchored, AdjointMAML(**options), AdjointMAML(**options, adjoint="checkpointed")):
        found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks)
        assert relative(found.grad["phi"], expected) < 0.02


@both_adjoints
@pytest.mark.parametrize("setting", [{"steps": 8}, {"rtol": 1e-4}], ids=str)
def test_float32_and_chunks(adjoint, setting, generator):
    model, tasks = mlp(generator), regression(generator)
    method = AdjointMAML(horizon=0.3, solver="dopri5", **setting, adjoint=adjoint, learn=("horizon", "rates"))
    plain = MetaLearner(model, mse, method, adapt="2.*").meta_gradient(tasks)
    chunked = MetaLearner(model, mse, method, adapt="2.*", chunk_size=2).meta_gradient(tasks)
    found = MetaLearner(copy.deepcopy(model).float(), mse, method, adapt="2.*").meta_gradient(
        tasks.to(dtype=torch.float32)
    )
    assert {x.dtype for x in (found.loss, *found.grad.values(), *found.hyper.values())} == {torch.float32}
    for name, gradient in (*plain.grad.items(), *plain.hyper.items()):
        assert relative({**chunked.grad, **chunked.hyper}[name], gradient) < 1e-10, name
        assert relative({**found.grad, **found.hyper}[name].double(), gradient) < 1e-4, name
