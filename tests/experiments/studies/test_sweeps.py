"""Which points are taken: from the edge of stability on, refined around the targets, and not beyond the budget."""

from dataclasses import replace

import pytest
import torch
from problems import mlp, regression
from references import order_of_convergence

from adjoint_meta.experiments.models import HalfMSELoss
from adjoint_meta.experiments.studies import sweeps
from adjoint_meta.experiments.studies.case import Case, Reference
from adjoint_meta.experiments.studies.subject import Subject
from adjoint_meta.experiments.studies.sweeps import BUDGETS
from adjoint_meta.experiments.studies.verdicts import reach

BUDGET = replace(
    BUDGETS["full"], point=400, sweep=300, floor=1e-3, adjoint=60, tolerances=(1e-2, 1e-3), implicit_steps=(1,)
)
HORIZON = 2.0


@pytest.fixture(scope="module")
def solved():
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(1)
    subject = Subject(mlp(generator), HalfMSELoss(), regression(generator))
    return subject, Reference.find(subject, HORIZON, 1e-8)


@pytest.fixture
def made(solved):
    return Case("random", solved[0], HORIZON, solved[1], limit=6000)


def run(case, name, budget=BUDGET):
    dict(sweeps.sweeps(case, budget))[name]()
    return case.points


def test_the_reference_checks_itself(made):
    assert made.reference.phi_check < 1e-7 and made.reference.gradient_check < 1e-7
    assert made.reference.radius > 0 and 0 < made.reference.moved < 10


def test_errors_have_both_normalisations_and_the_solvers_order(made):
    points = [made.point("rk4", steps=n) for n in (16, 32)]
    for found in points:
        assert found.phi_error == pytest.approx(found.phi_error_moved * made.reference.moved)
        assert found.trusted is True
    assert order_of_convergence([16, 32], [p.gradient_error for p in points]) == pytest.approx(4, abs=0.3)


def test_steps_begin_at_the_edge_of_stability_and_targets_are_narrowed_down(made):
    points = run(made, "heun")
    fewest = sweeps.least_stable_steps(made, "heun")
    assert fewest == max(1, int(HORIZON * made.reference.radius / 2))
    assert min(p.steps for p in points) == fewest
    for target in sweeps.TARGETS:
        steps = reach(points, target)["steps"]
        below = [p.steps for p in points if p.steps < steps]
        assert below and steps - max(below) <= max(1, 0.03 * steps)
        assert not next(p for p in points if p.steps == max(below)).reaches(target)


def test_a_budget_is_kept_and_what_it_leaves_out_is_said(made):
    run(made, "euler", replace(BUDGET, point=100))
    assert max(p.evaluations for p in made.points) <= 100
    assert any(line.startswith("euler: ") for line in made.skipped)
    before = len(made.points)
    run(made, "bosh3 adaptive", replace(BUDGET, sweep=1))
    assert len(made.points) == before + 1
    assert any(line.startswith("bosh3 adaptive: 0.001, ") for line in made.skipped)


def test_every_sweep_makes_points_and_no_point_is_made_twice(made):
    for _, sweep in sweeps.sweeps(made, BUDGET):
        sweep()
    keys = [(p.curve, p.adjoint, p.steps, p.rtol) for p in made.points]
    assert len(keys) == len(set(keys))
    curves = {p.curve for p in made.points}
    assert {*sweeps.EXPLICIT, "implicit_euler", "sdirk2", "auto", "rkc adaptive", "heun adaptive"} <= curves
    assert {"torchdiffeq dopri5", "torchdiffeq odeint_adjoint", "released A-MAML code"} <= curves
    by_adjoint = {p.adjoint: p for p in made.points if p.curve == "rk4"}
    assert by_adjoint["checkpointed"].gradient_error == pytest.approx(
        next(p for p in made.points if p.curve == "rk4" and p.steps == by_adjoint["checkpointed"].steps).gradient_error
    )
    assert by_adjoint["checkpointed"].n_grad > by_adjoint["checkpointed"].n_hvp
    assert {"interpolating", "backsolve"} <= set(by_adjoint)


def test_a_solve_that_fails_is_a_point_with_a_reason(made):
    found = made.point("rk4", steps=3, adjoint="backsolve")
    assert "drifted" in found.failed and found.gradient_error is None and found.reaches(1.0) is False
