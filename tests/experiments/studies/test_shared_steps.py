"""Own and shared step sizes on tasks of mixed stiffness."""

import pytest
import torch
from references import relative

from adjoint_meta.experiments.models import HalfMSELoss
from adjoint_meta.experiments.studies.shared_steps import PRECISION, PrecisionLoss, adaptive, compare, mixed
from adjoint_meta.experiments.studies.subject import Subject


@pytest.fixture
def stiff(model, tasks):
    return Subject(model, PrecisionLoss(), mixed(tasks))


def test_precision_scales_the_loss(generator):
    prediction, target = torch.randn(2, 5, 1, generator=generator)
    for precision in (1.0, 4.0):
        weighted = torch.cat([target, torch.full_like(target, precision)], dim=-1)
        expected = precision * HalfMSELoss()(prediction, target)
        assert PrecisionLoss()(prediction, weighted) == pytest.approx(float(expected))


def test_precisions_are_spread_over_their_range(tasks):
    for batch, plain in ((mixed(tasks).support, tasks.support), (mixed(tasks).query, tasks.query)):
        assert torch.equal(batch.y[..., :1], plain.y)
        assert torch.allclose(batch.y[:, 0, 1], torch.tensor([PRECISION[0], 2**0.5, PRECISION[1]]))


@pytest.mark.parametrize("solver", ["bosh3", "rkc"])
def test_shared_steps_are_the_same_for_all_and_cost_more(stiff, solver):
    own, shared = (stiff.measure(adaptive(solver, 3.0, 1e-4, shared=each)) for each in (False, True))
    assert len(set(shared.stats["accepted"].tolist())) == 1
    assert len(set(shared.stats["rejected"].tolist())) == 1
    assert len(set(own.stats["accepted"].tolist())) > 1
    assert shared.row_evaluations == len(stiff.tasks) * (shared.evaluations.n_grad + shared.evaluations.n_hvp)
    assert own.row_evaluations < shared.row_evaluations
    assert shared.stats["accepted"].max() >= own.stats["accepted"].max()


def test_both_approach_the_same_gradient(stiff):
    own, shared = (stiff.measure(adaptive("tsit5", 2.0, 1e-8, shared=each)) for each in (False, True))
    assert relative(own.gradient, shared.gradient) < 1e-6


def test_the_comparison_says_what_is_saved(model, tasks):
    (found,) = compare(model, tasks, 3.0, ["bosh3"])
    own, shared = (found[name]["evaluations_a_task"] for name in ("own", "shared"))
    assert found["saved"] == pytest.approx(1 - own / shared) and 0 < found["saved"] < 1
    assert found["radius"][0] < found["radius"][1]
    for name in ("own", "shared"):
        assert 0 < found[name]["gradient_error"]["median"] <= found[name]["gradient_error"]["largest"] < 1e-1
