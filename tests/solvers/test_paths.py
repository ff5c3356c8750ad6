from __future__ import annotations

import pytest
import torch
from problems import LinearField, TanhField
from references import relative
from row_problems import Counted, adaptive, mixed, recorded

from adjoint_meta.solvers import (
    TABLEAUS,
    Chebyshev,
    Constant,
    Guard,
    OwnSteps,
    PIController,
    RowSteps,
    RungeKutta,
    Status,
    UniformGrid,
    UniformSteps,
    integrate,
)
from adjoint_meta.solvers.paths import put, take

RK4 = RungeKutta(TABLEAUS["rk4"])


def uniform(steps: int = 5, stepper=RK4, t0: float = 0.3, t1: float = 1.7) -> UniformSteps:
    return UniformSteps(stepper, UniformGrid(t0, t1, steps))


def own(**more) -> OwnSteps:
    return OwnSteps(adaptive(tol=1e-4, **more))


def stabilised(controller=None) -> OwnSteps:
    """Steps whose number of stages differs from row to row."""
    return OwnSteps(RowSteps(Chebyshev(), 0.0, 2.0, controller or PIController(1e-2, 1e-2), Guard()))


PLANS = {"uniform": uniform(), "own": own(), "guarded": own(guard=Guard()), "stabilised": stabilised()}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
every_keep = pytest.mark.parametrize("keep", ["stages", "steps", "nothing"])


@every_plan
@every_keep
def test_a_run_ends_where_its_loop_does(plan, keep, generator):
    field, y = mixed(generator)
    run = plan.run(field, y, keep)
    if isinstance(plan, UniformSteps):
        loop, codes, stats = integrate(plan.stepper, field, plan.grid, y), [0] * 4, {}
    else:
        solved = plan.steps.integrate(field, y)
        loop, codes, stats = solved.end, solved.codes.tolist(), solved.statistics._asdict()
    assert torch.equal(run.end, loop)
    assert run.codes.tolist() == codes == [Status.SUCCESS.code] * 4
    assert run.stats.keys() == stats.keys()
    assert all(run.stats[name] is stats[name] is None or torch.equal(run.stats[name], stats[name]) for name in stats)


@every_plan
@every_keep
def test_a_path_can_be_walked_again_bit_for_bit(plan, keep, generator):
    field, y = mixed(generator)
    run = plan.run(field, y, keep)
    at = y
    for index in range(run.path.steps):
        rows, _, _ = run.path.mesh(index)
        rebuilt = run.path.rebuild(index, at)
        assert torch.equal(rebuilt[0], take(at, rows))
        if keep != "nothing":
            assert torch.equal(run.path.start(index), take(at, rows))
            stored = run.path.states(index)
            assert len(stored) >= len(rebuilt)
            piece = None if isinstance(plan, UniformSteps) else run.path._tape.piece(index)
            for j, (kept, again) in enumerate(zip(stored, rebuilt, strict=False)):
                # Of a row with fewer stages only these count.
                count = piece is None or piece.stages is None or (piece.stages > j)[:, None]
                assert torch.equal(torch.where(torch.as_tensor(count), kept - again, 0.0), torch.zeros_like(kept))
        after = run.path.advance(index, at)
        resting = torch.ones(len(y), dtype=torch.bool)
        resting[slice(None) if rows is None else rows] = False
        assert torch.equal(after[resting], at[resting])
        at = after
    assert torch.equal(at, run.end)


def test_the_mesh_is_that_of_the_accepted_steps(generator):
    field, y = mixed(generator)
    plan = own()
    path = plan.run(field, y, "nothing").path
    _, steps, _ = recorded(plan.steps, field, y)
    assert path.steps == max(map(len, steps)) and len({len(row) for row in steps}) > 2
    for index in range(path.steps):
        rows, t, h = path.mesh(index)
        having = [row for row in range(4) if len(steps[row]) > index]
        assert having == (list(range(4)) if rows is None else rows.tolist())
        assert t[:, 0].tolist() == [float(steps[row][index][0]) for row in having]
        assert h[:, 0].tolist() == [float(steps[row][index][1]) for row in having]


def test_the_mesh_of_equal_steps():
    path = uniform(4, t0=1.0, t1=3.0).path(TanhField(torch.Generator()))
    assert path.steps == 4
    assert [path.mesh(i) for i in range(4)] == [(None, 1.0 + i / 2, 0.5) for i in range(4)]
    assert own().path(None) is None


