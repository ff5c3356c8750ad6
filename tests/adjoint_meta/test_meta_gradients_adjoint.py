"""A-MAML: the exact flow in the limit, the quadratures beside the costate, and the link to iMAML."""

from __future__ import annotations

import pytest
import torch
from problems import half_squares, mlp, quadratic, regression
from references import (
    STEPS,
    central_difference,
    difference_quotient,
    matrix_exponential,
    order_of_convergence,
    relative,
    rows_times,
    through_every_step,
)
from torch import nn

from adjoint_meta import MAML, AdjointMAML, ImplicitMAML, MetaLearner
from adjoint_meta.solvers import TABLEAUS

mse = nn.functional.mse_loss
every_solver = pytest.mark.parametrize("solver", TABLEAUS)

# Identity 2: every solver converges to the flow's meta-gradient expm(−AT) c, at its order


@every_solver
@pytest.mark.parametrize("adjoint", ["discrete", "checkpointed"])
def test_meta_gradient_of_the_flow_on_quadratic_tasks(solver, adjoint, generator):
    tasks, horizon, steps = quadratic(generator), 1.5, STEPS[TABLEAUS[solver].order]
    propagator = matrix_exponential(-horizon * tasks.a)
    phi = tasks.b + rows_times(propagator, tasks.theta - tasks.b)
    cotangent = tasks.cotangent(phi)
    expected = rows_times(propagator, cotangent).mean(dim=0)
    # dJ/dT = ⟨c, f(φ(T))⟩
    duration = (cotangent * -rows_times(tasks.a, phi - tasks.b)).sum(dim=1).mean()
    errors, time_errors = [], []
    for n in steps:
        method = AdjointMAML(horizon=horizon, solver=solver, steps=n, adjoint=adjoint, learn=("horizon",))
        found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks)
        errors.append(relative(found.grad["phi"], expected))
        time_errors.append(relative(found.hyper["horizon"], duration))
    assert order_of_convergence(steps, errors) == pytest.approx(TABLEAUS[solver].order, abs=0.15)
    assert order_of_convergence(steps, time_errors) == pytest.approx(TABLEAUS[solver].order, abs=0.15)


def proximal_flow(tasks, proximal: float, horizon: float):
    """φ(T) and, per task, dJ/dθ = a(0) + λ∫a dt and dJ/dλ = −∫⟨a, φ − θ⟩dt of the exact flow, in closed form."""
    shifted = tasks.a + proximal * torch.eye(4)
    best = torch.linalg.solve(shifted, rows_times(tasks.a, tasks.b) + proximal * tasks.theta)
    propagator = matrix_exponential(-horizon * shifted)
    phi = best + rows_times(propagator, tasks.theta - best)
    cotangent = tasks.cotangent(phi)
    integral = rows_times(torch.linalg.solve(shifted, torch.eye(4) - propagator), cotangent)
    return phi, cotangent, rows_times(propagator, cotangent) + proximal * integral, integral


@pytest.mark.parametrize("horizon", [0.5, 3.0])
def test_the_proximal_flow_needs_its_quadrature(horizon, generator):
    tasks, proximal = quadratic(generator), 0.7
    _, _, exact, integral = proximal_flow(tasks, proximal, horizon)
    method = AdjointMAML(horizon=horizon, solver="dopri5", steps=200, proximal=proximal)
    found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks).grad["phi"]
    assert relative(found, exact.mean(dim=0)) < 1e-10
    # Without λ∫a dt it would be far off, so that this test can fail.
    assert relative((exact - proximal * integral).mean(dim=0), exact.mean(dim=0)) > 0.1


def test_a_long_proximal_flow_is_imaml(generator):
    # Identity 3, in closed form λ(A + λI)⁻¹ c at the proximal point.
    tasks, proximal = quadratic(generator), 0.7
    shifted = tasks.a + proximal * torch.eye(4)
    phi = torch.linalg.solve(shifted, rows_times(tasks.a, tasks.b) + proximal * tasks.theta)
    expected = proximal * torch.linalg.solve(shifted, tasks.cotangent(phi))
    # The slowest mode has fallen by e^{−0.9·40}; the steps need not resolve anything but must be stable.
    flow = AdjointMAML(horizon=40.0, solver="rk4", steps=80, proximal=proximal)
    implicit = ImplicitMAML(proximal=proximal, steps=400, inner_lr=0.4, cg_steps=10, cg_tol=1e-14)
    for method in (flow, implicit):
        found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks)
        assert relative(found.grad["phi"], expected.mean(dim=0)) < 1e-10


# Identity 4: ψ, T, λ and rates


