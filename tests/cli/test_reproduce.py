"""`adjoint-meta reproduce`: training studies at a toy budget, through the real door."""

import csv
import json
import os
from copy import deepcopy
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from adjoint_meta import checkpoint
from adjoint_meta.experiments.prepare import prepare
from adjoint_meta.experiments.run_directory import RunDirectory, read_metrics
from adjoint_meta.experiments.studies import figure2, ratings_tables
from adjoint_meta.experiments.studies.catalogue import STUDIES
from adjoint_meta.experiments.studies.published_curves import COLUMNS_CF, EPOCHS_2, FIGURE_2, TABLES_CF

DATA = os.environ.get("ADJOINT_META_DATA", "")


pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def call(invoke):
    return partial(invoke, "reproduce")


def check_files(out, pictures):
    """All that the issue names is there and can be read without anything else."""
    page = (out / "report.html").read_text(encoding="utf-8")
    HTMLParser().feed(page)
    assert page.count("data:image/png;base64,") == len(pictures) and 'src="http' not in page
    for name in pictures:
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG" and "<svg" in (out / f"{name}.svg").read_text()
    results = json.loads((out / "results.json").read_text())
    assert results["findings"] and results["departures"] and results["environment"]["torch"] == torch.__version__
    with (out / "table.csv").open(encoding="utf-8") as lines:
        assert len(list(csv.DictReader(lines))) == len(results["records"]) > 0
    assert (out / "table.md").read_text(encoding="utf-8").startswith("# ")
    return results


