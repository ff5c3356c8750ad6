"""Seconds and memory against steps: what is measured, what is said of it, and the study's frame."""

from dataclasses import replace

import pytest
import torch

from adjoint_meta.experiments.run import Interrupted
from adjoint_meta.experiments.studies import efficiency
from adjoint_meta.experiments.studies.contestants import ENTRANTS
from adjoint_meta.experiments.studies.efficiency import BUDGETS
from adjoint_meta.experiments.studies.efficiency_report import crossing, report
from adjoint_meta.experiments.studies.published_imaml import SECONDS_2B, STEPS_2B
from adjoint_meta.experiments.studies.race import Course, Race
from adjoint_meta.experiments.studies.study import Setting
from adjoint_meta.experiments.studies.workloads import strided_net

TOY = replace(
    BUDGETS["quick"],
    courses=(
        Course("regression", 5, (1, 10), ("torch.func unrolled", "A-MAML Heun"), ()),
        Course("ratings", 1, (1, 10), ("MAML", "iMAML with 2 CG steps"), ()),
    ),
    repeats=1,
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("efficiency")


@pytest.fixture(scope="module")
def made(out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "quick", TOY)
        return efficiency.run(Setting("quick", out, device="cpu"))


def test_every_method_is_measured_at_every_number_of_steps(made):
    assert len(made.records) == 8
    assert all(record["seconds"] > 0 and record["error"] is None for record in made.records)
    rows = {row[0]: row for part in made.parts if hasattr(part, "rows") for row in part.rows}
    assert rows["10 steps, A-MAML Heun"][2] == "0.126" and rows["10 steps, torch.func unrolled"][2] == "0.244"
    assert rows["10 steps, MAML"][2] == "–" and rows["10 steps, iMAML with 2 CG steps"][2] == "0.251"


def test_a_finished_study_measures_nothing_again(made, out, monkeypatch):
    monkeypatch.setitem(BUDGETS, "quick", TOY)
    monkeypatch.setattr(Race, "run", None)
    assert efficiency.run(Setting("quick", out, device="cpu")).records == made.records


def test_a_course_that_is_interrupted_is_measured_anew(tmp_path, monkeypatch):
    monkeypatch.setitem(BUDGETS, "quick", TOY)
    asked = iter([False, False, True])  # before the cell, and before each measurement
    with pytest.raises(Interrupted):
        efficiency.run(Setting("quick", tmp_path, device="cpu", should_stop=lambda: next(asked)))
    assert not (tmp_path / "cells").exists() and next(asked, None) is None


def test_the_papers_curves_cross_where_the_figure_shows_it():
    maml, five = (SECONDS_2B[name] for name in ("MAML", "iMAML with 5 CG steps"))
    known = [i for i, value in enumerate(maml) if value is not None]
    found = crossing(*([values[i] for i in known] for values in (STEPS_2B, maml, five)))
    assert 5 < found < 10
    assert crossing((1, 2), (1.0, 2.0), (3.0, 3.0)) is None
    assert crossing((1, 2), (4.0, 4.0), (3.0, 3.0)) == 1
    assert crossing((1, 3), (2.0, 4.0), (3.0, 3.0)) == pytest.approx(2)


def test_findings_follow_from_the_entries():
    def entry(name, steps, seconds, mib):
        return {
            "contestant": name,
            "backend": "eager",
            "steps": steps,
            "seconds": seconds,
            "extra_mib": mib,
            "tasks": 5,
        }

    flow = [entry("MAML", 10, 1.0, 2.0), entry("MAML", 100, 10.0, 20.0)]
    implicit = [entry("torch.func unrolled", n, float(n), float(n)) for n in (1, 10)]
    implicit += [entry("iMAML with 5 CG steps", n, 5.0, 1.0) for n in (1, 10)]
    races = [{"entries": entries} for entries in (flow, implicit)]
    said = " ".join(report(races, [], {"device": "CPU, 1 thread"}).findings)
    assert "10.0 times as much for 10 times the steps" in said and "power 1.00" in said
    assert "longer than iMAML with 5 CG steps from 5 steps on" in said


def test_every_course_names_methods_and_the_network_is_imamls():
    for budget in BUDGETS.values():
        assert all(name in ENTRANTS for course in budget.courses for name in course.contestants)
    net = strided_net()
    assert net(torch.zeros(3, 1, 28, 28)).shape == (3, 20)
    assert sum(p.numel() for p in net.parameters()) == 640 + 3 * (64 * 64 * 9 + 64) + 4 * 128 + 256 * 20 + 20
