"""Few-shot experiments: what is built from a configuration, and that training on the embedded set learns."""

import json

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

from adjoint_meta import Batch
from adjoint_meta.experiments.episode_plot import episode
from adjoint_meta.experiments.few_shot import Episodes
from adjoint_meta.experiments.image_experiments import accuracy
from adjoint_meta.experiments.plots import BLUE, RED
from adjoint_meta.experiments.prepare import prepare
from adjoint_meta.experiments.registry import build, resolve
from adjoint_meta.experiments.run import train
from adjoint_meta.experiments.run_directory import RunDirectory

SMALL = {
    "model": {"filters": 8},
    "task": {"test_tasks": 4, "validation_tasks": 3, "queries": 2},
    "tasks_per_step": 2,
    "meta_steps": 3,
    "dtype": "float32",
}


def test_accuracy_is_the_share_of_largest_scores():
    scores = torch.tensor([[[2.0, 1.0], [0.0, 1.0], [3.0, 4.0]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    found = accuracy(scores, Batch(torch.zeros(2, 3, 1), torch.tensor([[0, 0, 1], [1, 1, 0]])))
    assert found.tolist() == pytest.approx([2 / 3, 0.0])
    scores[0, 2, 0] = torch.nan  # as the largest, it would make the image one of the first class
    found = accuracy(scores, Batch(torch.zeros(2, 3, 1), torch.tensor([[0, 0, 0], [1, 1, 1]])))
    assert found.isnan().tolist() == [True, False]


def test_the_experiment_is_the_configurations():
    config = resolve(SMALL, "glyphs", "anil")
    experiment = build(config)
    assert experiment.metric == "accuracy" and experiment.larger_is_better
    test = experiment.test[:]
    assert test.support.x.shape == (4, 5, 1, 28, 28) and test.query.x.shape == (4, 10, 1, 28, 28)
    assert len(experiment.validation) == 3
    tasks = experiment.train.meta_batch(0, 2, seed=0)
    assert tasks.query.y.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]] * 2
    assert experiment.model.head.out_features == 5
    # No class of one set is in another.
    sets = {"train": experiment.train, "validation": experiment.validation.source, "test": experiment.test.source}
    assert all(name.startswith(split) for split, source in sets.items() for name in source.classes.names)
    ways = resolve({**SMALL, "task": {"ways": 7, "shots": 3, "test_tasks": 1}}, "glyphs")
    assert build(ways).test[:].support.x.shape == (1, 21, 1, 28, 28)
    assert build(ways).model.head.out_features == 7


def test_characters_are_not_mirrored():
    """What augmenting makes of an image lies in the image moved by up to four pixels."""
    options = {**SMALL, "task": {"queries": 1, "test_tasks": 1, "augment": True}}
    changed, plain = (build(resolve({**options, **more}, "glyphs")).train for more in ({}, {"task": {"queries": 1}}))
    got, whole = changed[0:4].support.x[..., 0, :, :], plain[0:4].support.x[..., 0, :, :]
    for image, source in zip(got.flatten(0, 1), whole.flatten(0, 1), strict=True):
        moved = torch.nn.functional.pad(source, [4] * 4).unfold(0, 28, 1).unfold(1, 28, 1)
        assert bool((moved == image).flatten(2).all(dim=2).any())


def test_a_warm_start_asks_for_the_same_tasks_each_time():
    warm = {**SMALL, "method": {"warm_start": 2}}
    with pytest.raises(ValueError, match=r"warm_start=2 .* training has tasks without end and takes 2 .*warm_start=0"):
        prepare(resolve(warm, "glyphs", "memory-reduced"))
    prepared = prepare(resolve({**warm, "task": {**SMALL["task"], "train_tasks": 2}}, "glyphs", "memory-reduced"))
    without_end = build(resolve(SMALL, "glyphs")).train
    assert all(torch.equal(prepared.meta_batch(step).support.x, without_end[0:2].support.x) for step in range(3))


def test_training_images_that_do_not_fit_stay_where_they_are(monkeypatch):
    place, asked = Episodes.to, []

    def full(self, device):
        if self in asked:  # after its own making
            raise torch.OutOfMemoryError("CUDA out of memory")
        asked.append(self)
        return place(self, device)

    monkeypatch.setattr(Episodes, "to", full)
    with pytest.warns(RuntimeWarning, match="does not fit into the memory of cpu: they are made on the CPU"):
        prepared = prepare(resolve(SMALL, "glyphs"))
    assert prepared.meta_batch(0).support.x.shape == (2, 5, 1, 28, 28)


@pytest.mark.parametrize("method", ["anil", "memory-reduced"])
def test_methods_of_a_head_adapt_the_head(method):
    prepared = prepare(resolve(SMALL, "glyphs", method))
    assert prepared.learner.adapted_names == ("head.weight", "head.bias")
    some = prepare(resolve({**SMALL, "adapt": ["head.weight"]}, "glyphs", method))
    assert some.learner.adapted_names == ("head.weight",)


@pytest.mark.parametrize("model", ["mlp", "resnet12"])
def test_other_networks_take_the_images(model):
    options = {"mlp": {"width": 5}, "resnet12": {"widths": [2, 3]}}[model]
    prepared = prepare(resolve({**SMALL, "model": {"name": model, **options}}, "glyphs", "anil"))
    tasks = prepared.place(prepared.experiment.test[:])
    assert prepared.learner(tasks).isfinite()


def test_training_on_glyphs_learns_and_says_so(tmp_path):
    torch.set_default_dtype(torch.float32)
    keys = {**SMALL, "model": {"filters": 16}, "tasks_per_step": 8, "meta_steps": 40, "optimizer": {"lr": 0.005}}
    keys["task"] = {"test_tasks": 60, "validation_tasks": 10, "queries": 3}
    found = train(resolve({**keys, "validation": {"every": 20}}, "glyphs", "anil"), RunDirectory(tmp_path / "run"))
    test = found["test"]
    assert test["metric"] == "accuracy" and test["tasks"] == 60
    assert abs(test["before"] - 0.2) < 0.1  # one of five
    assert test["after"] - test["ci95"] > 0.35
    assert found["verdict"].startswith("Adaptation raises the accuracy: ")
    # The best validation is the largest.
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    values = [record["validation"] for record in map(json.loads, lines) if "validation" in record]
    assert len(values) == 2 and found["validation"]["best"] == max(values)


def test_a_plateau_schedule_must_know_that_accuracy_grows(tmp_path):
    keys = {**SMALL, "validation": {"every": 1}, "scheduler": {"name": "ReduceLROnPlateau"}}
    with pytest.raises(ValueError, match=r"accuracy is to grow; set scheduler\.options\.mode=max"):
        train(resolve(keys, "glyphs", "anil"), RunDirectory(tmp_path / "run"))


def test_the_picture_of_an_episode_frames_what_is_right():
    torch.set_default_dtype(torch.float32)
    prepared = prepare(resolve({**SMALL, "model": {"filters": 8}}, "glyphs", "anil"))
    tasks = prepared.experiment.scene
    made = episode(prepared, tasks, title="glyphs")
    assert len(made.axes) == 5 * 3  # a support image and two query images a class
    phi = prepared.learner.adapt(tasks.support)
    guesses = prepared.learner.predict(phi, tasks.query.x)[0].argmax(1)
    right = guesses == tasks.query.y[0]
    for place in range(10):
        axes = made.axes[place // 2 * 3 + 1 + place % 2]
        (image,) = axes.images
        np.testing.assert_allclose(image.get_array(), tasks.query.x[0, place, 0], atol=1e-6)
        assert axes.spines["top"].get_edgecolor() == to_rgba(BLUE if right[place] else RED)
        assert axes.get_xlabel() == ("" if right[place] else f"taken for {int(guesses[place]) + 1}")
    assert f"and {float(right.double().mean()):.0%} after" in made.get_suptitle()
