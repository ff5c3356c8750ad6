"""A-MAML whose tasks choose their own steps: the transpose of the steps taken, the flow in the limit, what it costs."""

from __future__ import annotations

import pytest
import torch
from flow_references import (
    Watched,
    concatenated,
    quadratic_flow,
    through_taken_steps,
    through_the_flow,
)
from problems import Forwards, half_squares, mlp, quadratic, regression
from references import relative
from torch import nn

from adjoint_meta import AdjointMAML, Batch, MetaLearner, TaskBatch
from adjoint_meta.batched_model import twice_differentiable
from adjoint_meta.solvers import TABLEAUS, Guard

mse = nn.functional.mse_loss

PAIRS = ("heun", "bosh3", "dopri5", "tsit5")
# "heun" is adaptive only when told a tolerance.
SETTINGS = {
    **{name: {"solver": name, "rtol": 1e-2} for name in PAIRS},
    "rkc": {"solver": "rkc", "rtol": 1e-2},
    "rkc by steps": {"solver": "rkc", "steps": 3},
}
every_setting = pytest.mark.parametrize("setting", SETTINGS)


def scaled(tasks: TaskBatch, factors: tuple[float, ...]) -> TaskBatch:
    """Inputs of the support multiplied task by task, so that the tasks differ in stiffness."""
    factor = torch.tensor(factors)[:, None, None]
    return TaskBatch(Batch(factor * tasks.support.x, tasks.support.y), tasks.query)


# The meta-gradient is that of the steps taken


@every_setting
@pytest.mark.parametrize("adjoint", ["discrete", "checkpointed"])
def test_the_steps_taken_are_transposed_exactly(setting, adjoint, generator, monkeypatch):
    model, tasks = mlp(generator), scaled(regression(generator, points=8), (0.5, 4.0, 1.0))
    options = {"horizon": 2.0, "proximal": 0.6}
    method = AdjointMAML(**SETTINGS[setting], **options, adjoint=adjoint, learn=("horizon", "proximal", "rates"))
    learner = MetaLearner(model, mse, method, adapt="2.*")
    with torch.no_grad():
        learner.log_hyper["rates"].copy_(0.3 * torch.randn(5, generator=generator))
    watched = Watched(monkeypatch)
    found = learner.meta_gradient(tasks)
    expected = through_taken_steps(
        model, mse, tasks, method.solver, watched.steps, adapt="2.*", rates=learner.hyper["rates"], **options
    )
    # The tasks did go their own ways, in steps or in stages.
    assert len({tuple(steps) for steps in watched.steps}) > 1
    assert relative(found.loss, expected.losses) < 1e-10
    for name, gradient in (*expected.grad.items(), *expected.hyper.items()):
        assert relative({**found.grad, **found.hyper}[name], gradient) < 1e-9, name


@pytest.mark.parametrize("setting", [*PAIRS, "rkc"])
def test_all_parameters_adapt_by_their_own_steps(setting, generator, monkeypatch):
    model, tasks = mlp(generator), scaled(regression(generator), (0.5, 2.0, 1.0))
    watched = Watched(monkeypatch)
    found = MetaLearner(model, mse, AdjointMAML(**SETTINGS[setting], horizon=1.5)).meta_gradient(tasks)
    expected = through_taken_steps(model, mse, tasks, SETTINGS[setting]["solver"], watched.steps, horizon=1.5)
    for name, gradient in expected.grad.items():
        assert relative(found.grad[name], gradient) < 1e-9, name


