"""A-MAML by equal steps: the flow in the limit, the quadratures beside the costate, and the link to iMAML."""

from __future__ import annotations

import pytest
import torch
from flow_references import proximal_point, quadratic_flow
from problems import half_squares, mlp, quadratic, regression
from references import (
    STEPS,
    central_difference,
    matrix_exponential,
    order_of_convergence,
    relative,
    rows_times,
    through_every_step,
)
from torch import nn

from adjoint_meta import MAML, AdjointMAML, ImplicitMAML, MetaLearner
from adjoint_meta.inner_solvers import IMPLICIT
from adjoint_meta.solvers import TABLEAUS

mse = nn.functional.mse_loss
every_solver = pytest.mark.parametrize("solver", TABLEAUS)
both_adjoints = pytest.mark.parametrize("adjoint", ["discrete", "checkpointed"])

# Identity 2: every solver converges to the flow's meta-gradient expm(−AT) c, at its order

ORDERS = {**{name: tableau.order for name, tableau in TABLEAUS.items()}, "rkc": 2, "implicit_euler": 1, "sdirk2": 2}


@pytest.mark.parametrize("solver", ORDERS)
def test_meta_gradient_of_the_flow_on_quadratic_tasks(solver, generator):
    # An implicit step solves equations, so it gets by with fewer of them here.
    tasks, steps = quadratic(generator), (8, 16, 32) if solver in IMPLICIT else STEPS[ORDERS[solver]]
    expected = quadratic_flow(tasks, 1.5)
    errors, time_errors = [], []
    for n in steps:
        method = AdjointMAML(horizon=1.5, solver=solver, steps=n, learn=("horizon",))
        found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks)
        errors.append(relative(found.grad["phi"], expected.theta))
        time_errors.append(relative(found.hyper["horizon"], expected.horizon))
    assert order_of_convergence(steps, errors) == pytest.approx(ORDERS[solver], abs=0.15)
    assert order_of_convergence(steps, time_errors) == pytest.approx(ORDERS[solver], abs=0.15)


# Polynomials or rational functions R with y⁺ = R(−hA) y; γ = 1 − 1/√2 makes sdirk2 L-stable.
GAMMA = 1 - 0.5**0.5
FACTORS = {
    "implicit_euler": lambda z: 1 / (1 - z),
    "sdirk2": lambda z: (1 + (1 - 2 * GAMMA) * z) / (1 - GAMMA * z) ** 2,
    "midpoint": lambda z: 1 + z + z**2 / 2,
    "rk4": lambda z: 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24,
}


@pytest.mark.parametrize("solver", FACTORS)
@both_adjoints
@pytest.mark.parametrize("steps", [1, 3])
def test_few_large_steps_are_the_stability_function_of_the_matrix(solver, adjoint, steps, generator):
    tasks, horizon = quadratic(generator), 0.9
    eigenvalues, basis = torch.linalg.eigh(tasks.a)
    factor = basis @ torch.diag_embed(FACTORS[solver](-horizon / steps * eigenvalues) ** steps) @ basis.mT
    phi = tasks.b + rows_times(factor, tasks.theta - tasks.b)
    method = AdjointMAML(horizon=horizon, solver=solver, steps=steps, adjoint=adjoint)
    learner = MetaLearner(tasks.model, half_squares, method)
    assert relative(learner.adapt(tasks.tasks.support), phi) < 1e-9
    found = learner.meta_gradient(tasks.tasks).grad["phi"]
    assert relative(found, rows_times(factor, tasks.cotangent(phi)).mean(dim=0)) < 1e-8


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
    method = AdjointMAML(horizon=horizon, solver="dopri5", steps=100, proximal=proximal)
    found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks).grad["phi"]
    assert relative(found, exact.mean(dim=0)) < 1e-10
    # Without λ∫a dt it would be far off, so that this test can fail.
    assert relative((exact - proximal * integral).mean(dim=0), exact.mean(dim=0)) > 0.1