@pytest.mark.parametrize("solver", ["euler", "heun", "dopri5"])
def test_hyperparameters_are_one_graph_through_all_stages(solver, generator):
    model, tasks = mlp(generator), regression(generator)
    method = AdjointMAML(horizon=1.2, solver=solver, steps=4, proximal=0.6, learn=("horizon", "proximal", "rates"))
    learner = MetaLearner(model, mse, method, adapt="2.*")
    with torch.no_grad():
        learner.log_hyper["rates"].copy_(0.3 * torch.randn(5, generator=generator))
    expected = through_every_step(
        model,
        mse,
        tasks,
        tableau=TABLEAUS[solver],
        horizon=1.2,
        steps=4,
        adapt="2.*",
        proximal=0.6,
        rates=learner.hyper["rates"],
    )
    found = learner.meta_gradient(tasks)
    for name, gradient in (*expected.grad.items(), *expected.hyper.items()):
        assert relative({**found.grad, **found.hyper}[name], gradient) < 1e-12, name


@every_solver
def test_every_gradient_against_finite_differences(solver, generator):
    model, tasks = mlp(generator), regression(generator)
    method = AdjointMAML(horizon=1.2, solver=solver, steps=3, proximal=0.6, learn=("horizon", "proximal", "rates"))
    learner = MetaLearner(model, mse, method, adapt="2.*")
    learner(tasks).backward()
    parameters = list(learner.parameters())
    assert len(parameters) == 4 + 3
    for parameter, expected in zip(parameters, difference_quotient(learner, tasks, parameters), strict=True):
        # Central differences of step 1e-5: an error of the size h² + ε/h, 1e-10.
        assert relative(parameter.grad, expected) < 1e-7


@pytest.mark.parametrize("name", ["horizon", "proximal"])
def test_hyperparameters_against_methods_with_other_values(name, generator):
    model, tasks = mlp(generator), regression(generator)
    settings = {"horizon": 1.2, "proximal": 0.6}

    def loss(value: torch.Tensor) -> float:
        with torch.no_grad():
            return float(MetaLearner(model, mse, AdjointMAML(**{**settings, name: float(value)}, steps=4))(tasks))

    learner = MetaLearner(model, mse, AdjointMAML(**settings, steps=4, learn=(name,)))
    expected = central_difference(loss, torch.tensor([settings[name]]))
    found = learner.meta_gradient(tasks).hyper
    assert set(found) == {name}
    assert relative(found[name][None], expected) < 1e-7


def test_rates_of_one_change_nothing(generator):
    model, tasks = mlp(generator), regression(generator)
    plain = MetaLearner(model, mse, AdjointMAML(steps=4)).meta_gradient(tasks)
    rated = MetaLearner(model, mse, AdjointMAML(steps=4, learn=("rates",))).meta_gradient(tasks)
    for name, gradient in plain.grad.items():
        assert relative(rated.grad[name], gradient) < 1e-14
    assert plain.hyper == {}


def test_the_two_adjoints_are_equal_bit_for_bit(generator):
    model, tasks = mlp(generator), regression(generator)
    options = {"horizon": 1.2, "solver": "bosh3", "steps": 6, "proximal": 0.6, "learn": ("horizon", "proximal")}
    stored = MetaLearner(model, mse, AdjointMAML(**options), adapt="2.*").meta_gradient(tasks)
    for snapshots in (None, 1, 3):
        method = AdjointMAML(**options, adjoint="checkpointed", snapshots=snapshots)
        found = MetaLearner(model, mse, method, adapt="2.*").meta_gradient(tasks)
        assert all(torch.equal(found.grad[name], gradient) for name, gradient in stored.grad.items())
        assert all(torch.equal(found.hyper[name], gradient) for name, gradient in stored.hyper.items())


def test_adapting_and_the_meta_gradient_solve_the_same_flow(generator):
    model, tasks = mlp(generator), regression(generator)
    for method in (AdjointMAML(steps=4, proximal=0.3), MAML(steps=4), AdjointMAML(steps=4, adjoint="checkpointed")):
        learner = MetaLearner(model, mse, method)
        assert torch.equal(learner.query_losses(tasks), learner.meta_gradient(tasks).loss)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"horizon": 0.0}, ValueError, "horizon must be positive"),
        ({"horizon": -1.0}, ValueError, "horizon must be positive"),
        ({"horizon": float("inf")}, ValueError, "horizon must be positive and finite"),
        ({"horizon": None}, TypeError, "horizon must be a number"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"solver": "rk5"}, ValueError, "unknown solver 'rk5'; did you mean 'rk4'"),
        ({"solver": "RK45"}, ValueError, "unknown solver 'RK45'"),
        ({"adjoint": "checkpoint"}, ValueError, "did you mean 'checkpointed'"),
        ({"snapshots": 3}, ValueError, "say adjoint='checkpointed'"),
        ({"proximal": -0.1}, ValueError, "proximal must be finite and at least 0"),
        ({"learn": "horizon"}, TypeError, "learn must be a tuple of names"),
        ({"learn": ("horison",)}, ValueError, "did you mean 'horizon'"),
        ({"learn": ("proximal",)}, ValueError, "proximal, when it is learned on a log scale, must be positive"),
        ({"learn": None}, TypeError, "learn must be a tuple of names"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        AdjointMAML(**arguments)
