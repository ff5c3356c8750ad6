"""Memory against inner steps: what is measured, what is said of it, and that tensors are counted right."""

from dataclasses import replace

import pytest
import torch

from adjoint_meta.experiments.studies import memory_reduced_memory
from adjoint_meta.experiments.studies.catalogue import STUDIES
from adjoint_meta.experiments.studies.contestants import FEW_SHOT
from adjoint_meta.experiments.studies.memory_reduced_memory import BUDGETS
from adjoint_meta.experiments.studies.memory_reduced_memory_plot import STYLES, series
from adjoint_meta.experiments.studies.memory_reduced_memory_report import findings
from adjoint_meta.experiments.studies.race import Course
from adjoint_meta.experiments.studies.study import Setting
from adjoint_meta.experiments.tensor_bytes import TensorBytes

MEASURED = ("memory-reduced", "plain Algorithm 1", "plain ITD-BiO")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    courses = (Course("five-way-halves", 1, (1, 20), MEASURED, ()),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "quick", replace(BUDGETS["quick"], courses=courses, repeats=1))
        return memory_reduced_memory.run(Setting("quick", tmp_path_factory.mktemp("memory"), device="cpu"))


def test_every_contestant_is_measured_at_every_number_of_steps(made):
    assert {(r["contestant"], r["steps"]) for r in made.records} == {(name, n) for name in MEASURED for n in (1, 20)}
    assert all(r["seconds"] > 0 and r["tensor_mib"] > 0 for r in made.records)


def test_the_claim_holds_where_features_are_in_every_step(made):
    """At most half of ITD-BiO's tensors at 20 steps, and the same at 1; the features alone are a bound from below."""
    ours, itd = (series(made.records, name, "tensor_mib") for name in ("memory-reduced", "plain ITD-BiO"))
    assert ours[20] <= 0.5 * itd[20]
    assert ours[20] == pytest.approx(ours[1], rel=0.01)
    kept = 25 * 64 * (14 * 14 + 7 * 7 + 4 * 4 + 2 * 2)  # the results of 4 convolutions for the batch norms after them
    assert ours[20] > 2 * kept * 4 / 2**20
    assert itd[20] > 20 * 2 * kept * 4 / 2**20


def test_the_report_has_a_picture_and_three_tables_a_course(made):
    titles = [part.title for part in made.parts if hasattr(part, "rows")]
    assert len(titles) == 3 and all("support and query alike" in title for title in titles)
    assert [part.name for part in made.parts if hasattr(part, "figure")] == ["memory_five_way_halves"]


def entry(name, steps, mib, seconds=1.0):
    return {
        "course": "C",
        "workload": "five-way",
        "contestant": name,
        "steps": steps,
        "tensor_mib": mib,
        "extra_mib": 2 * mib,
        "seconds": seconds,
    }


def test_findings_follow_from_the_entries():
    entries = [entry("memory-reduced", n, 10.0) for n in (1, 20)]
    entries += [entry("plain MAML", 1, 20.0, 0.5), entry("plain MAML", 20, 200.0, 4.0)]
    entries += [entry("plain ANIL", n, 12.5) for n in (1, 20)]
    said = " ".join(findings(entries))
    assert "plain MAML 95% (95%)" in said and "plain ANIL 20% (20%)" in said
    assert "at least 50% less memory holds by both measures against plain MAML; by neither against plain ANIL." in said
    assert "plain ITD-BiO" not in said
    assert "plain MAML 0.2" in said and "memory-reduced 1.00, plain ANIL 1.00, plain MAML 10.00 times" in said


def test_findings_do_without_what_was_left_out():
    assert findings([entry("plain MAML", 1, 20.0)]) == []


def test_tensors_are_counted_while_they_live():
    held = torch.ones(1000)
    few = torch.ones(256, dtype=torch.float32)
    with TensorBytes() as found:
        one = (few + 1) + 1  # two of 1 KiB at once
        view = one[3:].view(-1)
        assert found.peak == 2048 and found.now == 1024
        del one
        assert found.now == 1024, "a view keeps what it is a view of"
        del view
        held.add_(1)
        assert found.now == 0
    assert found.peak == 2048


def test_the_study_is_in_the_catalogue_and_draws_all_it_measures():
    assert STUDIES["memory-reduced-memory"].budgets is BUDGETS
    assert list(STYLES) == list(FEW_SHOT)
    assert all(course.contestants == tuple(FEW_SHOT) for budget in BUDGETS.values() for course in budget.courses)
