"""The solvers by name, the plans they make, and the choice of `auto`."""

from __future__ import annotations

import pytest
import torch
from flow_references import quadratic_flow
from problems import half_squares, quadratic
from references import relative

from adjoint_meta import MAML, AdjointMAML, MetaLearner
from adjoint_meta.adaptation import GradientFlow
from adjoint_meta.batched_model import twice_differentiable
from adjoint_meta.inner_solvers import (
    ADAPTIVE,
    IMPLICIT,
    SOLVERS,
    AutomaticSteps,
    choose,
    chosen_steps,
    equal_steps,
    stepper,
)
from adjoint_meta.solvers import TABLEAUS, Guard
from adjoint_meta.solvers.paths import OwnSteps, UniformSteps

CONTRACT = {
    "euler": 1,
    "midpoint": 2,
    "heun": 2,
    "bosh3": 3,
    "rk4": 4,
    "dopri5": 5,
    "tsit5": 5,
    "rkc": 2,
    "implicit_euler": 1,
    "sdirk2": 2,
}


@pytest.fixture
def setting(generator):
    """Quadratic tasks, their flow from θ, and θ as rows."""
    tasks = quadratic(generator)
    learner = MetaLearner(tasks.model, half_squares, MAML())
    problem, theta = learner.support_problem(tasks.tasks.support), learner.initial(3)
    return tasks, GradientFlow(problem, theta), theta


def test_the_names_of_the_contract():
    assert set(SOLVERS) == {*CONTRACT, "auto"} and len(SOLVERS) == len(set(SOLVERS))
    assert set(ADAPTIVE) == {"heun", "bosh3", "dopri5", "tsit5", "rkc"} and set(IMPLICIT) <= set(SOLVERS)


@pytest.mark.parametrize("name", CONTRACT)
def test_steppers_by_name(name):
    found = stepper(name, adaptive=False)
    assert (found.name, found.order) == (name, CONTRACT[name])
    if name in ADAPTIVE:
        adaptive = stepper(name, adaptive=True)
        assert (adaptive.name, adaptive.order) == (name, CONTRACT[name]) and adaptive.estimate_order > 0


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("horizon", [1.5, torch.tensor(1.5, dtype=torch.float64)], ids=["number", "tensor"])
def test_equal_steps_are_as_many_as_asked(name, horizon, setting):
    tasks, flow, theta = setting
    plan = equal_steps(name, horizon, 7)
    with twice_differentiable():
        run = plan.run(flow, theta, "steps")
    assert run.path.steps == 7 and run.codes.tolist() == [0, 0, 0]
    sizes = [run.path.mesh(index)[2] for index in range(7)]
    assert all(torch.allclose(torch.as_tensor(h), torch.tensor(1.5 / 7)) for h in sizes)
    expected = quadratic_flow(tasks, 1.5).phi
    assert relative(run.end, expected) < {1: 0.2, 2: 0.02}.get(CONTRACT[name], 2e-3)
    # Only rkc has to see ‖H‖ before it can step.
    assert isinstance(plan, OwnSteps if name == "rkc" else UniformSteps)
    assert (plan.path(flow) is None) == (name == "rkc")


@pytest.mark.parametrize("name", ADAPTIVE)
def test_chosen_steps_meet_their_tolerance(name, setting):
    tasks, flow, theta = setting
    expected = quadratic_flow(tasks, 1.5).phi
    steps = []
    for rtol in (1e-2, 1e-4):
        with twice_differentiable():
            run = chosen_steps(name, 1.5, rtol, rtol / 100).run(flow, theta, "nothing")
        assert relative(run.end, expected) < 10 * rtol
        assert int(run.stats["accepted"].max()) == run.path.steps
        assert {"accepted", "rejected", "evaluations", "radius", "stability", "vector"} <= set(run.stats)
        steps.append(run.path.steps)
    assert steps[0] < steps[1]


