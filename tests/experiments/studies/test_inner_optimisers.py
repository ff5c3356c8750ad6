"""The inner optimisers: the reference against scipy and dense algebra, solvers by hand, and a study that resumes."""

import json
from dataclasses import replace

import pytest
import torch
from scipy.optimize import minimize

from adjoint_meta.experiments.studies import inner_optimisers
from adjoint_meta.experiments.studies.failure_cases import dense_hessian, query_gradients
from adjoint_meta.experiments.studies.inner_optimisers import NEWTON, Budget, Minimum, make_subject, path
from adjoint_meta.experiments.studies.inner_optimisers_report import best, reach
from adjoint_meta.experiments.studies.study import Setting

TOY = Budget(
    (1.0,),
    (("GD", (0.1, 0.3)), ("momentum", (0.05,)), ("Adam", (0.01,))),
    (2, 30),
    (1, 6),
    tasks=2,
    points=5,
    width=4,
    memory_tasks=3,
)


@pytest.fixture
def subject():
    return make_subject(2, TOY)


def test_the_reference_is_scipys_minimiser_and_the_dense_implicit_gradient(subject):
    found = Minimum.find(subject, 1.0)
    problem = subject.problem()
    for task in range(2):
        theta = subject.theta[task]

        def objective(phi, task=task, theta=theta):
            rows = subject.theta.clone()
            rows[task] = torch.from_numpy(phi)
            moved = rows[task] - theta
            value = problem.support_losses(rows)[task] + 0.5 * moved.square().sum()
            return float(value), (problem.gradient(rows)[task] + moved).numpy()

        other = minimize(objective, theta.numpy(), jac=True, method="BFGS", options={"gtol": 1e-9})
        torch.testing.assert_close(found.phi[task], torch.from_numpy(other.x), rtol=0, atol=1e-7)
    matrix = dense_hessian(problem, found.phi) + torch.eye(found.phi.shape[1])
    exact = torch.linalg.solve(matrix, query_gradients(subject, found.phi))
    torch.testing.assert_close(found.gradient, exact, rtol=1e-7, atol=1e-9)


def test_first_order_solvers_take_the_steps_of_their_textbooks(subject):
    problem, theta = subject.problem(), subject.theta

    def slope(phi):
        return problem.gradient(phi) + 2.0 * (phi - theta)

    plain = heavy = adaptive = theta
    speed, mean, square = (torch.zeros_like(theta) for _ in range(3))
    for step in range(1, 4):
        plain = plain - 0.1 * slope(plain)
        speed = 0.9 * speed + slope(heavy)
        heavy = heavy - 0.1 * speed
        g = slope(adaptive)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        scaled = (square / (1 - 0.999**step)).sqrt() + 1e-8
        adaptive = adaptive - 0.1 * mean / (1 - 0.9**step) / scaled
    for name, expected in (("GD", plain), ("momentum", heavy), ("Adam", adaptive)):
        (reached,) = path(subject.problem(), theta, 2.0, name, 0.1, [3])
        torch.testing.assert_close(reached.phi, expected)
        assert reached.evaluations == 3


def test_newton_gets_nearer_with_every_step_and_counts_what_it_takes(subject):
    minimum = Minimum.find(subject, 1.0)
    found = list(path(subject.problem(), subject.theta, 1.0, NEWTON, None, [1, 2, 6]))
    distances = [float((each.phi - minimum.phi).norm()) for each in found]
    assert distances[0] > distances[1] > distances[2] and distances[2] < 1e-7
    assert found[0].evaluations < found[1].evaluations < found[2].evaluations


def test_a_rate_that_diverges_ends_before_its_numbers_overflow(subject):
    stiff = Minimum.find(subject, 10.0)
    budget = replace(TOY, steps=(2, 20, 300, 1000))
    records = inner_optimisers.measure(subject, stiff, "GD", 0.3, budget)  # α (‖H‖ + λ) > 3
    assert records[-1]["steps"] < 1000 and records[-1]["distance"] > 1e3
    json.dumps(records, allow_nan=False)


def test_costs_are_read_where_the_error_stays_small():
    def record(steps, error, rate=0.1):
        shared = {"optimiser": "GD", "rate": rate, "steps": steps, "evaluations": 3 * steps, "seconds": steps / 10}
        return {**shared, "error": error, "distance": error}

    records = [record(1, 1e-3), record(2, 1.0), record(3, 1e-3), record(4, 1e-4)]
    assert reach(records, 1e-2) == (9, 0.3) and reach(records, 1e-5) is None
    slower = [record(n, 0.5, rate=0.01) for n in (1, 2, 3, 4)]
    assert best(slower + records)["GD"] == records


def test_a_toy_study_and_its_continuation(monkeypatch, tmp_path):
    monkeypatch.setitem(inner_optimisers.BUDGETS, "quick", TOY)
    report = inner_optimisers.run(Setting("quick", tmp_path))
    assert len(report.records) == 5 * 2 * 2  # solvers and rates, numbers of steps, tasks
    ends = [r for r in report.records if r["optimiser"] == NEWTON and r["steps"] == 6]
    assert all(r["distance"] < 1e-6 and r["error"] < 1e-5 for r in ends)
    assert any(line.startswith("Memory:") for line in report.findings)

    monkeypatch.setattr(inner_optimisers, "path", lambda *_: pytest.fail("it was computed already"))
    assert inner_optimisers.run(Setting("quick", tmp_path)).records == report.records
