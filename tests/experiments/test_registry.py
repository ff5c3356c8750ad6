"""Experiments by name, against the settings that Li et al. 2023 print."""

import numpy as np
import pytest
import torch
from torch import nn

from adjoint_meta.experiments.collaborative import CollaborativeTasks
from adjoint_meta.experiments.config import METHODS
from adjoint_meta.experiments.data.errors import MissingDataError
from adjoint_meta.experiments.data.synthetic import synthetic_ratings
from adjoint_meta.experiments.models import HalfMSELoss
from adjoint_meta.experiments.registry import EXPERIMENTS, build, resolve
from adjoint_meta.solvers import TABLEAUS

# The names of the command line's contract.
CONTRACT = ("adjoint", "imaml", "maml", "fomaml", "reptile", "anil", "memory-reduced")
SYNTHETIC = ("sine", "cosmixture", "alpine")
RATINGS = ("ratings-toy", "movielens-100k", "movielens-1m", "jester")
IMAGES = ("omniglot", "glyphs", "mini-imagenet", "tiered-imagenet", "cifar-fs", "fc100")


def test_every_experiment_is_there():
    assert set(EXPERIMENTS) == {*SYNTHETIC, *RATINGS, *IMAGES}
    for entry in EXPERIMENTS.values():
        assert entry.summary and "\n" not in entry.summary
        assert set(entry.methods) == set(METHODS) == set(CONTRACT)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_defaults_that_build(name, method):
    config = resolve({}, name, method)
    assert config.experiment == name and config.method["name"] == method
    assert isinstance(config.build_method(), METHODS[method])


@pytest.mark.parametrize(
    ("names", "steps", "maml_steps"), [(SYNTHETIC, 200, 20), (RATINGS, 50, 5)], ids=["synthetic", "ratings"]
)
def test_inner_solves_are_as_long_as_the_paper_says(names, steps, maml_steps):
    """50/50 of section 5.1 (T = 2, 200 steps, MAML 20) and (i) of section 5.3 (T = 0.5, 50 steps, MAML 5)."""
    for name in names:
        options = {method: resolve({}, name, method).method for method in METHODS}
        for method in ("imaml", "fomaml", "reptile"):
            assert (options[method]["steps"], options[method]["inner_lr"]) == (steps, 0.01)
        assert (options["maml"]["steps"], options["maml"]["inner_lr"]) == (maml_steps, 0.01)
        assert options["adjoint"]["horizon"] == pytest.approx(0.01 * steps)
        assert options["adjoint"]["proximal"] == 0.0 and options["adjoint"]["adjoint"] == "discrete"
        assert options["adjoint"]["solver"] in TABLEAUS
        assert (options["imaml"]["proximal"], options["imaml"]["cg_steps"]) == (1.0, 5)


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        ({"solver": "rkc", "rtol": 1e-2}, None),
        ({"solver": "auto"}, None),
        ({"solver": "heun", "rtol": 1e-2}, None),
        ({"solver": "sdirk2"}, None),
        ({"solver": "dopri5", "steps": 7}, 7),
        ({"horizon": 1.0}, 5),
        ({"solver": "rk4"}, 5),
        ({"adjoint": "checkpointed"}, 5),
    ],
)
def test_the_default_steps_belong_to_the_default_solver(asked, steps):
    config = resolve({"method": asked}, "ratings-toy")  # whose default is not the solver's own
    assert config.method["steps"] == steps
    assert config.build_method() == resolve({"method": config.method}, "ratings-toy").build_method()


@pytest.mark.parametrize("name", [*SYNTHETIC, *RATINGS])
def test_the_outer_loop_is_the_papers(name):
    config = resolve({}, name)
    assert config.tasks_per_step == 5
    assert (config.optimizer.name, config.optimizer.lr, config.scheduler.name) == ("Adam", 1e-3, None)
    assert config.clip_norm is None and config.validation.every == 0


