"""What the loops rely on: rows that do not mix, steps of every form of size, no graphs, and every adjoint."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from implicit_problems import (
    METHODS,
    Gradient,
    H,
    Linearising,
    T,
    WithPotential,
    draw,
    every_kind,
    every_method,
    pull_through,
    some_convex,
    some_wells,
)
from references import relative

from adjoint_meta.solvers import SDIRK2, Checkpointed, Discrete, ImplicitEuler, Status, UniformGrid, UniformSteps
from adjoint_meta.solvers.newton_cg import Stage, newton_cg

# Rows


@every_method
@every_kind
def test_rows_in_a_batch_are_rows_alone(method, kind, generator):
    field, y = some_wells(kind, generator), torch.cat([3 * draw(generator), 0.01 * draw(generator)])
    w = torch.randn(y.shape, generator=generator)
    h = torch.tensor([0.01, 3.0, 50.0, 0.1, 7.0, 300.0])[:, None]
    stepper = method()
    together, infos = stepper.solve(field, 0.0, h, y)
    assert torch.all(together.codes == Status.SUCCESS.code)
    for row in range(6):
        size = float(h[row])
        alone, its = stepper.solve(field, 0.0, size, y[row : row + 1])
        assert torch.equal(alone.codes, together.codes[row : row + 1])
        for one, all_ in zip(its, infos, strict=True):
            assert torch.equal(one.steps, all_.steps[row : row + 1])
            assert torch.equal(one.cg_steps, all_.cg_steps[row : row + 1])
        assert relative(alone.end[0], together.end[row]) < 1e-12
    pulled = stepper.transpose(field, 0.0, h, together.states, w)
    for row in range(6):
        states = [state[row : row + 1] for state in together.states]
        alone = stepper.transpose(field, 0.0, float(h[row]), states, w[row : row + 1])
        assert relative(alone.start[0], pulled.start[row]) < 1e-12
        assert relative(alone.size, pulled.size[row : row + 1]) < 1e-10


@every_kind
def test_rows_that_have_converged_do_not_move(kind, generator):
    field, b = some_wells(kind, generator), 0.3 * draw(generator, rows=4)
    b[1] = ImplicitEuler(newton_tol=1e-15).step(field, 0.0, 1e3, b[1:2]).end[0]
    b[2] *= 1e-9
    b[3] = 0.0  # stationary
    field.seen.clear()
    info = newton_cg(Stage(field, 0.0, 20.0, b), b).info
    states = torch.stack(field.seen)
    assert torch.equal(states[:, 3], torch.zeros(len(states), 4)) and info.steps[3] == info.cg_steps[3] == 0
    assert info.steps[1] < info.steps[2], "these rows are meant to converge at different times"
    residuals = torch.stack([(y - b - 20.0 * field(0.0, y)).norm(dim=1) for y in states])
    bounds = 1e-10 * (states - b).norm(dim=2)
    for row in range(3):
        first = int((residuals[:, row] <= bounds[:, row]).int().argmax())
        assert torch.all(states[first:, row] == states[first, row])
        assert residuals[first, row] <= bounds[first, row] or info.codes[row] != Status.SUCCESS.code


@every_method
def test_every_form_of_the_step_size(method, generator):
    field, y, w = some_convex(WithPotential, generator), draw(generator), draw(generator)
    stepper = method()
    forms = [H, torch.tensor(H), torch.full((3, 1), H), torch.full((3, 1), H, requires_grad=True)]
    taken = [stepper.step(field, T, h, y) for h in forms]
    pulled = [stepper.transpose(field, T, h, taken[0].states, w) for h in forms]
    for step, back in zip(taken, pulled, strict=True):
        assert torch.equal(step.end, taken[0].end) and not step.end.requires_grad
        assert torch.equal(back.start, pulled[0].start) and torch.equal(back.size, pulled[0].size)
    assert torch.equal(stepper.step(field, T, 1, y).end, stepper.step(field, T, 1.0, y).end)


# Graphs, and what the loops ask of a stepper


@every_method
def test_nothing_carries_a_graph_and_inputs_stay_as_they_were(method, generator):
    field, y, w = some_convex(Linearising, generator), draw(generator), draw(generator)
    before = (y.clone(), w.clone())
    taken = method().step(field, T, H, y.requires_grad_())
    pulled = method().transpose(field, T, H, taken.states, w)
    assert not any(x.requires_grad for x in (taken.end, *taken.states, taken.slope, pulled.start, pulled.size))
    assert torch.equal(y, before[0]) and torch.equal(w, before[1])
    with torch.no_grad():
        again = method().step(field, T, H, y)
    assert torch.equal(again.end, taken.end)


@every_method
def test_it_is_a_stepper(method, generator):
    stepper = method(cg_steps=7)
    assert stepper.name == {ImplicitEuler: "implicit_euler", SDIRK2: "sdirk2"}[method]
    assert stepper.order == METHODS.index(method) + 1 and stepper.estimate_order == 0
    assert stepper.stages(torch.ones(3)) is None
    assert stepper.limit() == stepper.limit(torch.ones(3)) == math.inf
    assert pickle.loads(pickle.dumps(stepper)) == stepper == eval(repr(stepper)) != method()
    field, y = some_convex(Gradient, generator), draw(generator)
    taken = method().step(field, T, H, y, slope=field(T, y), stages=None, estimate=True)
    states = method().states(field, T, H, y)
    assert all(torch.equal(one, other) for one, other in zip(taken.states, states, strict=True))


@every_method
@pytest.mark.parametrize("adjoint", [Discrete("stages"), Discrete("steps"), Checkpointed(2)])
def test_every_adjoint_transposes_the_same_steps(method, adjoint, generator):
    field, y, w = some_convex(Linearising, generator), draw(generator), draw(generator)
    solve = adjoint.solve(UniformSteps(method(), UniformGrid(0.0, 2.0, 3)), field, y)
    start, length = pull_through(method(), field, 3, y, w, horizon=2.0)
    pulled = solve.pullback(w)
    solve.raise_if_failed()
    assert relative(pulled.start, start) < 1e-13
    assert relative(pulled.duration, length) < 1e-12
    assert torch.all(pulled.stability == 0)  # no step is too long
