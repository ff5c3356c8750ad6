"""Intervals, paired tests and orderings against scipy, statsmodels' published example and simulation."""

import numpy as np
import pytest
from scipy import stats

from adjoint_meta.experiments.statistics import holm, interval, order, wilcoxon


@pytest.fixture
def draw():
    return np.random.default_rng(7)


def test_one_seed_has_the_interval_of_its_tasks(draw):
    values = draw.normal(size=(1, 50))
    found = interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.half == pytest.approx(1.96 * stats.sem(values[0]))


def test_several_seeds_widen_the_interval_by_their_spread(draw):
    tasks = draw.normal(size=(8, 50))
    spread = np.linspace(-3, 3, 8)[:, None]
    apart, together = interval(tasks + spread), interval(tasks)
    # Between seeds: the bootstrap's variance is the spread's (without Bessel's correction) over their number.
    assert apart.half == pytest.approx(1.96 * np.std(spread + tasks.mean(1, keepdims=True)) / 8**0.5, rel=0.1)
    assert together.half < 0.2 * apart.half
    assert interval(tasks) == together  # no hidden random state


def test_the_interval_covers_the_mean_as_often_as_it_says(draw):
    samples = draw.normal(size=(400, 1, 30))
    covered = np.mean([abs(found.mean) <= found.half for found in map(interval, samples)])
    assert 0.91 <= covered <= 0.97  # 95 % less what 1.96 lacks of the t quantile, ± 2.5 standard errors


def test_wilcoxon_is_scipys_on_all_pairs(draw):
    ours, theirs = draw.normal(size=(2, 2, 20))
    assert wilcoxon(ours, theirs) == stats.wilcoxon(ours.ravel(), theirs.ravel()).pvalue
    assert wilcoxon(ours, ours) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_orderings_say_what_the_test_says(draw):
    base = draw.normal(size=(1, 60))
    values = {"worse": base + 1, "best": base, "as good": base + 0.01 * draw.normal(size=(1, 60))}
    found = order(values)
    assert found.names[2] == "worse" and found.p[1] < 1e-6
    tie = found.names[1]
    assert found.tied == [tie]
    assert found.sentence().startswith(
        f"{found.names[0]} has the smallest mean, not told apart from {tie} and ahead of"
    )
    clear = order({"a": base, "b": base + 1, "c": base + 2}).sentence()
    assert clear.startswith("a is best, ahead of b and c")
    assert order({"a": base}).sentence() == "a alone was run."


def test_larger_may_be_better(draw):
    values = {"low": 0.5 + 0.01 * draw.normal(size=(1, 60)), "high": 0.9 + 0.01 * draw.normal(size=(1, 60))}
    assert order(values).names == ["low", "high"]
    found = order(values, larger=True)
    assert found.names == ["high", "low"] and found.sentence().startswith("high is best, ahead of low")


def test_ranks_that_contradict_the_means_confirm_nothing(draw):
    steady = draw.normal(size=(1, 30))
    outliers = steady - 0.05  # better on 27 of 30 tasks ...
    outliers[0, :3] += 10  # ... and worse in the mean
    assert stats.wilcoxon((steady - outliers).ravel()).pvalue < 0.01
    assert wilcoxon(steady, outliers) == wilcoxon(outliers, steady) == 1.0
    assert order({"steady": steady, "outliers": outliers}).tied == ["outliers"]


def test_what_diverged_is_last(draw):
    base = draw.normal(size=(1, 30))
    diverged = base.copy()
    diverged[0, 3] = np.inf
    for names in (["diverged", "good"], ["good", "diverged"]):
        values = {"good": base, "diverged": diverged}
        assert order({name: values[name] for name in names}).names == ["good", "diverged"]
    assert str(interval(diverged)) == "diverged"
    worse = base + 1
    worse[0, 0] = np.inf
    assert wilcoxon(base, worse) == pytest.approx(stats.wilcoxon((base - worse).ravel()).pvalue)
    assert wilcoxon(diverged, diverged) == 1.0
