"""Runs: what they leave behind, that they continue bit for bit, and that testing them again changes nothing."""

import math
import os

import numpy as np
import pytest
import torch
from small_runs import assert_same_run, small, started, strict

from adjoint_meta import checkpoint
from adjoint_meta.experiments.models import mlp
from adjoint_meta.experiments.prepare import choose_device
from adjoint_meta.experiments.registry import build, resolve
from adjoint_meta.experiments.run import Interrupted, evaluate_run, train
from adjoint_meta.experiments.run_directory import RunDirectory, read_metrics

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run that many tests look at: its directory, and what `train` returned."""
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "sine")
    records = []
    returned = started(small(), directory, observe=records.append)
    return directory, returned, records


# What a run leaves


def test_the_files_are_those_of_the_contract(finished):
    directory, _, _ = finished
    names = set(os.listdir(directory.path))
    assert names - {"events"} == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoint.pt",
        "summary.json",
        "outcomes.json",
        "curves.png",
        "adaptation.png",
    }


def test_the_summary_has_the_keys_of_the_contract(finished):
    directory, returned, _ = finished
    found = strict(directory.summary.read_text())
    assert found == returned
    contract = (
        "experiment method config seed device dtype meta_steps seconds seconds_per_meta_step peak_memory_bytes "
        "n_grad_per_meta_step n_hvp_per_meta_step test run_dir"
    )
    assert set(contract.split()) <= set(found)
    assert {"metric", "before", "after", "std", "ci95", "tasks"} <= set(found["test"])
    assert (found["experiment"], found["method"], found["seed"], found["dtype"]) == ("sine", "adjoint", 0, "float32")
    assert found["device"] == str(choose_device("auto"))
    assert found["meta_steps"] == 14 and found["run_dir"] == str(directory.path)
    assert resolve(found["config"]) == small()
    assert found["peak_memory_bytes"] > 2**20


def test_time_and_evaluations_are_those_of_the_meta_steps(finished):
    _, returned, records = finished
    assert returned["seconds"] == pytest.approx(sum(record["seconds"] for record in records))
    assert returned["seconds_per_meta_step"] == pytest.approx(returned["seconds"] / 14)
    # rk4, 3 steps: 12 slopes forward and the query gradient; 12 products back, with whatever gradients they need
    assert returned["n_hvp_per_meta_step"] == 12 and returned["n_grad_per_meta_step"] >= 13


def test_the_metrics_are_what_was_observed(finished):
    directory, _, records = finished
    lines = [strict(line) for line in directory.metrics.read_text().splitlines()]
    assert lines == records and [line["step"] for line in lines] == list(range(1, 15))
    assert [line["step"] for line in lines if "validation" in line] == [2, 4, 6, 8, 10, 12, 14]
    rates = [0.02 * 1.3**step for step in range(14)]
    assert [line["lr"] for line in lines] == pytest.approx(rates)
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 for line in lines)


def test_the_configuration_repeats_the_run(finished, tmp_path):
    directory, _, _ = finished
    again = RunDirectory(tmp_path / "again")
    started(directory.read_config(), again)
    assert_same_run(directory, again)


def test_the_default_dtype_changes_nothing(finished, tmp_path):
    torch.set_default_dtype(torch.float64)
    other = RunDirectory(tmp_path / "other")
    started(small(), other)
    # torch's own initialisation, which is overwritten, draws by dtype, and Adam counts its steps in it
    assert_same_run(finished[0], other, but=("rng", "optimizer"))


def rk4_by_hand(model, x, y, horizon, steps):
    """The parameters after `steps` classical Runge-Kutta steps down ½ mean square error."""
    parameters = [p.detach().clone() for p in model.parameters()]

    def slope(values):
        values = [value.detach().requires_grad_() for value in values]
        named = dict(zip([name for name, _ in model.named_parameters()], values, strict=True))
        error = torch.func.functional_call(model, named, (x,)) - y
        return [-g for g in torch.autograd.grad(0.5 * error.square().mean(), values)]

    h = horizon / steps

    def moved(by, slopes):
        return [p + by * s for p, s in zip(parameters, slopes, strict=True)]

    for _ in range(steps):
        k1 = slope(parameters)
        k2 = slope(moved(h / 2, k1))
        k3 = slope(moved(h / 2, k2))
        k4 = slope(moved(h, k3))
        parameters = [
            p + h / 6 * (a + 2 * b + 2 * c + d) for p, a, b, c, d in zip(parameters, k1, k2, k3, k4, strict=True)
        ]
    return dict(zip([name for name, _ in model.named_parameters()], parameters, strict=True))


def test_the_test_is_of_the_best_state_by_the_methods_own_solve(finished):
    """Before and after, task by task with plain torch, from the weights that validation liked best."""
    directory, returned, records = finished
    validations = {record["step"]: record["validation"] for record in records if "validation" in record}
    best_step = min(validations, key=validations.get)
    assert best_step < 14  # or the last state could not be told from the best
    assert returned["validation"] == {"best": validations[best_step], "step": best_step}

    stored = checkpoint.load(directory.checkpoint)["trainer"]
    test = build(small()).test
    errors = {}
    for which in ("best_model", "model"):
        model = mlp(1, 6, 2, 1).double()
        model.load_state_dict({name.removeprefix("model."): value for name, value in stored[which].items()})
        before, after = [], []
        for task in range(5):
            adapted = rk4_by_hand(model, test.support.x[task], test.support.y[task], 0.6, 3)
            for values, into in ((dict(model.named_parameters()), before), (adapted, after)):
                with torch.no_grad():
                    error = torch.func.functional_call(model, values, (test.query.x[task],)) - test.query.y[task]
                into.append(float(error.square().mean().sqrt()))
        errors[which] = (np.array(before), np.array(after))
    before, after = errors["best_model"]
    found = returned["test"]
    # float32 against float64
    assert found["before"] == pytest.approx(before.mean(), rel=1e-5)
    assert found["after"] == pytest.approx(after.mean(), rel=1e-5)
    assert found["std"] == pytest.approx(after.std(ddof=1), rel=1e-4)
    assert found["ci95"] == pytest.approx(1.96 * after.std(ddof=1) / math.sqrt(5), rel=1e-4)
    assert (found["metric"], found["tasks"]) == ("nRMSE", 5)
    assert found["after"] != pytest.approx(errors["model"][1].mean(), rel=1e-3)
    assert returned["test_adam"]["0"] == pytest.approx(before.mean(), rel=1e-5)
    assert set(returned["test_adam"]) == {"0", "100"}


def test_the_last_epoch_of_adam_is_reported(tmp_path):
    returned = train(small(meta_steps=1, test={"adam_epochs": 30}), RunDirectory(tmp_path / "run"))
    assert "30" in returned["test_adam"]


def test_learned_hyperparameters_are_in_the_summary(tmp_path):
    method = {"horizon": 0.6, "steps": 2, "learn": ["horizon", "rates"]}
    returned = train(small(meta_steps=3, method=method), RunDirectory(tmp_path / "run"))
    found = returned["hyperparameters"]
    assert set(found) == {"horizon", "rates"} and found["horizon"] != 0.6 and found["horizon"] > 0
    assert 0 < found["rates"]["min"] <= found["rates"]["mean"] <= found["rates"]["max"]


# Going on


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_an_interrupted_run_continues_bit_for_bit(finished, tmp_path, stop):
    directory = RunDirectory(tmp_path / "run")
    seen = []
    with pytest.raises(Interrupted, match=f"after meta-step {stop}") as caught:
        started(small(), directory, observe=seen.append, should_stop=lambda: len(seen) == stop)
    assert caught.value.step == stop and not directory.summary.exists()
    assert len(read_metrics(directory.metrics)) == stop
    torch.manual_seed(stop)  # whatever the new process starts from
    train(directory.read_config(), directory, resume=True)
    assert_same_run(directory, finished[0])


def test_a_stop_in_the_middle_of_a_meta_step_does_not_save_half_of_it(finished, tmp_path, monkeypatch):
    """The second Ctrl-C comes at any moment: here after the optimiser moved the weights, before the step counted."""
    real, calls = torch.optim.Adam.step, []

    def step(self, *arguments):
        real(self, *arguments)
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        started(small(), directory)
    monkeypatch.undo()
    train(directory.read_config(), directory, resume=True)
    assert_same_run(directory, finished[0])


def test_a_kill_before_the_first_checkpoint_starts_anew(finished, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create(small())
    directory.metrics.write_text('{"step": 1, "lo')
    started(small(), directory, resume=True)
    assert_same_run(directory, finished[0])


def test_more_meta_steps_continue_as_if_asked_for_at_once(tmp_path):
    once, twice = RunDirectory(tmp_path / "once"), RunDirectory(tmp_path / "twice")
    started(small(), once)
    started(small(meta_steps=6), twice)
    train(twice.continued({"meta_steps": 14}), twice, resume=True)
    assert_same_run(once, twice)


def test_a_finished_run_resumed_is_tested_again_and_not_trained(finished, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    started(small(), directory)
    directory.summary.unlink()  # killed while it drew
    seen = []
    train(small(), directory, resume=True, observe=seen.append)
    assert seen == []
    assert_same_run(directory, finished[0])


def test_a_second_run_in_the_same_directory_is_refused_and_leaves_the_first(finished):
    directory, _, _ = finished
    before = {path.name: path.read_bytes() for path in directory.path.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="already holds a run"):
        train(small(meta_steps=2), directory)
    assert {path.name: path.read_bytes() for path in directory.path.iterdir() if path.is_file()} == before


def test_a_checkpoint_of_another_model_is_refused(finished, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create(small(model={"width": 7}))
    directory.checkpoint.write_bytes(finished[0].checkpoint.read_bytes())
    directory.metrics.write_bytes(finished[0].metrics.read_bytes())
    for go_on in (lambda: train(directory.read_config(), directory, resume=True), lambda: evaluate_run(directory)):
        with pytest.raises(ValueError, match=r"checkpoint\.pt holds .* of shape \[6.*the model has \[7"):
            go_on()


def test_the_way_out_of_a_damaged_checkpoint_works(finished, tmp_path):
    """The message says what to do; doing it trains again."""
    directory = RunDirectory(tmp_path / "run")
    directory.create(small())
    directory.checkpoint.write_bytes(finished[0].checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match="delete it") as caught:
        train(small(), directory, resume=True)
    directory.checkpoint.unlink()
    started(small(), directory, resume="without --resume" not in str(caught.value))
    assert_same_run(directory, finished[0])


# Testing again


def test_evaluating_again_gives_the_same_figures(finished):
    directory, returned, _ = finished
    found = evaluate_run(directory)
    assert found["test"] == returned["test"] and found["verdict"] == returned["verdict"]
    for key in ("experiment", "method", "seed", "device", "dtype", "meta_steps", "run_dir"):
        assert found[key] == returned[key]


def test_fewer_tasks_are_the_first_ones(finished):
    directory, returned, _ = finished
    alone, two, three = (evaluate_run(directory, tasks=count)["test"] for count in (1, 2, 3))
    assert (alone["tasks"], alone["std"], alone["ci95"]) == (1, 0.0, 0.0)
    values = [alone["after"], 2 * two["after"] - alone["after"], 3 * three["after"] - 2 * two["after"]]
    assert three["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-4)
    assert evaluate_run(directory, tasks=5)["test"] == returned["test"]


@pytest.mark.parametrize("tasks", [0, -1, 6])
def test_a_number_of_tasks_that_is_not_there_is_refused(finished, tasks):
    with pytest.raises(ValueError, match=f"between 1 and 5, .*got {tasks}"):
        evaluate_run(finished[0], tasks=tasks)
