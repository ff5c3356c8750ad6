"""The check itself: exact methods pass it, a wrong gradient fails it, and its reference is right."""

import math

import pytest
import torch
from torch import nn

from adjoint_meta import FOMAML, MAML, AdjointMAML, Batch, ImplicitMAML, MetaLearner, Reptile, TaskBatch
from adjoint_meta.experiments import gradient_check
from adjoint_meta.experiments.gradient_check import ROUNDING, compare, note, reverse_mode
from adjoint_meta.meta_gradients.adjoint import Flow
from adjoint_meta.solvers import TABLEAUS


@pytest.fixture
def tasks(generator):
    def batch(points):
        return Batch(torch.randn(3, points, 2, generator=generator), torch.randn(3, points, 1, generator=generator))

    return TaskBatch(batch(5), batch(6))


@pytest.fixture
def model(generator):
    made = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return made


EXACT = {
    **{f"adjoint {solver}": AdjointMAML(horizon=0.6, solver=solver, steps=3) for solver in TABLEAUS},
    "checkpointed": AdjointMAML(horizon=0.8, steps=5, adjoint="checkpointed", snapshots=2),
    "proximal": AdjointMAML(horizon=0.8, steps=3, proximal=0.7),
    "maml": MAML(steps=4, inner_lr=0.1),
    "maml checkpointed": MAML(steps=4, inner_lr=0.1, adjoint="checkpointed"),
}


@pytest.mark.parametrize("adapt", [None, "4.*", ["0.weight", "4.*"]], ids=["all", "head", "some"])
@pytest.mark.parametrize("name", EXACT)
def test_exact_methods_agree_with_reverse_mode(model, tasks, name, adapt):
    found = compare(MetaLearner(model, nn.MSELoss(), EXACT[name], adapt=adapt), tasks)
    assert found.exact and not found.failed and found.error < ROUNDING
    assert set(found.errors) == {parameter for parameter, _ in model.named_parameters()}
    assert max(found.errors.values()) < 1e-9
    assert found.cosine == pytest.approx(1.0, abs=1e-12)
    assert found.stats["n_grad"] > 0 and found.stats["n_hvp"] > 0


@pytest.mark.parametrize(
    "method",
    [FOMAML(steps=4, inner_lr=0.1), Reptile(steps=4, inner_lr=0.1), ImplicitMAML(5.0, steps=4, inner_lr=0.1)],
    ids=lambda method: type(method).__name__,
)
def test_approximate_methods_are_off_and_do_not_fail(model, tasks, method):
    found = compare(MetaLearner(model, nn.MSELoss(), method), tasks)
    assert not found.exact and not found.failed and found.error > 1e-3
    assert -1 <= found.cosine < 1


def test_implicit_gradients_approach_reverse_mode_at_the_minimiser(model, tasks):
    """At the minimiser with CG solved out the two are the same number (Rajeswaran et al. 2019, Lemma 2)."""
    method = ImplicitMAML(proximal=3.0, steps=400, inner_lr=0.1, cg_steps=60, cg_tol=1e-12)
    assert compare(MetaLearner(model, nn.MSELoss(), method), tasks).error < 1e-7


@pytest.mark.parametrize("slip", [1 + 1e-6, 1 + 1e-8])
@pytest.mark.parametrize("name", ["adjoint rk4", "maml"])
def test_a_slightly_wrong_pullback_fails_the_check(model, tasks, name, slip, monkeypatch):
    real = Flow.solve

    def wrong(self, problem, theta, hyper):
        solved = real(self, problem, theta, hyper)

        def pullback(c):
            found = solved.pullback(c)
            return found._replace(theta=found.theta * slip)

        return solved._replace(pullback=pullback)

    monkeypatch.setattr(Flow, "solve", wrong)
    found = compare(MetaLearner(model, nn.MSELoss(), EXACT[name]), tasks)
    assert found.failed and found.error == pytest.approx(slip - 1, rel=1e-3)


def test_a_wrong_shared_gradient_fails_the_check(model, tasks, monkeypatch):
    real = Flow.solve

    def wrong(self, problem, theta, hyper):
        solved = real(self, problem, theta, hyper)
        return solved._replace(pullback=lambda c: solved.pullback(c)._replace(psi=torch.zeros_like(problem.psi)))

    monkeypatch.setattr(Flow, "solve", wrong)
    found = compare(MetaLearner(model, nn.MSELoss(), EXACT["maml"], adapt="4.*"), tasks)
    assert found.failed and found.errors["4.weight"] < ROUNDING < found.errors["0.weight"]