def check_fitted_points(out, records):
    """The error on fitted points after the last epoch, by torch's own Adam on the module, one task at a time."""
    directory = RunDirectory(out / "50shot-50val" / "runs" / "a-maml" / "seed-0")
    prepared = prepare(directory.read_config())
    checkpoint.load_module(prepared.learner, directory.read_checkpoint()["trainer"]["model"], "it")
    support = prepared.place(prepared.experiment.test).support
    errors = []
    for x, y in zip(support.x, support.y, strict=True):
        model = deepcopy(prepared.learner.model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-6)
        for _ in range(10):
            optimizer.zero_grad()
            (0.5 * (model(x) - y).square().mean()).backward()
            optimizer.step()
        errors.append(float((model(x) - y).detach().square().mean().sqrt()))
    (record,) = [r for r in records if r["when"] == "adam, fitted points" and r["epoch"] == 10]
    assert record["nRMSE"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_figure_2(call, monkeypatch, tmp_path):
    monkeypatch.setitem(figure2.BUDGETS, "quick", figure2.Budget(1, epochs=10, tasks=4, shots=(50,)))
    out = tmp_path / "fig"
    code, text, errors = call("fig2-alpine", "--out", out, "--jobs", 1)
    assert code == 0, errors
    results = check_files(out, ["figure2"])
    assert {r["panel"] for r in results["records"]} == {"50shot-50val"}
    methods = {r["method"] for r in results["records"]}
    assert methods == {"A-MAML", "iMAML", "MAML", "MAML (200)", "FOMAML", "Reptile", "MAML-1"}
    # One number against its source: the mean over the test tasks that the run wrote down.
    own = json.loads((out / "50shot-50val" / "runs" / "maml-1" / "seed-0" / "outcomes.json").read_text())
    (record,) = [
        r
        for r in results["records"]
        if (r["panel"], r["method"], r["when"]) == ("50shot-50val", "MAML-1", "adam") and r["epoch"] == 10
    ]
    assert record["nRMSE"] == pytest.approx(sum(own["adam"]["10"]) / 4)
    assert "0.989" in text  # the paper's Reptile at epoch 0
    assert any("5 end with a smaller error on 50 points than on 100" in line for line in results["findings"])
    check_fitted_points(out, results["records"])

    before = {path: path.stat().st_mtime_ns for path in out.rglob("checkpoint.pt")}
    code, _, errors = call("fig2-alpine", "--out", out, "--jobs", 1)
    assert code == 0, errors
    assert {path: path.stat().st_mtime_ns for path in out.rglob("checkpoint.pt")} == before and len(before) == 7


def test_a_table_without_data_at_hand(call, monkeypatch, tmp_path):
    monkeypatch.setitem(ratings_tables.BUDGETS, "quick", ratings_tables.Budget(2, (("ratings-toy", 10),), 5))
    code, text, errors = call("cf-table2", "--out", tmp_path / "cf", "--jobs", 1, "--json")
    assert code == 0, errors
    results = json.loads(text)
    check_files(tmp_path / "cf", ["table"])
    assert any("baselines without a network" in line for line in results["findings"])
    config = (tmp_path / "cf" / "ratings-toy-10-15" / "runs" / "a-maml" / "seed-0" / "config.yaml").read_text()
    assert "horizon: 1.0" in config and "queries: 15" in config
    assert len(read_metrics(tmp_path / "cf/ratings-toy-10-15/runs/maml-100/seed-0/metrics.jsonl")) == 2


@pytest.mark.skipif(not (Path(DATA) / "ml-100k.zip").is_file(), reason="needs ml-100k.zip in ADJOINT_META_DATA")
def test_a_column_of_table_1_beside_the_papers(call, monkeypatch, tmp_path):
    monkeypatch.setitem(ratings_tables.BUDGETS, "quick", ratings_tables.Budget(1, (("movielens-100k", 20),), 20))
    code, text, errors = call("cf-table1", "--out", tmp_path / "cf", "--jobs", 1)
    assert code == 0, errors
    results = check_files(tmp_path / "cf", ["table"])
    assert "Kendall" in results["findings"][1] and "ML-100K 20/30" in text
    assert "0.023" in text and "0.068" in text  # what the paper prints for A-MAML and FOMAML there


def test_missing_data_are_named(call, tmp_path):
    code, _, errors = call("cf-table1", "--out", tmp_path / "cf", "--data-dir", tmp_path, "--jobs", 1)
    assert code == 1 and "jester" in errors.lower() and len(errors.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cf-tabel1"], "cf-table1"),
        (["cf-table1", "--budget", "quik"], "quick"),
        (["cf-table1", "--jobs", "0"], "jobs"),
        (["cf-table1", "--device", "cuda:7"], "cuda"),
        (["precision", "--jobs", "2"], "precision works in one process, got --jobs 2"),
        (["efficiency", "--jobs", "0"], "jobs"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(call, tmp_path, arguments, message):
    code, _, errors = call(*arguments, "--out", tmp_path / "no")
    assert code == 2 and message in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["meta-gradient-error", "precision", "failure-modes", "inner-optimisers"])
def test_a_study_of_the_cpu_refuses_a_gpu(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=f"{name} computes on the CPU, got --device cuda; leave --device out"):
        STUDIES[name].resources(name, None, "cuda")
    assert STUDIES[name].resources(name, None, "auto") == (1, "cpu")


def test_what_was_computed_on_another_device_is_left_alone(call, tmp_path):
    identity = {"command": "reproduce", "study": "precision", "budget": "quick", "device": "cuda"}
    (tmp_path / "study.json").write_text(json.dumps(identity))
    code, _, errors = call("precision", "--out", tmp_path)
    assert code == 2 and "device is 'cuda' there, 'cpu' here; choose another --out" in errors


def test_results_of_other_sizes_are_left_alone(call, monkeypatch, tmp_path):
    """Such as those of another version, whose budget of the same name takes fewer steps."""
    for steps, expected in ((2, 0), (3, 2)):
        budget = ratings_tables.Budget(steps, (("ratings-toy", 10),), 5)
        monkeypatch.setitem(ratings_tables.BUDGETS, "quick", budget)
        monkeypatch.setattr(ratings_tables, "methods", lambda *_: {"A-MAML": {"name": "fomaml", "steps": 1}})
        code, _, errors = call("cf-table1", "--out", tmp_path / "cf", "--jobs", 1)
        assert code == expected, errors
    assert "sizes is" in errors and "meta_steps=2" in errors and "meta_steps=3" in errors


def test_a_directory_of_another_study_is_left_alone(call, monkeypatch, tmp_path):
    monkeypatch.setitem(ratings_tables.BUDGETS, "quick", ratings_tables.Budget(1, (("ratings-toy", 10),), 5))
    (tmp_path / "study.json").write_text('{"command": "reproduce", "study": "fig2-alpine", "budget": "quick"}')
    code, _, errors = call("cf-table1", "--out", tmp_path)
    assert code == 2 and "fig2-alpine" in errors and "choose another --out" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.json"]


def test_the_papers_numbers_are_whole():
    assert all(len(curve) == len(EPOCHS_2) for panel in FIGURE_2.values() for curve in panel.values())
    assert all(len(row) == len(COLUMNS_CF) for table in TABLES_CF.values() for row in table.values())
    # A-MAML is lowest everywhere in both tables, as the paper says.
    for table in TABLES_CF.values():
        for column in range(6):
            assert min(table, key=lambda method: table[method][column][0]) == "A-MAML"
