"""The convergence of memory-reduced meta-learning: its exact reference, the methods against it, and the study."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from adjoint_meta import MemoryReduced
from adjoint_meta.experiments.models import HalfMSELoss
from adjoint_meta.experiments.studies import memory_reduced_convergence as study
from adjoint_meta.experiments.studies.memory_reduced_convergence import BUDGETS, Bench
from adjoint_meta.experiments.studies.memory_reduced_convergence_report import exponent, reached, report
from adjoint_meta.experiments.studies.shared_regression import Exact, SharedRegression
from adjoint_meta.experiments.studies.study import Setting

SMALL = SharedRegression(tasks=5, points=40, head=3, shared=4)
TOY = replace(
    BUDGETS["quick"],
    problem=SMALL,
    steps=(1, 5, 12, 20),
    products=(0, 2, 3, 30),
    meta_steps=60,
    inner=(12, 1),
    batches=(1, 2, 4),
)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(BUDGETS, "quick", TOY)


def test_the_reference_is_autograds_through_the_heads():
    tasks = SMALL.batch()
    exact = Exact.of(tasks, SMALL.head)
    psi = torch.linspace(-1, 1, SMALL.shared, dtype=torch.float64).requires_grad_()
    (z, u), (zq, uq) = ((part.x[..., :3], part.x[..., 3:]) for part in (tasks.support, tasks.query))
    left = (tasks.support.y[:, :, 0] - u @ psi)[:, :, None]
    phi = torch.linalg.lstsq(z, left).solution
    loss = HalfMSELoss()(zq @ phi + (uq @ psi)[:, :, None], tasks.query.y)
    (expected,) = torch.autograd.grad(loss, psi)
    assert torch.allclose(exact.gradient(psi.detach()), expected, rtol=1e-12)
    assert torch.allclose(exact.gradient(exact.minimiser), torch.zeros(4, dtype=torch.float64), atol=1e-14)


def test_the_methods_come_to_the_reference():
    bench = Bench.of(TOY)
    for name, error in study.by_inner_steps(bench).items():
        assert error(150) < 1e-11, name
    for name, error in study.by_products(bench).items():
        assert error(100) < 1e-11, name


def test_the_predicted_residual_is_that_of_a_long_simulation():
    """The recursion itself, on exact gradients of random batches and without an engine."""
    exact = Exact.of(SharedRegression(tasks=40).batch(), 8)
    draw, eta, size = torch.Generator().manual_seed(0), 1 / exact.largest(), 8
    psi, squares = exact.minimiser, []
    for _ in range(20_000):
        which = torch.randint(40, (size,), generator=draw)
        psi = psi - eta * (exact.curvature[which].mean(dim=0) @ psi - exact.slope[which].mean(dim=0))
        squares.append(float(exact.gradient(psi).square().sum()))
    # To first order in 1/8, and 20 000 correlated draws.
    assert float(np.mean(squares)) == pytest.approx(exact.residual_of(eta, size), rel=0.1)


def test_one_descent_is_the_plain_recursion():
    bench = Bench.of(TOY)
    found = bench.descend(MemoryReduced(200, bench.inner_lr, cg_steps=3), (bench.tasks for _ in range(5)))
    psi = torch.zeros(4, dtype=torch.float64)
    for residual in found:
        gradient = bench.exact.gradient(psi)
        assert residual == pytest.approx(float(gradient.square().sum()), rel=1e-9)
        psi = psi - bench.outer_lr * gradient


def test_the_report_says_what_the_data_say(toy, tmp_path, monkeypatch):
    made = study.run(Setting("quick", tmp_path))
    said = " ".join(made.findings)
    assert "as O(1/ε) asks" in said and "keeps falling for AID-BiO" in said
    assert "below 1e-06 at heads at rest: CG 3" in said  # as many as a head has entries
    at = {(r["part"], r.get("method"), r["at"]): r for r in made.records if "at" in r and r["part"] != "random"}
    expected = Bench.of(TOY).error(MemoryReduced(12, Bench.of(TOY).inner_lr, cg_steps=3, cg_tol=1e-14))
    assert at["steps", "memory-reduced", 12]["error"] == pytest.approx(expected, rel=1e-6)
    assert {r["batch"] for r in made.records if r["part"] == "predicted"} == {1, 2, 4}
    # A finished study computes nothing again.
    monkeypatch.setattr(Bench, "error", None)
    monkeypatch.setattr(Bench, "descend", None)
    assert study.run(Setting("quick", tmp_path)).records == made.records


def test_findings_turn_with_the_data():
    slow = (1 + np.arange(60)) ** -0.3
    curves = ("memory-reduced", "AID-BiO", "ITD-BiO", "stocBiO")
    found = {f"steps/{name}": [1e-1, 1e-2, 1e-3, 1e-4] for name in curves}
    found |= {f"products/{name}": [1.0, 0.5, 0.4, 0.3] for name in ("CG", "Neumann series")}
    found |= {f"all/{name}": slow.tolist() for name in (*curves, "memory-reduced, few steps")}
    found |= {f"random/{size}/0": [size**-0.5] * 60 for size in TOY.batches}
    known = {
        "inner_lr": 0.5,
        "outer_lr": 1.0,
        "least_curvature": 0.4,
        "predicted": {size: 1 / size for size in TOY.batches},
    }
    said = " ".join(report(found, TOY, known, {}).findings)
    assert "more slowly than O(1/ε)" in said and "CG more than all" in said
    assert "keeps falling" not in said and "|B|^-0.50" in said


def test_exponents_and_targets():
    k = np.arange(1, 50)
    assert exponent(k, 3 * k**-1.5) == pytest.approx((-1.5, 0.0), abs=1e-9)
    assert reached([1.0, 0.05, 0.2, 0.05, 0.01], 0.1) == 3
    assert reached([1.0, 0.05, 0.2], 0.1) is None