def test_nan_fails_the_check(model, tasks, monkeypatch):
    monkeypatch.setattr(gradient_check, "_relative", lambda value, reference: float("nan"))
    assert compare(MetaLearner(model, nn.MSELoss(), EXACT["maml"]), tasks).failed


@pytest.mark.parametrize(("solver", "steps"), [("euler", 3), ("rk4", 2)])
def test_the_reference_is_the_finite_difference_of_the_loss(model, tasks, solver, steps):
    learner = MetaLearner(model, nn.MSELoss(), AdjointMAML(horizon=0.6, solver=solver, steps=steps, proximal=0.4))
    gradients = reverse_mode(learner, tasks)
    eps = 1e-5
    for name, parameter in model.named_parameters():
        place = 0
        values = []
        for shift in (eps, -eps):
            with torch.no_grad():
                parameter.view(-1)[place] += shift
                values.append(float(learner(tasks)))
                parameter.view(-1)[place] -= shift
        difference = (values[0] - values[1]) / (2 * eps)
        # the error of a central difference is of order eps² plus rounding / eps, 1e-10 each
        assert float(gradients[name].view(-1)[place]) == pytest.approx(difference, rel=1e-6, abs=1e-8)


def test_the_note_says_what_to_expect():
    assert note(MAML()).startswith("exact") and note(AdjointMAML()).startswith("exact")
    assert "7 steps and 3 CG steps" in note(ImplicitMAML(steps=7, cg_steps=3))
    assert "first order" in note(FOMAML()) and "first order" in note(Reptile())


OF_THE_FLOW = {
    "adaptive": (AdjointMAML(horizon=0.2, solver="tsit5", rtol=1e-6), 1e-5),
    "rkc": (AdjointMAML(horizon=0.2, solver="rkc", rtol=1e-3), 1e-2),
    "auto": (AdjointMAML(horizon=0.2, solver="auto", rtol=1e-3), 1e-3),
    "implicit": (AdjointMAML(horizon=0.2, solver="sdirk2", steps=20), 1e-3),
    "interpolating": (AdjointMAML(horizon=0.2, steps=20, adjoint="interpolating"), 1e-4),
    "backsolve": (AdjointMAML(horizon=0.2, steps=20, adjoint="backsolve"), 1e-4),
    "learned": (
        AdjointMAML(horizon=0.2, solver="dopri5", rtol=1e-5, proximal=0.7, learn=("horizon", "proximal")),
        1e-4,
    ),
}


@pytest.mark.parametrize("name", OF_THE_FLOW)
def test_steps_that_cannot_be_repeated_are_compared_with_the_flow(model, tasks, name):
    method, tolerance = OF_THE_FLOW[name]
    found = compare(MetaLearner(model, nn.MSELoss(), method), tasks)
    assert not found.exact and not found.failed and 1e-9 < found.error < tolerance
    assert max(found.errors.values()) < 10 * tolerance
    assert {f"learned {name}" for name in method.learn} <= set(found.errors)
    assert "flow itself" in note(method)


def test_the_flow_s_reference_is_that_of_many_small_steps(model, tasks):
    """Euler with Richardson's extrapolation: independent of rk4 and of the doubling."""
    learner = MetaLearner(model, nn.MSELoss(), AdjointMAML(horizon=0.3, solver="tsit5", rtol=1e-3))

    def euler(steps):
        fixed = MetaLearner(model, nn.MSELoss(), AdjointMAML(horizon=0.3, solver="euler", steps=steps))
        return reverse_mode(fixed, tasks)

    coarse, middle, fine = euler(50), euler(100), euler(200)
    for name, value in reverse_mode(learner, tasks).items():
        extrapolated = (coarse[name] - 6 * middle[name] + 8 * fine[name]) / 3
        assert (value - extrapolated).norm() < 1e-5 * value.norm()


def test_what_reverse_mode_cannot_follow_is_refused(model, tasks, monkeypatch):
    endless = AdjointMAML(horizon=math.inf, solver="tsit5", proximal=1.0)
    with pytest.raises(ValueError, match="infinite flow; check it with a finite horizon"):
        reverse_mode(MetaLearner(model, nn.MSELoss(), endless), tasks)
    monkeypatch.setattr(gradient_check, "MOST", 64)
    monkeypatch.setattr(gradient_check, "SETTLED", 1e-15)
    with pytest.raises(ValueError, match="not settled to 1e-15 with 64 steps"):
        reverse_mode(MetaLearner(model, nn.MSELoss(), AdjointMAML(horizon=0.6, solver="auto")), tasks)
