"""Tables 4 and 5 as a report: known errors, what is said of them, and the study's frame."""

import json

import pytest
import torch

from adjoint_meta.experiments.studies import meta_gradient_error
from adjoint_meta.experiments.studies.appendix import ClosedForm, Extent
from adjoint_meta.experiments.studies.meta_gradient_error import BUDGETS, HEUN
from adjoint_meta.experiments.studies.meta_gradient_error_report import AUTODIFF
from adjoint_meta.experiments.studies.published import SCHEME
from adjoint_meta.experiments.studies.study import Setting

TOY = Extent(count=2, points=5, states4=(10, 20), states5=(10, 20), horizons5=(0.5,), own_states=30, reference=1e-6)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("errors")


@pytest.fixture(scope="module")
def report(out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "quick", TOY)
        return meta_gradient_error.run(Setting("quick", out))


def test_records_hold_both_tables_and_the_papers_numbers(report):
    records = {(r["table"], r["horizon"], r["states"], r["scheme"], r["against"]): r for r in report.records}
    assert len(records) == 4 * 2 * 5 + 2 * 2 * 2
    assert records[4, 1.0, 20, SCHEME, "closed form"]["paper"] == 5.04e-4
    assert records[4, 1.0, 20, AUTODIFF, "closed form"]["paper"] == 5.82e-4
    # Heun's method on the costate by hand, exact y(T).
    assert records[4, 1.0, 20, SCHEME, "closed form"]["error"] == pytest.approx(8.2e-4, rel=0.02)
    assert records[5, 0.5, 10, SCHEME, "own"]["paper"] == 1.17e-2


def test_reverse_mode_through_heun_is_autograds():
    """On y' = −2t³ − 2ty from y(0) = 0.3, by autograd through the steps."""
    y0 = torch.full((1, 1), 0.3, dtype=torch.float64, requires_grad=True)
    y, h, field = y0, 0.1, ClosedForm()
    for k in range(10):
        first = field(k * h, y)
        y = y + h / 2 * (first + field((k + 1) * h, y + h * first))
    (expected,) = torch.autograd.grad((y - 3).pow(6).sum(), y0)
    solved = HEUN.solve(field, y0.detach(), 1.0, 10)
    assert torch.allclose(solved.pullback(ClosedForm.outer(solved.end)).start, expected, rtol=1e-12)


def test_findings_follow_from_the_errors(report):
    said = " ".join(report.findings)
    assert "rk4 4." in said or "rk4 3.9" in said
    assert "fall with order 1.1, where modified Euler has 2: not the order" in said
    assert f'with "{SCHEME}" the error is smaller than printed 2 times of 2' in said


def test_a_finished_study_computes_nothing_again(report, out, monkeypatch):
    def refuse(*arguments):
        raise AssertionError(arguments)

    monkeypatch.setitem(BUDGETS, "quick", TOY)
    monkeypatch.setattr(meta_gradient_error, "table4", refuse)
    monkeypatch.setattr(meta_gradient_error, "table5", refuse)
    again = meta_gradient_error.run(Setting("quick", out))
    assert json.dumps(again.records) == json.dumps(report.records)
