from __future__ import annotations

import pytest
import torch
from problems import case, half_squares, quadratic
from references import Split, central_difference, derivatives, relative

from adjoint_meta.adaptation import GradientFlow
from adjoint_meta.batched_model import BatchedModel
from adjoint_meta.curvature import Curvature
from adjoint_meta.descent import descend
from adjoint_meta.parameters import ParameterRows
from adjoint_meta.problem import Problem
from adjoint_meta.tasks import Batch

SETTINGS = {
    "plain": {},
    "proximal": {"proximal": 0.7},
    "learned proximal": {"proximal": torch.tensor(0.7, dtype=torch.float64)},
    "rates": {"rates": torch.linspace(0.5, 2.0, 5, dtype=torch.float64)},
    "both": {"proximal": 0.7, "rates": torch.linspace(0.5, 2.0, 5, dtype=torch.float64)},
}


def quadratic_problem(generator: torch.Generator):
    tasks = quadratic(generator)
    rows = ParameterRows(tasks.model)
    engine = Curvature(BatchedModel(tasks.model, half_squares, rows))
    return tasks, Problem(engine, tasks.theta.new_empty(0), tasks.tasks.support)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_flow_and_its_pullback(setting, generator):
    options = SETTINGS[setting]
    found = case("mlp", generator)
    rows, split = ParameterRows(found.model, "2.*"), Split(found.model, "2.*")
    theta, psi = rows.read(found.model)
    thetas = theta.repeat(3, 1)
    phi = thetas + 0.3 * torch.randn(3, 5, generator=generator)
    w = torch.randn(3, 5, generator=generator)
    flow = GradientFlow(
        Problem(Curvature(BatchedModel(found.model, found.loss, rows)), psi, found.points), thetas, **options
    )
    pulled = flow.vjp(0.0, phi, w)
    parts = flow.split(pulled.parameters)

    # Everything the field depends on, as leaves of one graph, one task after the other.
    leaves = {
        "phi": phi.clone(),
        "psi": psi.clone(),
        "theta": thetas.clone(),
        "proximal": torch.as_tensor(options.get("proximal", 0.0)).clone(),
        "rates": options.get("rates", torch.ones(5)).clone(),
    }
    for leaf in leaves.values():
        leaf.requires_grad_()
    rates_of_change = []
    for i in range(3):
        loss = found.loss(split.predict(leaves["phi"][i], leaves["psi"], found.points.x[i]), found.points.y[i])
        (gradient,) = torch.autograd.grad(loss, leaves["phi"], create_graph=True)
        pull = leaves["proximal"] * (leaves["phi"][i] - leaves["theta"][i])
        rates_of_change.append(-leaves["rates"] * gradient[i] - pull)
    value = torch.stack(rates_of_change)
    expected = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), w), strict=True))

    assert relative(flow(0.0, phi), value.detach()) < 1e-13
    assert relative(pulled.value, value.detach()) < 1e-13
    assert relative(pulled.state, expected["phi"]) < 1e-12
    names = {"psi"} | ({"theta", "proximal"} if "proximal" in options else set()) | ({"rates"} & set(options))
    assert set(parts) == names
    for name in names:
        assert relative(parts[name], expected[name]) < 1e-12


def test_a_flow_spends_one_gradient_or_one_product(generator):
    tasks, problem = quadratic_problem(generator)
    flow = GradientFlow(problem, tasks.theta.repeat(3, 1), 0.5)
    flow(0.0, flow.theta)
    assert vars(problem.evaluations) == {"n_loss": 0, "n_grad": 1, "n_hvp": 0}
    flow.vjp(0.0, flow.theta, flow.theta)
    assert vars(problem.evaluations) == {"n_loss": 0, "n_grad": 1, "n_hvp": 1}


def mlp_flow(generator: torch.Generator, **options) -> tuple[GradientFlow, torch.Tensor]:
    """The flow of a network's head on three tasks, and a φ of its own for each."""
    found = case("mlp", generator)
    rows = ParameterRows(found.model, "2.*")
    theta, psi = rows.read(found.model)
    problem = Problem(Curvature(BatchedModel(found.model, found.loss, rows)), psi, found.points)
    thetas = theta.repeat(3, 1)
    return GradientFlow(problem, thetas, **options), thetas + 0.3 * torch.randn(3, 5, generator=generator)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("which", [[0, 1, 2], [2], [2, 0]], ids=str)
def test_the_flow_of_some_tasks(setting, which, generator):
    flow, phi = mlp_flow(generator, **SETTINGS[setting])
    w, index = torch.randn(3, 5, generator=generator), torch.tensor(which)
    whole, some = flow.vjp(0.0, phi, w), flow.rows(index).vjp(0.0, phi[index], w[index])
    assert relative(flow.rows(index)(0.0, phi[index]), flow(0.0, phi)[index]) < 1e-13
    assert relative(some.value, whole.value[index]) < 1e-13
    assert relative(some.state, whole.state[index]) < 1e-12
    # Cotangents of what all tasks share are sums over the tasks left; those of θ keep a row for every task.
    others = torch.zeros(3, 1)
    others[index] = 1.0
    expected = flow.split(flow.vjp(0.0, phi, others * w).parameters)
    found = flow.rows(index).split(some.parameters)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert relative(found[name], value) < 1e-12, name
    if "theta" in found:
        assert found["theta"].shape == (3, 5)


