"""The assumptions study: Ritz values against dense Hessians, frequencies against Wilson's formula, and resuming."""

import math

import pytest
import torch
from problems import mlp, regression

from adjoint_meta import ImplicitMAML, MetaLearner
from adjoint_meta.experiments.models import HalfMSELoss
from adjoint_meta.experiments.statistics import wilson
from adjoint_meta.experiments.studies import assumptions, inner_curvature
from adjoint_meta.experiments.studies.assumptions import Budget
from adjoint_meta.experiments.studies.study import Setting

TOY = Budget((0, 2), tasks=3, products=10, proximal=(0.1, 10.0), experiments=("movielens-100k",), shares=(0.0, 1.0))


def dense(learner, phi, support, task):
    """The Hessian of one task's loss, by torch.func on the module itself."""
    names = learner.adapted_names
    shapes = [dict(learner.model.named_parameters())[name].shape for name in names]

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        prediction = torch.func.functional_call(learner.model, weights, (support.x[task],))
        return learner.loss(prediction, support.y[task])

    return torch.func.hessian(loss)(phi[task])


def test_extremes_are_those_of_the_dense_hessians(generator):
    learner = MetaLearner(mlp(generator), HalfMSELoss(), ImplicitMAML(), backend="eager")
    support = regression(generator).support
    problem, theta = learner.support_problem(support), learner.initial(len(support))
    points = inner_curvature.trajectory(problem, theta, 0.5, 0.1, [0, 3, 20])
    assert torch.equal(points[0], theta)
    found = inner_curvature.extremes(problem, points, 25)
    for task in range(len(support)):
        hessians = [dense(learner, phi, support, task) for phi in points]
        for place, hessian in enumerate(hessians):
            values = torch.linalg.eigvalsh(hessian)
            assert values[0] < 0  # a network's loss is not convex, and the sign is what is counted
            assert float(found.smallest[place, task]) == pytest.approx(float(values[0]), rel=1e-3)
            assert float(found.largest[place, task]) == pytest.approx(float(values[-1]), rel=1e-9)
        change = torch.linalg.matrix_norm(hessians[2] - hessians[1], 2) / (points[2] - points[1])[task].norm()
        assert float(found.lipschitz[1, task]) == pytest.approx(float(change), rel=1e-6)


def test_the_trajectory_is_gradient_descent_on_the_proximal_objective(generator):
    learner = MetaLearner(mlp(generator), HalfMSELoss(), ImplicitMAML(), backend="eager")
    support = regression(generator).support
    problem, theta = learner.support_problem(support), learner.initial(len(support))
    phi = theta
    for _ in range(4):
        phi = phi - 0.1 * (problem.gradient(phi) + 2.0 * (phi - theta))
    torch.testing.assert_close(inner_curvature.trajectory(problem, theta, 2.0, 0.1, [1, 4])[1], phi)


def test_wilson_against_its_formula():
    k, n, z = 3, 20, 1.959963984540054
    p = k / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert wilson(k, n) == pytest.approx((middle - half, middle + half))
    assert wilson(0, 10)[0] == 0 and 0.2 < wilson(0, 10)[1] < 0.3


def test_a_toy_study_without_data_uses_the_embedded_ratings_and_resumes(monkeypatch, tmp_path):
    monkeypatch.setitem(assumptions.BUDGETS, "quick", TOY)
    setting = Setting("quick", tmp_path, data_dir=tmp_path)
    report = assumptions.run(setting)
    assert {r["experiment"] for r in report.records} == {"ratings-toy"}
    assert len(report.records) == 2 * 2 * 2 * 3  # λ, meta-steps, places, tasks
    assert any("movielens-100k are not here" in line for line in report.departures)
    # Before training θ is the same for every λ, and so is the curvature of L_s there.
    first = {(r["lambda"], r["task"]): r["largest"] for r in report.records if r["meta_step"] == r["inner_step"] == 0}
    assert all(first[0.1, task] == first[10.0, task] for task in range(3))
    (strong,) = [line for line in report.findings if "λ = 10:" in line]
    assert "fails somewhere on the inner trajectory in 0 of 3 tasks (0 to 56 %)" in strong

    monkeypatch.setattr(assumptions, "train", lambda *_: pytest.fail("it was computed already"))
    assert assumptions.run(setting).records == report.records