@pytest.mark.parametrize("name", ["cosmixture", "alpine"])
def test_the_synthetic_experiments_have_the_papers_counts_and_network(name):
    experiment = build(resolve({}, name))
    assert len(experiment.train) == 100 and len(experiment.test) == 100 and experiment.validation is None
    drawn = experiment.train[0:2]
    assert drawn.support.x.shape == (2, 50, 2) and drawn.query.x.shape == (2, 50, 2)
    assert experiment.test.support.x.shape == (100, 50, 2) and experiment.test.query.x.shape == (100, 100, 2)
    assert [tuple(p.shape) for p in experiment.model.parameters()] == [(32, 2), (32,), (32, 32), (32,), (1, 32), (1,)]
    assert [type(layer) for layer in experiment.model][1::2] == [nn.Tanh, nn.Tanh]
    assert isinstance(experiment.loss, HalfMSELoss)
    assert experiment.metric == "nRMSE" and experiment.scene is not None and not experiment.baselines


def test_the_toy_ratings_have_the_papers_network_and_both_baselines():
    config = resolve({}, "ratings-toy")
    experiment = build(config)
    assert [tuple(p.shape) for p in experiment.model.parameters()] == [
        (40, 100),
        (40,),
        (40, 40),
        (40,),
        (1, 40),
        (1,),
    ]
    drawn = experiment.train[0:3]
    assert drawn.support.x.shape == (3, 10, 100) and drawn.query.x.shape == (3, 15, 100)
    assert experiment.scene is None and set(experiment.baselines) == {"item_mean", "user_item_bias"}
    assert experiment.units == {"stars": 4.0} and experiment.facts["test_users"] == len(experiment.test)

    # the metric is RMSE in stars over the range, and the baselines are in the same unit
    tasks = CollaborativeTasks(synthetic_ratings(config.seed), 10, 15, seed=config.seed)
    query = experiment.test.query
    prediction = torch.zeros_like(query.y)
    found = experiment.measure(prediction, query).double().numpy()
    stars = tasks.held_out.rmse(np.full(tasks.held_out.ratings.shape, tasks.shift))
    np.testing.assert_allclose(found, stars / 4.0, rtol=1e-5)
    for name, values in tasks.baselines().items():
        np.testing.assert_allclose(experiment.baselines[name], values / 4.0, rtol=1e-12)


def test_options_reach_the_tasks():
    options = {"train_tasks": 7, "validation_tasks": 2, "test_tasks": 3, "shots": 4, "queries": 5, "test_queries": 6}
    experiment = build(resolve({"task": options, "model": {"width": 9, "depth": 1, "activation": "relu"}}, "sine"))
    assert (len(experiment.train), len(experiment.validation), len(experiment.test)) == (7, 2, 3)
    assert experiment.train[0:1].support.x.shape == (1, 4, 1) and experiment.train[0:1].query.x.shape == (1, 5, 1)
    assert experiment.validation.query.x.shape == (2, 5, 1) and experiment.test.query.x.shape == (3, 6, 1)
    assert [type(layer) for layer in experiment.model] == [nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("name", ["sine", "ratings-toy"])
def test_the_seed_decides_tasks_and_weights(name):
    def parts(seed):
        experiment = build(resolve({"seed": seed}, name))
        return [experiment.train[0:2].query.y, experiment.test.support.y, experiment.model[0].weight.detach()]

    one, again, other = parts(3), parts(3), parts(4)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["movielens-100k", "movielens-1m", "jester"])
def test_data_that_are_not_here_are_missing_with_the_way_to_get_them(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ADJOINT_META_DATA", raising=False)
    (tmp_path / "data").mkdir()
    with pytest.raises(MissingDataError, match=f"adjoint-meta data fetch {name}.*https://") as caught:
        build(resolve({}, name), tmp_path / "data")
    assert str(tmp_path / "data") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("sine", {"shots": 0}, "shots must be at least 1"),
        ("cosmixture", {"test_tasks": 0}, "test_tasks must be at least 1"),
        ("ratings-toy", {"shots": 95}, "no training user|hold out"),
        ("ratings-toy", {"test_users": 500}, "hold out fewer"),
    ],
)
def test_tasks_that_cannot_be_are_refused(name, task, message):
    with pytest.raises(ValueError, match=message):
        build(resolve({"task": task}, name))