@pytest.mark.parametrize("setting", ["plain", "proximal", "learned proximal"])
def test_the_flow_falls_along_its_potential(setting, generator):
    flow, phi = mlp_flow(generator, **SETTINGS[setting])
    for i in range(3):
        slope = central_difference(lambda p, i=i: float(flow.potential(0.0, put(phi, i, p))[i]), phi[i].clone())
        assert relative(-slope, flow(0.0, phi)[i]) < 1e-7
    assert flow.potential(0.0, phi).shape == (3,)


def put(rows: torch.Tensor, index: int, row: torch.Tensor) -> torch.Tensor:
    changed = rows.clone()
    changed[index] = row
    return changed


@pytest.mark.parametrize("setting", SETTINGS)
def test_one_linearisation_serves_many_products(setting, generator):
    flow, phi = mlp_flow(generator, **SETTINGS[setting])
    before = vars(flow.problem.evaluations).copy()
    linear = flow.linearise(0.0, phi)
    assert relative(linear.value, flow(0.0, phi)) < 1e-13
    for _ in range(3):
        w = torch.randn(3, 5, generator=generator)
        assert relative(linear.product(w), flow.vjp(0.0, phi, w).state) < 1e-12
    counts = flow.problem.evaluations
    # Two values, three products of the linearisation and three pullbacks.
    assert (counts.n_grad - before["n_grad"], counts.n_hvp - before["n_hvp"]) == (2, 6)


@pytest.mark.parametrize("proximal", [0.0, 0.8])
def test_descent_of_a_quadratic(proximal, generator):
    # φ_n − φ* = (I − α(A + λI))ⁿ (θ − φ*)
    tasks, problem = quadratic_problem(generator)
    flow = GradientFlow(problem, tasks.theta.repeat(3, 1), proximal)
    found = descend(flow, flow.theta, lr=0.3, max_steps=17, tol=0.0)
    shifted = tasks.a + proximal * torch.eye(4)
    best = torch.linalg.solve(shifted, torch.einsum("tij,tj->ti", tasks.a, tasks.b) + proximal * tasks.theta)
    steps = torch.linalg.matrix_power(torch.eye(4) - 0.3 * shifted, 17)
    assert relative(found, best + torch.einsum("tij,tj->ti", steps, tasks.theta - best)) < 1e-12
    assert problem.evaluations.n_grad == 17


def test_descent_with_rates_scales_every_step(generator):
    tasks, problem = quadratic_problem(generator)
    rates = torch.tensor([0.5, 1.0, 1.5, 0.1])
    flow = GradientFlow(problem, tasks.theta.repeat(3, 1), rates=rates)
    step = torch.eye(4) - 0.3 * torch.diag(rates) @ tasks.a
    expected = tasks.b + torch.einsum("tij,tj->ti", torch.linalg.matrix_power(step, 9), tasks.theta - tasks.b)
    assert relative(descend(flow, flow.theta, 0.3, 9, 0.0), expected) < 1e-12


def test_every_task_stops_on_its_own(generator):
    tasks, problem = quadratic_problem(generator)
    # The eigenvalues of the tasks differ, and so do the steps that they need.
    scaled = Problem(
        problem.curvature,
        problem.psi,
        Batch(problem.support.x * torch.tensor([0.4, 1.0, 1.6])[:, None, None], problem.support.y),
    )
    flow = GradientFlow(scaled, tasks.theta.repeat(3, 1))
    tol, split, expected = 1e-2, Split(tasks.model), []
    steps = []
    for i in range(3):
        x, y, phi = scaled.support.x[i], scaled.support.y[i], tasks.theta.clone()
        gradient = derivatives(split, half_squares, phi, x, y).gradient
        bound, taken = tol * gradient.norm(), 0
        while gradient.norm() > bound and taken < 200:
            phi, taken = phi - 0.3 * gradient, taken + 1
            gradient = derivatives(split, half_squares, phi, x, y).gradient
        expected.append(phi)
        steps.append(taken)
    assert len(set(steps)) == 3 and max(steps) < 200
    assert relative(descend(flow, flow.theta, 0.3, 200, tol), torch.stack(expected)) < 1e-12
    # One gradient more than steps, to see that the last task is done.
    assert scaled.evaluations.n_grad == max(steps) + 1


def test_descent_from_a_minimum_does_not_move(generator):
    tasks, problem = quadratic_problem(generator)
    flow = GradientFlow(problem, tasks.theta.repeat(3, 1))
    at_zero = Problem(problem.curvature, problem.psi, Batch(problem.support.x, torch.zeros(3, 4)))
    flow = GradientFlow(at_zero, torch.zeros(3, 4))
    assert torch.equal(descend(flow, torch.zeros(3, 4), 0.3, 5, 1e-3), torch.zeros(3, 4))
    assert at_zero.evaluations.n_grad == 1


@pytest.mark.parametrize("tol", [0.0, 1e-3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_descent_does_not_hide_a_gradient_that_is_not_finite(tol, bad, generator):
    # A row that stood still instead would pass for one that has converged.
    tasks, problem = quadratic_problem(generator)
    y = problem.support.y.clone()
    y[1, 0] = bad
    broken = Problem(problem.curvature, problem.psi, Batch(problem.support.x, y))
    found = descend(GradientFlow(broken, tasks.theta.repeat(3, 1)), tasks.theta.repeat(3, 1), 0.3, 5, tol)
    assert torch.isfinite(found).all(dim=1).tolist() == [True, False, True]
