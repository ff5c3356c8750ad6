"""iMAML's Fig. 2a: the reference against autograd, the methods against the reference, and the study's frame."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from adjoint_meta.experiments.models import HalfMSELoss
from adjoint_meta.experiments.studies import imaml_accuracy
from adjoint_meta.experiments.studies.imaml_accuracy import ALONE, BUDGETS, THROUGH, exact_gradient, linear_tasks
from adjoint_meta.experiments.studies.imaml_accuracy_report import report
from adjoint_meta.experiments.studies.published_imaml import ERRORS_2A, SECONDS_2B, STEPS_2A, STEPS_2B
from adjoint_meta.experiments.studies.study import Setting
from adjoint_meta.experiments.studies.subject import Subject

TOY = replace(BUDGETS["quick"], tasks=12, steps=(20, 60, 90, 100))


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(BUDGETS, "quick", TOY)


def test_the_reference_is_autograds_through_the_minimiser():
    tasks = linear_tasks(TOY)
    theta = torch.full((TOY.tasks, TOY.dimension), 0.3, dtype=torch.float64, requires_grad=True)
    a = tasks.support.x.transpose(1, 2) @ tasks.support.x / TOY.points
    b = (tasks.support.x * tasks.support.y).mean(dim=1)
    phi = torch.linalg.solve(a + TOY.proximal * torch.eye(TOY.dimension), b + TOY.proximal * theta)
    query = 0.5 * (torch.einsum("tnd,td->tn", tasks.query.x, phi) - tasks.query.y[:, :, 0]).square().mean(dim=1)
    (expected,) = torch.autograd.grad(query.sum(), theta)
    assert torch.allclose(exact_gradient(tasks, theta.detach(), TOY.proximal), expected, rtol=1e-10)


def test_both_methods_reach_the_reference_and_plain_maml_does_not():
    tasks = linear_tasks(TOY)
    model = nn.Linear(TOY.dimension, 1, bias=False, dtype=torch.float64)
    subject = Subject(model, HalfMSELoss(), tasks)
    exact = exact_gradient(tasks, subject.theta, TOY.proximal)
    makers = imaml_accuracy.methods(TOY)
    for name in (THROUGH, "iMAML with 10 CG steps"):
        assert max(imaml_accuracy._errors(subject, makers[name](600), exact)) < 1e-4
    assert min(imaml_accuracy._errors(subject, makers[ALONE](600), exact)) > 0.5


def test_the_report_says_what_the_data_say(toy, tmp_path):
    made = imaml_accuracy.run(Setting("quick", tmp_path))
    assert len(made.records) == 5 * len(TOY.steps)
    at = {(record["method"], record["steps"]): record for record in made.records}
    assert at["MAML", 60]["paper"] == 0.52 and at["MAML", 100]["paper"] is None
    assert at["iMAML with 5 CG steps", 60]["error"] == pytest.approx(0.25, abs=0.1)
    assert "stops at a floor" in made.findings[0] and "17 of" not in " ".join(made.findings)
    assert made.setting["tasks"] == 12


def test_a_finished_study_computes_nothing_again(toy, tmp_path, monkeypatch):
    first = imaml_accuracy.run(Setting("quick", tmp_path))
    monkeypatch.setattr(Subject, "measure", None)
    assert imaml_accuracy.run(Setting("quick", tmp_path)).records == first.records


def test_findings_turn_with_the_data():
    steps = (20, 60, 90, 100)
    falling = np.exp(-0.1 * np.array(steps))[:, None] * np.linspace(0.9, 1.1, 8)
    errors = dict.fromkeys(imaml_accuracy.methods(TOY), falling)
    said = " ".join(report(errors, steps, asdict(TOY)).findings)
    assert "still changes" in said and "stays above" in said and "at 0 of 4 numbers" in said


def test_the_digitised_curves_are_whole():
    assert all(len(curve) == len(STEPS_2A) for curve in ERRORS_2A.values())
    assert all(len(curve) == len(STEPS_2B) for curve in SECONDS_2B.values())
