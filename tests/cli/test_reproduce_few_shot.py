"""`adjoint-meta reproduce` of few-shot tables at a toy budget, through the real door."""

import csv
import json
import os
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from image_builders import encode, write
from scipy import stats

from adjoint_meta.experiments.comparison import jobs
from adjoint_meta.experiments.data.class_splits import official_classes
from adjoint_meta.experiments.studies import omniglot_table, photograph_tables
from adjoint_meta.experiments.studies.published_images import MEMORY_REDUCED, MINI_IMAGENET, OMNIGLOT

DATA = os.environ.get("ADJOINT_META_DATA", "")

pytestmark = [
    pytest.mark.usefixtures("float32"),
    # A random network after one meta-step has directions of negative curvature.
    pytest.mark.filterwarnings("ignore:conjugate gradients:RuntimeWarning"),
]


@pytest.fixture
def call(invoke):
    return partial(invoke, "reproduce")


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """A data directory with a folder mini-imagenet: five classes of noise a split, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ADJOINT_META_DATA", raising=False)
    draw = np.random.default_rng(0)
    home = official_classes("mini-imagenet")
    for split, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        for name in [each for each in home if home[each] == split][:5]:
            images = {f"{n}.png": encode(draw.integers(256, size=(16, 16, 3), dtype=np.uint8)) for n in range(16)}
            write(tmp_path / "data" / "mini-imagenet" / folder / name, images)
    return tmp_path / "data"


def some(methods, names):
    """Let a study know these methods alone, so that it takes seconds."""
    return lambda *arguments: {name: methods(*arguments)[name] for name in names}


def read(out):
    """What the report holds, after a look at its files."""
    page = (out / "report.html").read_text(encoding="utf-8")
    HTMLParser().feed(page)
    assert page.count("data:image/png;base64,") == 1 and 'src="http' not in page
    assert (out / "accuracy.png").read_bytes()[:4] == b"\x89PNG" and "<svg" in (out / "accuracy.svg").read_text()
    results = json.loads((out / "results.json").read_text())
    with (out / "table.csv").open(encoding="utf-8") as lines:
        assert len(list(csv.DictReader(lines))) == len(results["records"]) > 0
    return results


@pytest.mark.skipif(not DATA, reason="set ADJOINT_META_DATA to the folder of data sets")
def test_omniglot_beside_the_papers(call, monkeypatch, tmp_path):
    small = omniglot_table.Budget(1, 2, 4, 1, 1e-3, whole=((5, 1),), heads=((20, 1),), test_tasks=4, backend="eager")
    monkeypatch.setitem(omniglot_table.BUDGETS, "quick", small)
    chosen = ("MAML", "FOMAML", "Reptile", "ANIL")
    monkeypatch.setattr(omniglot_table, "methods", some(omniglot_table.methods, chosen))
    monkeypatch.setattr(omniglot_table, "HEADS", ("ANIL",))
    out = tmp_path / "table"
    code, text, errors = call("omniglot-table", "--out", out, "--jobs", 1)
    assert code == 0, errors
    results = read(out)
    by_column = {
        title: {r["method"] for r in results["records"] if r["column"] == title}
        for title in ("5-way 1-shot", "20-way 1-shot")
    }
    assert by_column == {"5-way 1-shot": set(chosen), "20-way 1-shot": {"ANIL"}}
    assert "97.68 ± 0.04" in text and "96.2 ± 0.5" in text  # Reptile and ANIL as printed
    assert results["findings"][0].startswith("A short run: every method took 1 meta-steps of 2 tasks, 4 filters")
    assert "(--budget full)" in results["departures"][0]

    # The figures of one method against their source, the outcomes that its run wrote down.
    own = json.loads((out / "5-way-1-shot" / "runs" / "fomaml" / "seed-0" / "outcomes.json").read_text())["after"]
    (record,) = [
        r for r in results["records"] if (r["column"], r["method"], r["when"]) == ("5-way 1-shot", "FOMAML", "after")
    ]
    assert record["accuracy"] == pytest.approx(np.mean(own)) and record["printed"] == 0.983
    # And what is said of them, by means of numpy and scipy.
    means = {
        r["method"]: r["accuracy"]
        for r in results["records"]
        if r["column"] == "5-way 1-shot" and r["when"] == "after" and r["printed"] is not None
    }
    printed = [OMNIGLOT[5, 1][name][0] for name in means]
    gaps = [100 * ours - theirs for ours, theirs in zip(means.values(), printed, strict=True)]
    tau = stats.kendalltau(list(means.values()), printed).statistic
    (line,) = [line for line in results["findings"] if "5-way 1-shot" in line and "3 methods" in line]
    assert f"{min(gaps):+.1f}" in line and f"{max(gaps):+.1f}" in line
    assert f"τ = {tau:.2f}" in line

    before = {path: path.stat().st_mtime_ns for path in out.rglob("checkpoint.pt")}
    code, _, errors = call("omniglot-table", "--out", out, "--jobs", 1)
    assert code == 0, errors
    assert {path: path.stat().st_mtime_ns for path in out.rglob("checkpoint.pt")} == before and len(before) == 5


@pytest.mark.filterwarnings("ignore:.*is not the published mini-imagenet")
def test_mini_imagenet_in_a_folder(call, monkeypatch, tmp_path, photographs):
    small = photograph_tables.Budget(1, 1, filters=2, test_tasks=2, size=16, backend="eager")
    monkeypatch.setitem(photograph_tables.MINI, "quick", small)
    chosen = ("FOMAML", "A-MAML (head)")
    monkeypatch.setattr(photograph_tables, "mini_methods", some(photograph_tables.mini_methods, chosen))
    code, text, errors = call("mini-imagenet-table", "--out", tmp_path / "out", "--data-dir", photographs, "--jobs", 1)
    assert code == 0, errors
    results = read(tmp_path / "out")
    assert {r["method"] for r in results["records"]} == set(chosen)
    assert "53.01 ± 0.62" in text and "48.07 ± 1.75" in text


@pytest.mark.filterwarnings("ignore:.*is not the published mini-imagenet")
def test_data_sets_that_are_not_here_are_left_out(call, monkeypatch, tmp_path, photographs):
    small = photograph_tables.Budget(1, 1, filters=2, test_tasks=2, size=16, backend="eager")
    monkeypatch.setitem(photograph_tables.REDUCED, "quick", small)
    code, text, errors = call("memory-reduced-table", "--out", tmp_path / "out", "--data-dir", photographs, "--jobs", 1)
    assert code == 0, errors
    results = read(tmp_path / "out")
    assert {r["column"] for r in results["records"]} == {"mini-ImageNet"}
    left_out = [line for line in results["findings"] if line.startswith("Left out")]
    assert [any(name in line for line in left_out) for name in ("cifar-fs", "fc100", "tiered-imagenet")] == [True] * 3
    assert len(left_out) == 3 and "adjoint-meta data fetch cifar-fs" in left_out[0]
    assert "65.87" in text  # the paper's
    run = tmp_path / "out" / "mini-imagenet" / "runs"
    assert "lr: 0.0001" in (run / "itd-bio" / "seed-0" / "config.yaml").read_text()


@pytest.mark.parametrize("name", ["omniglot-table", "mini-imagenet-table", "memory-reduced-table"])
def test_without_data_one_line_says_what_to_do(call, monkeypatch, tmp_path, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    code, _, errors = call(name, "--out", tmp_path / "out", "--data-dir", tmp_path / "empty", "--jobs", 1)
    assert code == 1 and "adjoint-meta compare glyphs" in errors and len(errors.strip().splitlines()) == 1
    assert "mini-imagenet" in errors or "adjoint-meta data fetch" in errors


def test_every_run_of_every_budget_is_a_configuration(tmp_path):
    """As `train` would make it, with the parts of the network that adapt."""
    for budgets, columns in (
        (omniglot_table.BUDGETS, omniglot_table.columns),
        (photograph_tables.MINI, photograph_tables.mini_columns),
        (photograph_tables.REDUCED, photograph_tables.reduced_columns),
    ):
        for budget in budgets.values():
            for column in columns(budget).values():
                cell = column.cell
                for job in jobs(cell.experiment, cell.methods, [0], cell.keys, tmp_path, cell.own):
                    method = job.config.build_method()
                    assert job.config.meta_steps == budget.meta_steps and job.config.task["ways"] == column.ways
                    assert (job.config.adapt == ["head.*"]) == (job.name == "A-MAML (head)") and method.steps != 0


def test_full_budgets_are_the_papers(tmp_path):
    for ways, shots in omniglot_table.BUDGETS["full"].whole:
        assert set(OMNIGLOT[ways, shots]) <= set(omniglot_table.methods(ways))
    assert set(omniglot_table.columns(omniglot_table.BUDGETS["full"])) == {
        "5-way 1-shot", "5-way 5-shot", "20-way 1-shot", "20-way 5-shot",
    }  # fmt: skip
    for ways, shots, steps in ((5, 1, 16), (20, 1, 25)):
        cell = omniglot_table.columns(omniglot_table.BUDGETS["full"])[f"{ways}-way {shots}-shot"].cell
        (job,) = jobs(cell.experiment, {"iMAML-GD": cell.methods["iMAML-GD"]}, [0], cell.keys, tmp_path)
        assert job.config.method == {**job.config.method, "steps": steps, "inner_lr": 0.1, "proximal": 2.0}
    assert all(set(row) == set(photograph_tables.REDUCED_METHODS) for row in MEMORY_REDUCED.values())
    assert set(MINI_IMAGENET[5, 1]) == set(photograph_tables.mini_methods())
    short = replace(photograph_tables.MINI["full"], meta_steps=10)
    assert "A short run" in short.line(photograph_tables.MINI["full"], "more")


def test_the_papers_numbers_are_whole():
    """Sums by hand, and what the papers say of their orderings."""
    sums = {(5, 1): 493.34, (5, 5): 497.99, (20, 1): 754.62, (20, 5): 589.75}
    for at, total in sums.items():
        assert sum(mean for mean, _ in OMNIGLOT[at].values()) == pytest.approx(total)
    assert max(OMNIGLOT[5, 1], key=lambda name: OMNIGLOT[5, 1][name][0]) == "iMAML-HF"
    assert max(OMNIGLOT[20, 1], key=lambda name: OMNIGLOT[20, 1][name][0]) == "A-MAML (T = 1)"
    assert sum(mean for mean, _ in MINI_IMAGENET[5, 1].values()) == pytest.approx(443.61)
    for name, row in MEMORY_REDUCED.items():
        assert max(row, key=lambda method: row[method][0]) == "memory-reduced", name
    assert sum(mean for row in MEMORY_REDUCED.values() for mean, _ in row.values()) == pytest.approx(981.36)