def test_a_long_proximal_flow_is_imaml(generator):
    # Identity 3, in closed form λ(A + λI)⁻¹ c at the proximal point.
    tasks, proximal = quadratic(generator), 0.7
    _, expected = proximal_point(tasks, proximal)
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
    method = AdjointMAML(horizon=0.8, solver=solver, steps=4, proximal=0.6, learn=("horizon", "proximal", "rates"))
    learner = MetaLearner(model, mse, method, adapt="2.*")
    with torch.no_grad():
        learner.log_hyper["rates"].copy_(0.3 * torch.randn(5, generator=generator))
    expected = through_every_step(
        model,
        mse,
        tasks,
        tableau=TABLEAUS[solver],
        horizon=0.8,
        steps=4,
        adapt="2.*",
        proximal=0.6,
        rates=learner.hyper["rates"],
    )
    found = learner.meta_gradient(tasks)
    for name, gradient in (*expected.grad.items(), *expected.hyper.items()):
        assert relative({**found.grad, **found.hyper}[name], gradient) < 1e-12, name


@pytest.mark.parametrize("solver", ORDERS)
@both_adjoints
def test_every_gradient_against_finite_differences(solver, adjoint, generator):
    model, tasks = mlp(generator), regression(generator)
    learn = ("horizon", "proximal") if solver in IMPLICIT else ("horizon", "proximal", "rates")
    method = AdjointMAML(horizon=0.8, solver=solver, steps=3, proximal=0.6, learn=learn, adjoint=adjoint)
    learner = MetaLearner(model, mse, method, adapt="2.*")
    learner(tasks).backward()
    for name, parameter in learner.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator)
        before = parameter.detach().clone()

        def at(shift: torch.Tensor, parameter=parameter, before=before, direction=direction) -> float:
            with torch.no_grad():
                parameter.copy_(before + shift * direction)
                return float(learner(tasks))

        expected = float(central_difference(at, torch.zeros(())))
        at(torch.zeros(()))
        # Central differences of step 1e-5: an error of the size h² + ε/h, 1e-10; implicit steps are solved to 1e-10.
        assert float((parameter.grad * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-7), name


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


# Every kind of solver, with steps that the other tests leave out.
SETTINGS = [
    {"solver": "bosh3", "steps": 6},
    {"solver": "rkc", "steps": 5},
    {"solver": "implicit_euler", "steps": 5},
    {"solver": "sdirk2", "steps": 3},
    {"solver": "dopri5", "rtol": 1e-4},
    {"solver": "rkc", "rtol": 1e-3},
    {"solver": "auto", "rtol": 1e-3},
]


def title(setting: dict) -> str:
    return " ".join(map(str, setting.values()))


@pytest.mark.parametrize("setting", SETTINGS, ids=title)
def test_the_two_exact_adjoints_are_equal(setting, generator):
    model, tasks = mlp(generator), regression(generator)
    options = {"horizon": 1.2, "proximal": 0.6, "learn": ("horizon", "proximal"), **setting}
    stored = MetaLearner(model, mse, AdjointMAML(**options), adapt="2.*").meta_gradient(tasks)
    for snapshots in (None, 1, 3):
        method = AdjointMAML(**options, adjoint="checkpointed", snapshots=snapshots)
        found = MetaLearner(model, mse, method, adapt="2.*").meta_gradient(tasks)
        # The same operations on the same numbers, whatever the solver.
        assert torch.equal(found.loss, stored.loss)
        assert all(torch.equal(found.grad[name], gradient) for name, gradient in stored.grad.items())
        assert all(torch.equal(found.hyper[name], gradient) for name, gradient in stored.hyper.items())


@pytest.mark.parametrize("setting", SETTINGS, ids=title)
def test_adapting_and_the_meta_gradient_solve_the_same_flow(setting, generator):
    model, tasks = mlp(generator), regression(generator)
    for adjoint in ("discrete", "checkpointed"):
        learner = MetaLearner(model, mse, AdjointMAML(**setting, proximal=0.3, adjoint=adjoint))
        assert torch.equal(learner.query_losses(tasks), learner.meta_gradient(tasks).loss)


def test_descent_and_its_meta_gradient_take_the_same_steps(generator):
    learner, tasks = MetaLearner(mlp(generator), mse, MAML(steps=4)), regression(generator)
    assert torch.equal(learner.query_losses(tasks), learner.meta_gradient(tasks).loss)
