"""Every method trains on every experiment, and says what it found and where."""

import json
import os

import pytest
from train_settings import REGRESSION, SINE, TINY

from adjoint_meta.experiments.config import METHODS
from adjoint_meta.experiments.run_directory import read_metrics

pytestmark = pytest.mark.usefixtures("float32")


@pytest.mark.filterwarnings("ignore:conjugate gradients stopped early")  # three steps do not reach the minimiser
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("experiment", ["sine", "cosmixture", "alpine", "ratings-toy"])
def test_every_method_trains_on_every_embedded_experiment(call, tmp_path, experiment, method):
    tasks = ("task.test_users=5",) if experiment == "ratings-toy" else REGRESSION
    inner = ("method.steps=3",)
    out = tmp_path / "run"
    code, stdout, stderr = call(
        experiment, "--method", method, "--out", out, "--json", settings=("meta_steps=3", *TINY, *tasks, *inner)
    )
    assert code == 0, stderr
    found = json.loads(stdout)
    assert len(stdout.splitlines()) == 1 and found == json.loads((out / "summary.json").read_text())
    contract = (
        "experiment method config seed device dtype meta_steps seconds seconds_per_meta_step peak_memory_bytes "
        "n_grad_per_meta_step n_hvp_per_meta_step test run_dir"
    )
    assert set(contract.split()) <= set(found)
    assert {"metric", "before", "after", "std", "ci95", "tasks"} <= set(found["test"])
    assert (found["experiment"], found["method"], found["meta_steps"]) == (experiment, method, 3)
    assert found["run_dir"] == str(out) and found["config"]["method"]["steps"] == 3
    assert found["test"]["tasks"] == (5 if experiment == "ratings-toy" else 3)
    hvps = found["n_hvp_per_meta_step"]
    assert hvps == 0 if method in ("fomaml", "reptile") else hvps >= 3
    expected = {"config.yaml", "metrics.jsonl", "checkpoint.pt", "summary.json", "outcomes.json", "curves.png"}
    expected |= set() if experiment == "ratings-toy" else {"adaptation.png"}
    assert {path.name for path in out.iterdir()} - {"events"} == expected
    losses = [record["loss"] for record in read_metrics(out / "metrics.jsonl")]
    assert len(losses) == 3 and all(loss > 0 for loss in losses)


@pytest.mark.filterwarnings("ignore:conjugate gradients stopped early")
@pytest.mark.skipif(not os.environ.get("ADJOINT_META_DATA"), reason="ADJOINT_META_DATA is not set: no real data here")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_movielens(call, tmp_path, method):
    out = tmp_path / "run"
    code, stdout, stderr = call(
        "movielens-100k", "--method", method, "--out", out, "--json", settings=("meta_steps=3",)
    )
    assert code == 0, stderr
    found = json.loads(stdout)
    test = found["test"]
    assert test["metric"] == "nRMSE" and test["tasks"] == 100
    # an RMSE in stars is four times one of the range; predicting the mean of all is off by about 1.1 stars
    assert test["stars"]["after"] == pytest.approx(4 * test["after"]) and 0.5 < test["stars"]["after"] < 1.5
    assert 0.5 < test["stars"]["before"] < 1.5 and test["before"] != test["after"]
    assert {"item_mean", "user_item_bias"} == set(test["baselines"])
    assert 0.15 < test["baselines"]["user_item_bias"] < test["baselines"]["item_mean"] < 0.3
    for name in ("item-mean", "user-item-bias"):
        assert f"The {name} baseline" in found["verdict"]
    assert found["facts"]["users"] == 575 and found["facts"]["items"] == 100


def test_people_get_a_table_a_verdict_and_where_to_look(call, tmp_path):
    out = tmp_path / "run"
    code, stdout, stderr = call("sine", "--out", out, settings=("meta_steps=2", "method.steps=2", *SINE))
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    for text in (
        "sine · adjoint · 3 test tasks",
        f"{summary['test']['before']:.4f}",
        f"{summary['test']['after']:.4f}",
        summary["verdict"],
        "2 meta-steps in",
        "gradients",
        "HVPs",
        "peak memory",
        f"See curves.png, adaptation.png, summary.json in {out}",
    ):
        assert text in stdout
    assert "meta-step 2/2" in stderr and "\x1b" not in stdout + stderr


def test_the_default_directory_is_below_runs_and_never_the_same(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ("meta_steps=1", "method.steps=1", *SINE)
    for name in ("sine-maml", "sine-maml-2", "sine-maml-3"):
        code, stdout, _ = call("sine", "--method", "maml", "--json", settings=settings)
        assert code == 0 and json.loads(stdout)["run_dir"] == f"runs/{name}"
        assert (tmp_path / "runs" / name / "summary.json").exists()