@pytest.mark.parametrize("setting", ["bosh3", "rkc", "rkc by steps"])
@pytest.mark.parametrize("engine", [{"chunk_size": 2}, {"mode": "forward_over_reverse"}], ids=str)
def test_the_engine_does_not_matter(setting, engine, generator):
    model, tasks = mlp(generator), scaled(regression(generator), (0.5, 2.0, 1.0))
    for adjoint in ("discrete", "checkpointed", "interpolating"):
        method = AdjointMAML(**SETTINGS[setting], horizon=0.5, adjoint=adjoint, learn=("horizon",))
        plain = MetaLearner(model, mse, method, adapt="2.*").meta_gradient(tasks)
        other = MetaLearner(model, mse, method, adapt="2.*", **engine).meta_gradient(tasks)
        for name, gradient in (*plain.grad.items(), *plain.hyper.items()):
            assert relative({**other.grad, **other.hyper}[name], gradient) < 1e-9, (adjoint, name)
        for name in ("n_grad", "n_hvp"):
            assert other.stats[name] == plain.stats[name]


# The flow in the limit


@pytest.mark.parametrize("solver", [*PAIRS, "rkc"])
def test_the_meta_gradient_follows_the_tolerance(solver, generator):
    tasks = quadratic(generator, high=4.0)
    expected = quadratic_flow(tasks, 1.5)
    errors = []
    for rtol in (1e-1, 1e-2, 1e-3) if solver == "heun" else (1e-2, 1e-3, 1e-4):
        method = AdjointMAML(horizon=1.5, solver=solver, rtol=rtol, learn=("horizon",))
        found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks)
        error = max(
            relative(found.grad["phi"], expected.theta), float((found.hyper["horizon"] / expected.horizon - 1).abs())
        )
        # A tolerance is one a step, and their errors add up, relative to gradients that decay.
        assert error < 50 * rtol
        errors.append(error)
    assert errors[2] < errors[0] / 10


@pytest.mark.parametrize("solver", [*PAIRS, "rkc"])
def test_a_tight_tolerance_is_the_flow_of_a_network(solver, generator):
    model, tasks = mlp(generator), scaled(regression(generator, points=8), (0.5, 3.0, 1.0))
    options = {"horizon": 1.0, "proximal": 0.6, "adapt": "2.*"}
    expected = through_the_flow(model, mse, tasks, steps=40, **options)
    rtol = 1e-4 if solver in ("heun", "rkc") else 1e-6
    learn = ("horizon", "proximal", "rates")
    method = AdjointMAML(horizon=1.0, proximal=0.6, solver=solver, rtol=rtol, learn=learn)
    found = MetaLearner(model, mse, method, adapt="2.*").meta_gradient(tasks)
    names = [*expected.grad, *expected.hyper]
    vectors = [concatenated({**x.grad, **x.hyper}, names) for x in (found, expected)]
    assert relative(*vectors) < 30 * rtol
    assert relative(found.loss, expected.losses) < 30 * rtol


def test_atol_is_a_hundredth_of_rtol_and_can_be_set(generator):
    model, tasks = mlp(generator), regression(generator)

    def steps(**tolerances: float) -> list[int]:
        method = AdjointMAML(solver="dopri5", **tolerances)
        return MetaLearner(model, mse, method).meta_gradient(tasks).stats["accepted"].tolist()

    assert steps(rtol=1e-4) == steps(rtol=1e-4, atol=1e-6)
    assert steps() == steps(rtol=1e-3) == steps(rtol=1e-3, atol=1e-5)
    assert max(steps(rtol=1e-4, atol=1e-1)) < max(steps(rtol=1e-4)) < max(steps(rtol=1e-4, atol=1e-12))
    assert steps(atol=1e-8) == steps(rtol=1e-3, atol=1e-8)


# Every task on its own