@every_plan
def test_walking_again_evaluates_only_the_rows_that_stepped(plan, generator):
    field, y = mixed(generator)
    counted = Counted(field, 4)
    run = plan.run(counted, y, "nothing")
    steps = torch.full((4,), run.path.steps) if isinstance(plan, UniformSteps) else run.stats["accepted"]
    counted.evaluations.zero_()
    at = y
    for index in range(run.path.steps):
        at = run.path.advance(index, at)
    if plan is not PLANS["stabilised"]:
        # Without an estimate a step of a pair needs no last slope.
        stages = 4 if isinstance(plan, UniformSteps) else 6
        assert torch.equal(counted.evaluations, stages * steps)
    else:
        assert int(counted.evaluations.max()) > int(counted.evaluations.min())


@every_plan
def test_the_pullback_of_a_step_leaves_resting_rows_alone(plan, generator):
    field, y = mixed(generator)
    run = plan.run(field, y, "steps")
    w = torch.randn(4, 3, generator=generator)
    for index in range(run.path.steps):
        rows, _, _ = run.path.mesh(index)
        pulled = run.path.transpose(index, run.path.states(index), w)
        assert pulled.start.shape == w.shape
        assert pulled.duration.shape == pulled.shift.shape == pulled.stability.shape == (4,)
        assert [p.shape for p in pulled.parameters] == [p.shape for p in field.parameters]
        if rows is not None:
            resting = torch.ones(4, dtype=torch.bool).index_fill(0, rows, False)
            assert torch.equal(pulled.start[resting], w[resting])
            assert not any(x[resting].any() for x in (pulled.duration, pulled.shift, pulled.stability))
            assert not pulled.parameters[2][resting].any() and pulled.parameters[2][rows].any()


def test_the_stability_of_a_step_is_that_of_its_products():
    # J = −λ: h‖Jᵀκ‖/‖κ‖ = hλ whatever κ is.
    rates = torch.tensor([1.0, 10.0])
    field = LinearField(torch.diag_embed(rates[:, None].expand(2, 2)), torch.zeros(2, 2))
    run = uniform(4, t0=0.0, t1=1.0).run(field, torch.ones(2, 2), "stages")
    pulled = run.path.transpose(0, run.path.states(0), torch.ones(2, 2))
    assert relative(pulled.stability, rates / 4 / TABLEAUS["rk4"].stability_limit) < 1e-14
    assert pulled.shift is None


@pytest.mark.parametrize("plan", [uniform(), own(), stabilised(Constant(3))], ids=["uniform", "own", "stabilised"])
def test_states_that_were_not_kept_are_not_given(plan, generator):
    field, y = mixed(generator)
    run = plan.run(field, y, "nothing")
    with pytest.raises(ValueError, match="kept nothing"):
        run.path.start(0)
    with pytest.raises(ValueError, match="kept nothing"):
        run.path.states(0)


@every_plan
def test_no_graph_is_left_behind(plan, generator):
    field, y = mixed(generator)
    y.requires_grad_()
    for parameter in field.parameters:
        parameter.requires_grad_()
    run = plan.run(field, y, "stages")
    again = run.path.advance(0, y.detach())
    pulled = run.path.transpose(0, run.path.states(0), y.detach())
    assert not any(x.requires_grad for x in (run.end, again, *run.path.states(0), pulled.start, *pulled.parameters))


def test_float32_stays_float32(generator):
    field, y = mixed(generator)
    field, y = field.float(), y.float()
    for plan in PLANS.values():
        run = plan.run(field, y, "steps")
        _, t, h = run.path.mesh(0)
        pulled = run.path.transpose(0, run.path.states(0), y)
        seen = [run.end, *run.path.states(0), pulled.start, pulled.duration, pulled.shift, pulled.stability]
        seen += pulled.parameters if isinstance(plan, UniformSteps) else [*pulled.parameters, t, h]
        assert {x.dtype for x in seen} == {torch.float32}


def test_taking_and_putting_rows():
    whole, rows = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 2])
    assert take(whole, None) is whole
    assert torch.equal(take(whole, rows), whole[[0, 2]])
    assert put(whole, None, -whole).tolist() == (-whole).tolist()
    assert put(whole, rows, torch.zeros(2, 2)).tolist() == [[0, 0], [2, 3], [0, 0]]
    assert whole.tolist() == [[0, 1], [2, 3], [4, 5]]
