"""`bench meta-gradient` and `bench limit`: tiny studies through the real door, each contestant in its own process."""

import json
import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch

from adjoint_meta.experiments.studies import decoder, limit, meta_gradient
from adjoint_meta.experiments.studies.contestants import CONTESTANTS, DEEP, REFERENCES, missing
from adjoint_meta.experiments.studies.fresh_process import FreshProcess, Job
from adjoint_meta.experiments.studies.peers import installed, unrolled
from adjoint_meta.experiments.studies.workloads import place

TINY = meta_gradient.Budget(
    courses=(
        meta_gradient.Course("regression", 2, (1, 3), compiled=()),
        meta_gradient.Course("ratings", 2, (1, 10**9), ("MAML",), ()),
    ),
    repeats=2, call=20.0, patience=60.0, memory=2**31, reference=20.0, total=600.0,
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def call(invoke):
    return partial(invoke, "bench")


def test_meta_gradient_leaves_numbers_tables_and_pictures(call, monkeypatch, tmp_path):
    monkeypatch.setitem(meta_gradient.BUDGETS, "quick", TINY)
    code, stdout, stderr = call("meta-gradient", "--out", tmp_path, "--device", "cpu")
    assert code == 0, stderr
    result = json.loads((tmp_path / "meta-gradient.json").read_text())
    assert (result["study"], result["budget"], result["device"], result["threads"]) == (
        "meta-gradient", "quick", "CPU", 1,
    )  # fmt: skip
    entries = {(e["workload"], e["contestant"], e["steps"]): e for e in result["entries"]}
    here = [name for name, contestant in CONTESTANTS.items() if installed(contestant.package)]
    expected = {("regression", name, steps) for name in here for steps in (1, 3)} | {("ratings", "MAML", 1)}
    assert set(entries) == expected
    for (_, name, _), entry in entries.items():
        assert entry["seconds"] > 0 and entry["extra_mib"] >= 0 and entry["backend"] == "eager"
        assert (entry["error"] is None) == (CONTESTANTS[name].target is None)
        if CONTESTANTS[name].target == "descent" and name != "FOMAML":
            assert entry["error"] < 1e-5, name  # float32 against float64
    assert entries["regression", "MAML", 3]["to_maml"] == 1
    assert entries["regression", "FOMAML", 3]["error"] > 1e-4, "no second derivatives, and yet no error"
    assert any("MAML stops before 1000000000 steps: it would take" in note for note in result["notes"])

    text = (tmp_path / "meta-gradient.md").read_text()
    for shown in (text, stdout):
        assert "regression net, 2 tasks, 1 step" in shown and "regression net, 2 tasks, 3 steps" in shown
        assert all(name in shown for name in here) and "stops before" in shown
    for picture in ("meta_gradient_time.png", "meta_gradient_memory.png"):
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"
    assert "MAML, eager, 1 steps" in stderr


def test_limit_compares_with_its_kernels(call, monkeypatch, tmp_path):
    monkeypatch.setitem(limit.BUDGETS, "quick", limit.Budget((("ratings", 2, True),), 2, 0.01))
    monkeypatch.setattr(limit, "backends", lambda: ("eager",))
    threads = torch.get_num_threads()
    code, stdout, stderr = call("limit", "--out", tmp_path, "--device", "cpu", "--json")
    assert code == 0, stderr
    result = json.loads(stdout)
    assert result == json.loads((tmp_path / "limit.json").read_text())
    assert torch.get_num_threads() == threads
    counts = {"MAML, 50 steps": (51, 50), "iMAML, 50 steps, 5 CG": (51, 5)}
    counts |= {"A-MAML rk4, 5 steps": (21, 20), "A-MAML rk4, 20 steps": (81, 80)}
    case = next(case for case in result["cases"] if case["backend"] == "eager")
    assert {each["method"]: (each["n_grad"], each["n_hvp"]) for each in case["methods"]} == counts
    for each in case["methods"]:
        parts = [case["kernels"][kind]["seconds"] for kind in ("gradient", "hvp")]
        bare = each["n_grad"] * parts[0] + each["n_hvp"] * parts[1]
        assert each["seconds"] / bare == pytest.approx(each["to_evaluations"], rel=0.5)  # a median of ratios
    assert case["kernels"]["hvp"]["flops"] > case["kernels"]["gradient"]["flops"] > 0
    assert case["share"]["gradient"] > 0
    assert "ratings net, 2 tasks: MAML, 50 steps" in (tmp_path / "limit.md").read_text()


def test_decoder_compares_every_mode_with_unrolling(call, monkeypatch, tmp_path):
    course = meta_gradient.Course("tiny decoder", 2, (1, 3), tuple(DEEP), ())
    monkeypatch.setitem(decoder.BUDGETS, "quick", replace(TINY, courses=(course,), repeats=1))
    code, stdout, stderr = call("decoder", "--out", tmp_path, "--device", "cpu")
    assert code == 0, stderr
    result = json.loads((tmp_path / "decoder.json").read_text())
    assert (result["study"], result["budget"], result["notes"]) == ("decoder", "quick", [])
    assert {(e["contestant"], e["steps"]) for e in result["entries"]} == {(n, s) for n in DEEP for s in (1, 3)}
    for entry in result["entries"]:
        assert entry["error"] < 1e-6, entry["contestant"]  # float32 against float64
    text = (tmp_path / "decoder.md").read_text()
    for shown in (text, stdout):
        assert "decoder of 4 blocks, 2 tasks, 1 step" in shown and "decoder of 4 blocks, 2 tasks, 3 steps" in shown
        assert all(name in shown for name in DEEP)
    assert "width 8, 6 tokens of 5" in text


def test_the_decoders_reference_is_what_unrolling_finds():
    """Exact in float64, by another way and with no thought of what adapts."""
    placed = place("tiny decoder", 2, torch.device("cpu"), torch.float64)
    found = REFERENCES["exact"].prepare(placed, 3, "eager")()
    expected = unrolled(placed, 3)
    assert (found - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("study", ["meta-gradient", "limit", "decoder"])
def test_what_cannot_be_used_is_refused_in_one_line(call, tmp_path, study):
    (tmp_path / "file").write_text("")
    for arguments, said in (
        (["--out", tmp_path / "file" / "below"], "--out"),
        (["--budget", "ful", "--out", tmp_path / "new"], "did you mean 'full'"),
        (["--threads", 0, "--out", tmp_path / "new"], "threads must be at least 1"),
    ):
        code, stdout, stderr = call(study, *arguments)
        assert (code, stdout) == (2, "") and said in stderr and len(stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_packages_that_are_not_here_are_named(monkeypatch):
    monkeypatch.setattr("adjoint_meta.experiments.studies.contestants.installed", lambda package: package != "higher")
    assert missing() == ["higher is not installed: pip install 'adjoint-meta[bench]'"]


def test_a_process_says_why_it_failed_and_a_slow_one_is_ended():
    process = FreshProcess(Job("regression", 1, "MAML", backend="none"))
    assert "unknown backend 'none'" in process.measure(1, timeout=60)["failed"]
    assert "ended" in process.measure(1, timeout=60)["failed"], "it is gone"
    slow = FreshProcess(Job("regression", 1, "MAML"))
    assert "it took more than 0 s" in slow.measure(10**6, timeout=0.3)["failed"]


def test_ctrl_c_does_not_end_a_process_whose_owner_goes_on():
    process = FreshProcess(Job("regression", 1, "FOMAML"))
    assert "failed" not in process.measure(1, timeout=120)
    os.kill(process._process.pid, signal.SIGINT)
    assert "failed" not in process.measure(2, timeout=120)
    process.close()


def test_memory_is_that_of_the_graph():
    """Unrolling keeps every step's activations; MAML keeps its iterates, 4 bytes × tasks × P × steps."""
    grown = {}
    for name in ("torch.func unrolled", "MAML"):
        process = FreshProcess(Job("regression", 5, name))
        grown[name] = [process.measure(steps, timeout=120)["extra"] for steps in (20, 120)]
        process.close()
    iterates = 4 * 5 * 1185 * 100
    assert grown["MAML"][1] - grown["MAML"][0] < 2 * iterates + 2**20
    assert grown["torch.func unrolled"][1] - grown["torch.func unrolled"][0] > 20 * 2**20
