"""A flow without end: where it rests, iMAML's derivative, and that of a convex head."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from flow_references import proximal_point
from problems import half_squares, mlp, quadratic, regression, signed_squares
from references import Split, central_difference, derivatives, relative
from torch import nn
from torch.func import grad

from adjoint_meta import AdjointMAML, Batch, ImplicitMAML, MetaLearner, SolverError, TaskBatch

mse = nn.functional.mse_loss
every_solver = pytest.mark.parametrize("solver", ["heun", "bosh3", "dopri5", "tsit5", "rkc"])


def rest(solver: str = "dopri5", **options) -> AdjointMAML:
    # heun is adaptive only when told a tolerance.
    return AdjointMAML(horizon=math.inf, solver=solver, **{"rtol": 1e-3, "steady_tol": 1e-9, **options})


@every_solver
@pytest.mark.parametrize("proximal", [0.3, 5.0])
def test_a_proximal_flow_without_end_is_imaml_in_closed_form(solver, proximal, generator):
    tasks = quadratic(generator)
    phi, expected = proximal_point(tasks, proximal)
    learner = MetaLearner(tasks.model, half_squares, rest(solver, proximal=proximal))
    assert relative(learner.adapt(tasks.tasks.support), phi) < 1e-8
    # What is left is CG's tolerance of 1e-6.
    assert relative(learner.meta_gradient(tasks.tasks).grad["phi"], expected.mean(dim=0)) < 1e-5


@pytest.mark.parametrize("adapt", [None, "2.*"])
def test_a_proximal_flow_without_end_is_imaml_on_a_network(adapt, generator):
    model, tasks, proximal = mlp(generator), regression(generator), 5.0
    tight = ImplicitMAML(proximal=proximal, steps=1500, inner_lr=0.05, cg_steps=50, cg_tol=1e-14, learn=("proximal",))
    expected = MetaLearner(model, mse, tight, adapt=adapt).meta_gradient(tasks)
    found = MetaLearner(model, mse, rest(proximal=proximal, learn=("proximal",)), adapt=adapt).meta_gradient(tasks)
    assert relative(found.loss, expected.loss) < 1e-8
    for name, gradient in (*expected.grad.items(), *expected.hyper.items()):
        assert relative({**found.grad, **found.hyper}[name], gradient) < 1e-5, name


def test_the_gradient_in_lambda_against_finite_differences(generator):
    model, tasks = mlp(generator), regression(generator)

    def loss(proximal: torch.Tensor) -> float:
        return float(MetaLearner(model, mse, rest(proximal=float(proximal))).query_losses(tasks).mean())

    found = MetaLearner(model, mse, rest(proximal=3.0, learn=("proximal",))).meta_gradient(tasks)
    # φ(∞) is found to 1e-9, the step is 1e-3: 1e-6.
    assert relative(found.hyper["proximal"], central_difference(loss, torch.tensor(3.0), h=1e-3)) < 1e-5


def test_a_convex_head_by_the_implicit_function_theorem(generator):
    # A linear head on features of its own: the normal equations, and dJ/dψ = ∂L_q − (∂²L_s)ᵀ H⁻¹ c with dense matrices.
    model, tasks = mlp(generator, hidden=3), regression(generator, points=12)
    split = Split(model, "2.*")
    psi, losses = torch.zeros_like(split.psi), []
    for i in range(3):
        x, y = tasks.support.x[i], tasks.support.y[i]
        features = torch.cat([torch.tanh(model[0](x)), torch.ones(len(x), 1)], dim=1).detach()
        phi = torch.linalg.lstsq(features, y).solution[:, 0]
        dense = derivatives(split, mse, phi, x, y)

        def query(p, q, i=i):
            return mse(split.predict(p, q, tasks.query.x[i]), tasks.query.y[i])

        direct, cotangent = grad(query, 1)(phi, split.psi), grad(query)(phi, split.psi)
        psi += (direct - dense.mixed.T @ torch.linalg.solve(dense.hessian, cotangent)) / 3
        losses.append(query(phi, split.psi))
    expected = split.named(torch.zeros_like(split.theta), psi)
    learner = MetaLearner(model, mse, rest("rkc", steady_tol=1e-7), adapt="2.*")
    found = learner.meta_gradient(tasks)
    assert relative(found.loss, torch.stack(losses).detach()) < 1e-4
    for name in ("0.weight", "0.bias"):
        assert relative(found.grad[name], expected[name]) < 1e-3, name
    # Where the head started does not matter.
    for name in ("2.weight", "2.bias"):
        assert torch.equal(found.grad[name], torch.zeros_like(found.grad[name]))


def test_without_anything_to_learn_it_is_refused(generator):
    tasks = quadratic(generator)
    learner = MetaLearner(tasks.model, half_squares, rest())
    for call in (learner.meta_gradient, learner):
        with pytest.raises(ValueError, match=r"does not depend on θ.*set proximal, or adapt only some"):
            call(tasks.tasks)
    # The minimum itself can be had.
    assert relative(learner.adapt(tasks.tasks.support), tasks.b) < 1e-7


def test_the_state_is_as_still_as_asked(generator):
    model, tasks = mlp(generator), regression(generator)
    for steady_tol in (1e-2, 1e-5, 1e-8):
        method = AdjointMAML(horizon=math.inf, solver="dopri5", proximal=2.0, steady_tol=steady_tol)
        learner = MetaLearner(model, mse, method)
        phi, theta = learner.adapt(tasks.support), learner.initial(3)
        slope = learner.support_problem(tasks.support).gradient(phi) + 2.0 * (phi - theta)
        size = torch.linalg.vector_norm(slope, dim=1)
        assert bool((size <= steady_tol).all()) and float(size.max()) > steady_tol / 1e3
    # The default.
    assert AdjointMAML(horizon=math.inf, solver="dopri5").steady_tol == 1e-5


def test_a_task_does_not_see_the_others(generator):
    tasks = quadratic(generator)
    tasks = tasks._replace(a=tasks.a * torch.tensor([0.1, 30.0, 2.0])[:, None, None])
    _, expected = proximal_point(tasks, 0.7)
    for i in range(3):
        alone = MetaLearner(tasks.model, half_squares, rest(proximal=0.7)).meta_gradient(tasks.tasks[i : i + 1])
        assert relative(alone.grad["phi"], expected[i]) < 1e-5
    together = MetaLearner(tasks.model, half_squares, rest(proximal=0.7)).meta_gradient(tasks.tasks)
    assert relative(together.grad["phi"], expected.mean(dim=0)) < 1e-5
    assert len(set(together.stats["accepted"].tolist())) > 1


def test_nothing_of_the_way_is_differentiated(generator):
    model, tasks = mlp(generator), regression(generator)
    found = MetaLearner(model, mse, rest(proximal=3.0)).meta_gradient(tasks)
    stats = found.stats
    # Of the HVPs some keep the steps stable; CG's are as many as its slowest task needs, and one finds all the rest.
    solve = int(stats["cg_iterations"].max()) + 1
    assert 0 < solve < 20 and stats["n_hvp"] - solve < stats["n_grad"] / 4
    assert bool((stats["cg_residual"] <= 1e-6).all())
    assert torch.equal(stats["rejected"], torch.zeros_like(stats["rejected"]))


@pytest.mark.parametrize("engine", [{"chunk_size": 2}, {"mode": "forward_over_reverse"}], ids=str)
def test_the_engine_does_not_matter(engine, generator):
    model, tasks = mlp(generator), regression(generator)
    method = AdjointMAML(horizon=math.inf, solver="bosh3", proximal=3.0, learn=("proximal",))
    plain = MetaLearner(model, mse, method, adapt="2.*").meta_gradient(tasks)
    other = MetaLearner(model, mse, method, adapt="2.*", **engine).meta_gradient(tasks)
    for name, gradient in (*plain.grad.items(), *plain.hyper.items()):
        assert relative({**other.grad, **other.hyper}[name], gradient) < 1e-9, name


@pytest.mark.parametrize("solver", ["bosh3", "dopri5", "tsit5", "rkc"])
def test_float32_stays_float32(solver, generator):
    model, tasks = mlp(generator), regression(generator)
    method = AdjointMAML(horizon=math.inf, solver=solver, proximal=2.0, learn=("proximal",))
    exact = MetaLearner(model, mse, method).meta_gradient(tasks)
    found = MetaLearner(copy.deepcopy(model).float(), mse, method).meta_gradient(tasks.to(dtype=torch.float32))
    assert {x.dtype for x in (found.loss, *found.grad.values(), *found.hyper.values())} == {torch.float32}
    for name, gradient in exact.grad.items():
        assert relative(found.grad[name].double(), gradient) < 1e-4


def test_a_flow_that_never_rests_is_a_failed_solve(generator):
    # L = −½φ²: nothing holds it.
    x, y = torch.ones(2, 1, 1), torch.tensor([0.0, -1.0]).expand(2, 1, 2)
    tasks = TaskBatch(Batch(x, y), Batch(x, y))
    learner = MetaLearner(quadratic(generator, size=1).model, signed_squares, rest(proximal=0.5))
    with pytest.raises(SolverError, match="inner solve failed in 2 of 2 rows"):
        learner.meta_gradient(tasks)


def test_learned_rates_are_refused():
    # With rates D the Jacobian −(DH + λI) is not symmetric; implicit steps refuse them for that.
    with pytest.raises(ValueError, match="learned rates make the flow's Jacobian unsymmetric"):
        rest(proximal=0.7, learn=("rates",))