@pytest.mark.parametrize("setting", [*PAIRS, "rkc", "rkc by steps"])
@pytest.mark.parametrize("adjoint", ["discrete", "checkpointed", "interpolating"])
# Heun's method, which steps rkc's costate when it is interpolated, is not stable over steps as long as rkc's.
@pytest.mark.filterwarnings("ignore:the inner steps left the stability interval")
def test_tasks_of_mixed_stiffness_do_not_see_each_other(setting, adjoint, generator):
    tasks = quadratic(generator, tasks=4)
    tasks = tasks._replace(a=tasks.a * torch.tensor([0.3, 5.0, 40.0, 0.3])[:, None, None])
    method = AdjointMAML(**SETTINGS[setting], horizon=1.0, proximal=0.2, adjoint=adjoint)
    cotangent, support = torch.randn(4, 4, generator=generator), tasks.tasks.support

    def solved(which: slice):
        learner = MetaLearner(tasks.model, half_squares, method)
        with twice_differentiable():
            problem, theta = learner.support_problem(support[which]), learner.initial(len(support[which]))
            adapted = method.solve(problem, theta, {})
            return adapted.phi, adapted.pullback(cotangent[which]).theta, adapted.stats

    phi, theta, stats = solved(slice(None))
    for i in range(4):
        alone = solved(slice(i, i + 1))
        assert relative(alone[0][0], phi[i]) < 1e-10
        assert relative(alone[1][0], theta[i]) < 1e-10
        for name in ("accepted", "rejected", "evaluations"):
            assert alone[2][name][0] == stats[name][i]
    if setting != "rkc by steps":
        assert stats["accepted"][2] > 3 * stats["accepted"][0]


# What it costs


@pytest.mark.parametrize("solver", PAIRS)
def test_one_task_spends_its_steps_and_no_more(solver, generator):
    model, tasks = mlp(generator), regression(generator, tasks=1)
    stats = MetaLearner(model, mse, AdjointMAML(solver=solver, rtol=1e-3)).meta_gradient(tasks).stats
    stages = TABLEAUS[solver].solution_stages
    attempts = int(stats["accepted"] + stats["rejected"])
    # The last slope is the next step's first, so that a step takes as many evaluations as its solution has stages.
    assert int(stats["evaluations"]) == attempts * stages
    # f(φ(0)), the probe of the first step, and the query.
    assert stats["n_grad"] == attempts * stages + 3
    # The first estimate of ‖H‖, and one product before a step once so many more evaluations were made.
    guard, renewals, since = Guard(), 0, 0
    for _ in range(attempts):
        if since >= guard.every:
            renewals, since = renewals + 1, 0
        since += stages
    assert stats["n_hvp"] == int(stats["accepted"]) * stages + guard.lanczos + renewals


@every_setting
@pytest.mark.parametrize("adjoint", ["discrete", "checkpointed", "interpolating"])
@pytest.mark.parametrize("mode", ["reverse_over_reverse", "forward_over_reverse"])
def test_every_evaluation_is_counted(setting, adjoint, mode, generator):
    model, tasks = mlp(generator), scaled(regression(generator), (0.5, 3.0, 1.0))
    # Heun's costate takes the steps of the solve, which "rkc by steps" makes too long for it unless there are more.
    options = {**SETTINGS[setting], "adjoint": adjoint, "horizon": 0.3}
    learner = MetaLearner(model, mse, AdjointMAML(**options), mode=mode)
    learner.meta_gradient(tasks)  # tries the model on one task first
    stats = {}
    calls = Forwards(model).during(lambda: stats.update(learner.meta_gradient(tasks).stats))
    assert calls == stats["n_grad"] + stats["n_hvp"]


@pytest.mark.parametrize("solver", TABLEAUS)
def test_equal_steps_cost_their_stages(solver, generator):
    model, tasks = mlp(generator), regression(generator)
    stages, n = TABLEAUS[solver].solution_stages, 6
    stats = MetaLearner(model, mse, AdjointMAML(solver=solver, steps=n)).meta_gradient(tasks).stats
    assert (stats["n_grad"], stats["n_hvp"]) == (stages * n + 1, stages * n)
    # With all n states kept: the way there, and the stages after the first of each step once more.
    method = AdjointMAML(solver=solver, steps=n, adjoint="checkpointed", snapshots=n)
    stats = MetaLearner(model, mse, method).meta_gradient(tasks).stats
    assert (stats["n_grad"], stats["n_hvp"]) == (stages * n + (stages - 1) * n + 1, stages * n)
