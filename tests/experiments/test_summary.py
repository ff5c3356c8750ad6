"""The verdict on a test says no more than its interval allows, and the figures have units and baselines."""

import copy
import math

import numpy as np
import pytest
import torch

from adjoint_meta.evaluation import Evaluation
from adjoint_meta.experiments import summary
from adjoint_meta.experiments.registry import build, resolve

pytestmark = pytest.mark.usefixtures("float32")


def judged(before, after, **baselines):
    experiment = build(resolve({"task": {"test_users": 10}}, "ratings-toy"))
    experiment = copy.copy(experiment)
    object.__setattr__(experiment, "baselines", {name: torch.tensor(value) for name, value in baselines.items()})
    return experiment, Evaluation(torch.tensor(before), torch.tensor(after))


def test_the_verdict_counts_differences_only_outside_their_interval():
    after = [0.20, 0.22, 0.24, 0.26]
    experiment, result = judged(
        [0.30, 0.33, 0.34, 0.35],
        after,
        item_mean=[0.21, 0.23, 0.26, 0.27],
        user_item_bias=[0.19, 0.21, 0.23, 0.25],
        third=[0.19, 0.23, 0.23, 0.27],
    )
    text = summary.verdict(experiment, result)
    assert text.startswith("Adaptation lowers the error: 1.320 before, 0.920 after (stars).")
    assert "The item-mean baseline (0.970) is beaten." in text
    assert "The user-item-bias baseline (0.880) WINS." in text
    assert "The third baseline (0.920) cannot be told from the method on these tasks." in text


@pytest.mark.parametrize(
    ("halves", "word"),
    [
        (-1.02, "lowers"),
        (-0.98, "does not clearly change"),
        (0.0, "does not clearly change"),
        (0.98, "does not clearly change"),
        (1.02, "raises"),
    ],
)
def test_the_verdicts_interval_is_that_of_paired_differences(halves, word):
    noise = np.array([-0.02, 0.01, 0.03, -0.01, -0.01])  # of mean zero
    shift = halves * 1.96 * noise.std(ddof=1) / math.sqrt(5)
    before = np.array([0.5, 0.1, 0.4, 0.2, 0.3])  # spread far more than the differences
    experiment, result = judged(before.tolist(), (before + noise + shift).tolist())
    assert f"Adaptation {word} the error" in summary.verdict(experiment, result)


def test_one_task_alone_proves_nothing():
    experiment, result = judged([0.3], [0.2], item_mean=[0.9])
    text = summary.verdict(experiment, result)
    assert "does not clearly change" in text and "cannot be told" in text


def test_the_test_summary_has_units_and_baselines():
    experiment, result = judged([0.3, 0.4], [0.2, 0.4], item_mean=[0.2, 0.3, 0.9])
    found = summary.figures(experiment, result)
    assert found["metric"] == "nRMSE" and found["after"] == pytest.approx(0.3)
    assert found["stars"]["after"] == pytest.approx(1.2) and found["stars"]["std"] == pytest.approx(4 * found["std"])
    assert found["baselines"] == {"item_mean": pytest.approx(0.25)}  # of the same two tasks


@pytest.mark.parametrize(
    ("experiment", "method", "overrides", "expected"),
    [
        ("sine", "adjoint", {}, "sine · adjoint, horizon 2.0, solver rk4, steps 20"),
        ("glyphs", "anil", {}, "glyphs · anil, steps 5, inner lr 0.4"),
        (
            "sine",
            "adjoint",
            {"method": {"adjoint": "checkpointed"}},
            "sine · adjoint, horizon 2.0, solver rk4, steps 20, adjoint checkpointed",
        ),
    ],
)
def test_a_picture_is_named_by_what_tells_runs_apart(experiment, method, overrides, expected):
    assert summary.title(resolve(overrides, experiment, method)) == expected
