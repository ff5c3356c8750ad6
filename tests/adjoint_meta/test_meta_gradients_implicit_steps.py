"""Implicit steps: one of 1/λ is iMAML, many are the flow, and all of them are differentiated at their solution."""

from __future__ import annotations

import copy

import pytest
import torch
from flow_references import concatenated, proximal_point, through_the_flow
from problems import Forwards, half_squares, mlp, quadratic, regression, signed_squares
from references import Split, derivatives, implicit, relative
from torch import Tensor, nn

from adjoint_meta import AdjointMAML, Batch, ImplicitMAML, MetaLearner, SolverError, TaskBatch

mse = nn.functional.mse_loss
both_solvers = pytest.mark.parametrize("solver", ["implicit_euler", "sdirk2"])


def one_step(proximal: float, **options) -> AdjointMAML:
    return AdjointMAML(horizon=1 / proximal, solver="implicit_euler", steps=1, **options)


# One step of 1/λ is iMAML


@pytest.mark.parametrize("proximal", [0.05, 0.7, 30.0])
@pytest.mark.parametrize("adjoint", ["discrete", "checkpointed"])
def test_one_step_is_the_proximal_point_of_a_quadratic(proximal, adjoint, generator):
    tasks = quadratic(generator)
    phi, expected = proximal_point(tasks, proximal)
    learner = MetaLearner(tasks.model, half_squares, one_step(proximal, adjoint=adjoint))
    assert relative(learner.adapt(tasks.tasks.support), phi) < 1e-9
    assert relative(learner.meta_gradient(tasks.tasks).grad["phi"], expected.mean(dim=0)) < 1e-9


@pytest.mark.parametrize("adapt", [None, "2.*"])
def test_one_step_is_imaml_on_a_network(adapt, generator):
    model, tasks, proximal = mlp(generator), regression(generator), 5.0
    tight = ImplicitMAML(proximal=proximal, steps=1500, inner_lr=0.05, cg_steps=50, cg_tol=1e-14)
    other = MetaLearner(model, mse, tight, adapt=adapt).meta_gradient(tasks)
    found = MetaLearner(model, mse, one_step(proximal), adapt=adapt).meta_gradient(tasks)
    assert relative(found.loss, other.loss) < 1e-9
    for name, gradient in other.grad.items():
        assert relative(found.grad[name], gradient) < 1e-8, name


def newton(proximal: float, split: Split, support: tuple[Tensor, Tensor], theta: Tensor) -> Tensor:
    """The proximal point by dense Newton steps."""
    phi = theta
    for _ in range(30):
        found = derivatives(split, mse, phi, *support)
        residual = found.gradient + proximal * (phi - theta)
        phi = phi - torch.linalg.solve(found.hessian + proximal * torch.eye(len(phi)), residual)
    return phi


def test_one_step_is_imaml_with_dense_matrices(generator):
    # Independent of everything in the package: Newton's method, and (I + H/λ)⁻¹ c by a dense solve.
    model, tasks, proximal = mlp(generator), regression(generator), 5.0
    split, supports = Split(model, "2.*"), iter(zip(tasks.support.x, tasks.support.y, strict=True))
    expected = implicit(
        model,
        mse,
        tasks,
        proximal=proximal,
        adapt="2.*",
        descend=lambda _gradient, theta: newton(proximal, split, next(supports), theta),
        solve=lambda h, c: torch.linalg.solve(torch.eye(len(c)) + h / proximal, c),
    )
    found = MetaLearner(model, mse, one_step(proximal, learn=("horizon",)), adapt="2.*").meta_gradient(tasks)
    for name, gradient in expected.grad.items():
        assert relative(found.grad[name], gradient) < 1e-8, name
    # h = 1/λ: dJ/dh = −λ² dJ/dλ
    assert relative(found.hyper["horizon"], -(proximal**2) * expected.hyper["proximal"]) < 1e-8


def test_a_proximal_term_adds_to_that_of_the_step(generator):
    # min L + ½λ‖φ − θ‖² + ½‖φ − θ‖²/h: one step with a proximal term is iMAML of λ + 1/h.
    tasks = quadratic(generator)
    phi, expected = proximal_point(tasks, 0.7 + 1 / 2.0)
    method = AdjointMAML(horizon=2.0, solver="implicit_euler", steps=1, proximal=0.7)
    learner = MetaLearner(tasks.model, half_squares, method)
    assert relative(learner.adapt(tasks.tasks.support), phi) < 1e-9
    assert relative(learner.meta_gradient(tasks.tasks).grad["phi"], expected.mean(dim=0)) < 1e-9


# Many steps are the flow


@both_solvers
def test_many_steps_are_the_flow_of_a_network(solver, generator):
    model, tasks = mlp(generator), regression(generator)
    options = {"horizon": 1.0, "proximal": 0.6}
    expected = through_the_flow(model, mse, tasks, steps=40, adapt="2.*", **options)
    names, errors = [*expected.grad, "horizon", "proximal"], []
    for n in (8, 16):
        method = AdjointMAML(**options, solver=solver, steps=n, learn=("horizon", "proximal"))
        found = MetaLearner(model, mse, method, adapt="2.*").meta_gradient(tasks)
        errors.append(
            relative(
                concatenated({**found.grad, **found.hyper}, names),
                concatenated({**expected.grad, **expected.hyper}, names),
            )
        )
    # Halving the steps halves the error of order 1 and quarters that of order 2.
    order = {"implicit_euler": 1, "sdirk2": 2}[solver]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)
    assert errors[1] < {"implicit_euler": 0.1, "sdirk2": 0.02}[solver]


