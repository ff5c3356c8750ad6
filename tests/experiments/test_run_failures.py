"""A run that cannot be leaves nothing half-written, and one that fails says why and leaves what can be read."""

import pytest
import torch
from small_runs import same, small, strict

from adjoint_meta import SolverError, checkpoint
from adjoint_meta.experiments import prepare as preparation
from adjoint_meta.experiments.prepare import prepare
from adjoint_meta.experiments.registry import resolve
from adjoint_meta.experiments.run import evaluate_run, train
from adjoint_meta.experiments.run_directory import RunDirectory
from adjoint_meta.training import TrainingFailed

pytestmark = pytest.mark.usefixtures("float32")


# Nothing half-written


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "Adamm"}},
        {"optimizer": {"name": "Optimizer"}},
        {"optimizer": {"options": {"momentumm": 1}}},
        {"optimizer": {"options": {"lr": 1}}},
        {"optimizer": {"name": "SparseAdam"}},
        {"scheduler": {"name": "CosineAnnealing"}},
        {"scheduler": {"name": "CosineAnnealingLR"}},
        {"scheduler": {"name": "LRScheduler"}},
        {"scheduler": {"name": "StepLR", "options": {"step_size": 0}}},
        {"adapt": ["7.*"]},
        {"mode": "sideways"},
        {"model": {"activation": "tan"}},
        {"task": {"shots": 0}},
        {"task": {"validation_tasks": 0}},
        {"validation": {"every": 0, "patience": 3}},
    ],
    ids=str,
)
def test_a_configuration_that_cannot_work_leaves_nothing(tmp_path, changes):
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        train(small(**changes), directory)
    assert str(caught.value) and "<locals>" not in str(caught.value)
    assert not directory.path.exists()


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": {"name": "LBFGS"}}, {"scheduler": {"name": "ReduceLROnPlateau"}}],
    ids=["LBFGS", "ReduceLROnPlateau"],
)
def test_what_needs_more_than_a_step_works_or_leaves_nothing(tmp_path, changes):
    directory = RunDirectory(tmp_path / "run")
    try:
        found = train(small(meta_steps=3, **changes), directory)
    except ValueError as error:
        (section,) = changes.values()
        assert section["name"] in str(error) and not directory.path.exists()
    else:
        assert found["meta_steps"] == 3


def test_messages_name_the_keys_of_the_configuration(tmp_path):
    with pytest.raises(ValueError, match=r"validation\.every"):
        train(small(validation={"every": 0, "patience": 3}), RunDirectory(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"task\.validation_tasks"):
        train(small(task={"validation_tasks": 0}), RunDirectory(tmp_path / "run"))


def test_a_method_without_shared_gradients_refuses_shared_parameters(tmp_path):
    config = resolve({"adapt": ["4.*"], "method": {"steps": 2}}, "sine", "reptile")
    with pytest.raises(ValueError, match="Reptile has no gradient for shared parameters"):
        train(config, RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no CUDA device was found; use --device cpu or auto"):
        train(small(device="cuda"), RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# Steps that fail


def test_a_run_whose_every_step_diverges_fails_with_the_reason(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    # h = 400, far outside the stability interval of any solver here
    config = small(method={"horizon": 4000.0, "steps": 10}, max_skipped=3, validation={"every": 0})
    with pytest.raises(TrainingFailed, match=r"3 meta-steps in a row had no finite meta-gradient; the last reason"):
        train(config, directory)
    assert not directory.summary.exists()
    for line in directory.metrics.read_text().splitlines():
        assert strict(line)["loss"] is None and strict(line)["skipped"]
    model = prepare(config).learner.state_dict()
    assert same(dict(checkpoint.load(directory.checkpoint)["trainer"]["model"]), dict(model))


def test_what_is_written_is_json_even_when_a_validation_fails(tmp_path, monkeypatch):
    real, calls = preparation.evaluate, []

    def evaluate(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise SolverError("scripted")
        return real(*arguments, **options)

    monkeypatch.setattr(preparation, "evaluate", evaluate)
    directory = RunDirectory(tmp_path / "run")
    train(small(), directory)
    lines = [strict(line) for line in directory.metrics.read_text().splitlines()]
    assert len(lines) == 14 and len(calls) == 8
    strict(directory.summary.read_text())


# What no run can go on from


@pytest.mark.parametrize(
    "content",
    [{"format": 1}, {"format": 1, "trainer": {}, "metrics_bytes": 0}, {"format": 1, "trainer": 3, "metrics_bytes": 0}],
)
def test_a_checkpoint_of_something_else_is_refused_in_words(tmp_path, content):
    directory = RunDirectory(tmp_path / "run")
    directory.create(small())
    torch.save(content, directory.checkpoint)
    for go_on in (lambda: train(small(), directory, resume=True), lambda: evaluate_run(directory)):
        with pytest.raises(ValueError, match=r"checkpoint\.pt"):
            go_on()


def test_a_directory_without_run_or_checkpoint_is_refused(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(ValueError, match=r"not a run directory"):
        evaluate_run(directory)
    directory.create(small())
    with pytest.raises(ValueError, match="has no checkpoint yet; train it first"):
        evaluate_run(directory)