def test_a_start_replaces_the_first_products(setting):
    _, flow, theta = setting
    counts = flow.problem.evaluations

    def products(start) -> int:
        before = counts.n_hvp
        with twice_differentiable():
            chosen_steps("dopri5", 0.1, 1e-2, 1e-4, start).run(flow, theta, "nothing")
        return counts.n_hvp - before

    assert products(None) - products(torch.ones_like(theta)) == Guard().lanczos - 1


# The choice of `auto`


def test_the_choice_follows_stiffness_and_tolerance():
    for rtol in (1e-1, 1e-2, 1e-3, 1e-4):
        kinds, work = [], []
        for stiffness in (0.0, 1e-3, 0.5, 1.0, 3.0, 4.9, 5.0, 10.0, 20.0, 60.0, 300.0, 3000.0):
            choice = choose(stiffness, rtol)
            assert choice.solver in ("rk4", "bosh3", "tsit5", "rkc")
            # Equal steps or a tolerance, and what is chosen is what the solver takes.
            if choice.steps is not None:
                assert choice.steps >= 1 and choice.solver == "rk4"
                # Well inside rk4's interval, 2.79.
                assert stiffness / choice.steps <= 1.7
                work.append(choice.steps)
            else:
                assert 0 < choice.tolerance <= 0.1
                AdjointMAML(solver=choice.solver, rtol=choice.tolerance)
            kinds.append(choice.solver)
        # From few steps over error control to the stabilised method, and never back.
        order = [{"rk4": 0, "bosh3": 1, "tsit5": 1, "rkc": 2}[kind] for kind in kinds]
        assert order == sorted(order) and kinds[-1] == "rkc"
        assert work == sorted(work)
    for stiffness in (0.5, 4.0, 20.0, 1000.0):
        strictness = []
        for rtol in (1e-1, 1e-2, 1e-3, 1e-4):
            choice = choose(stiffness, rtol)
            strictness.append(choice.steps if choice.steps is not None else 1 / choice.tolerance)
        assert strictness == sorted(strictness)


@pytest.mark.parametrize("stiffness", [float("nan"), float("inf")])
def test_a_stiffness_that_is_no_number_still_gives_a_plan(stiffness):
    # The solve itself then says that the state is not finite.
    assert choose(stiffness, 1e-2).solver == "rkc"


def test_auto_says_what_it_chose_and_does_it(setting):
    tasks, flow, theta = setting
    # H is constant: ‖H‖T of the stiffest task decides.
    top = float(torch.linalg.eigvalsh(tasks.a).max())
    for horizon in (1.0 / top, 4.0 / top, 15.0 / top, 200.0 / top):
        plan = AutomaticSteps(horizon, 1e-2)
        assert plan.path(flow) is None
        with twice_differentiable():
            run = plan.run(flow, theta, "nothing")
        wanted = choose(top * horizon, 1e-2)
        assert run.stats["solver"] == wanted.solver
        if wanted.steps is None:
            assert run.stats["steps"] is None and run.stats["tolerance"] == wanted.tolerance
            with twice_differentiable():
                same = chosen_steps(wanted.solver, horizon, wanted.tolerance, wanted.tolerance / 100)
                assert relative(run.end, same.run(flow, theta, "nothing").end) < 1e-2 * wanted.tolerance
        else:
            assert run.stats["steps"] == run.path.steps == wanted.steps
            with twice_differentiable():
                same = equal_steps("rk4", horizon, wanted.steps)
                assert torch.equal(run.end, same.run(flow, theta, "nothing").end)
        # The stiffest task's ‖H‖ is found nearly whole, and is the same for the two ways to ask.
        assert float(run.stats["radius"].max()) == pytest.approx(top, rel=0.05)
        assert run.stats["vector"].shape == theta.shape


def test_a_tableau_for_every_name():
    assert set(TABLEAUS) <= set(SOLVERS)