@both_solvers
def test_steps_far_outside_any_explicit_interval_are_stable(solver, generator):
    # h‖A‖ = 2000, and no warning; both methods are L-stable, so that steep directions are at their minimum.
    tasks = quadratic(generator)
    tasks = tasks._replace(a=tasks.a * 1000)
    method = AdjointMAML(horizon=2.0, solver=solver, steps=2)
    learner = MetaLearner(tasks.model, half_squares, method)
    assert relative(learner.adapt(tasks.tasks.support), tasks.b) < 1e-2
    found = learner.meta_gradient(tasks.tasks)
    assert float(found.stats["stability"].max()) <= 1
    assert float(found.grad["phi"].norm()) < 1e-2


# What they cost, and how they fail


@both_solvers
def test_products_share_one_forward_pass_a_newton_step(solver, generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, AdjointMAML(solver=solver, steps=3))
    learner.meta_gradient(tasks)
    before, stats = learner.evaluations.n_loss, {}
    calls = Forwards(model).during(lambda: stats.update(learner.meta_gradient(tasks).stats))
    losses, stages = learner.evaluations.n_loss - before, {"implicit_euler": 1, "sdirk2": 2}[solver]
    # Of the products only one a stage, which finds ∂f/∂ψ and the rest, has a forward pass of its own.
    assert calls == stats["n_grad"] + losses + 3 * stages
    assert stats["n_hvp"] > 3 * stages


@both_solvers
def test_a_task_does_not_see_the_others(solver, generator):
    model, tasks = mlp(generator), regression(generator)
    hard = TaskBatch(
        Batch(tasks.support.x * torch.tensor([1.0, 5.0, 0.2])[:, None, None], tasks.support.y), tasks.query
    )
    method = AdjointMAML(horizon=2.0, solver=solver, steps=2)
    together = MetaLearner(model, mse, method).meta_gradient(hard)
    alone = [MetaLearner(model, mse, method).meta_gradient(hard[i : i + 1]) for i in range(3)]
    for name, gradient in together.grad.items():
        # Newton's method and CG stop a row at a time, to 1e-10.
        assert relative(gradient, torch.stack([found.grad[name] for found in alone]).mean(dim=0)) < 1e-8


@both_solvers
@pytest.mark.parametrize("engine", [{"chunk_size": 2}, {"mode": "forward_over_reverse"}], ids=str)
def test_the_engine_does_not_matter(solver, engine, generator):
    model, tasks = mlp(generator), regression(generator)
    method = AdjointMAML(solver=solver, steps=2, learn=("horizon",))
    plain = MetaLearner(model, mse, method, adapt="2.*").meta_gradient(tasks)
    other = MetaLearner(model, mse, method, adapt="2.*", **engine).meta_gradient(tasks)
    for name, gradient in (*plain.grad.items(), *plain.hyper.items()):
        assert relative({**other.grad, **other.hyper}[name], gradient) < 1e-8, name


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@both_solvers
def test_float32_stays_float32(solver, default, generator):
    model, tasks = mlp(generator), regression(generator)
    method = AdjointMAML(solver=solver, steps=3, proximal=0.5, learn=("horizon", "proximal"))
    exact = MetaLearner(model, mse, method).meta_gradient(tasks)
    torch.set_default_dtype(default)
    learner = MetaLearner(copy.deepcopy(model).float(), mse, method)
    found = learner.meta_gradient(tasks.to(dtype=torch.float32))
    assert {x.dtype for x in (found.loss, *found.grad.values(), *found.hyper.values())} == {torch.float32}
    assert found.stats["stability"].dtype == torch.float32
    for name, gradient in exact.grad.items():
        assert relative(found.grad[name].double(), gradient) < 1e-4


def test_a_saddle_is_no_place_to_differentiate(generator):
    # L = ½φᵀ diag(1, −2) φ: with h = 1 the proximal objective has no minimum, so that no step can end well.
    x = torch.eye(2).expand(3, 2, 2)
    y = torch.stack([torch.zeros(3, 2), torch.tensor([1.0, -2.0]).expand(3, 2)], dim=2)
    model = quadratic(generator, size=2).model
    learner = MetaLearner(model, signed_squares, AdjointMAML(horizon=1.0, solver="implicit_euler", steps=1))
    with pytest.raises(SolverError, match=r"inner solve failed in 3 of 3 rows.*(Newton|negative curvature)"):
        learner.meta_gradient(TaskBatch(Batch(x, y), Batch(x, y)))
    # Where 1/h beats the negative curvature, the step is the closed form (I + hA)⁻¹θ.
    short = AdjointMAML(horizon=0.4, solver="implicit_euler", steps=1)
    phi = MetaLearner(model, signed_squares, short).adapt(Batch(x, y))
    expected = model.phi.detach() / (1 + 0.4 * torch.tensor([1.0, -2.0]))
    assert relative(phi, expected.expand(3, 2)) < 1e-9
