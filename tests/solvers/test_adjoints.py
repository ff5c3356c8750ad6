from __future__ import annotations

from math import ceil, comb, sqrt

import pytest
import torch
from problems import Recorder, TanhField
from references import fewest_repeated_steps, relative, runge_kutta
from row_problems import cotangents, problem
from torch.utils._python_dispatch import TorchDispatchMode

from adjoint_meta.solvers import (
    TABLEAUS,
    Checkpointed,
    Discrete,
    RungeKutta,
    SolverError,
    Status,
    UniformGrid,
    UniformSteps,
    integrate,
)

every_tableau = pytest.mark.parametrize("tableau", TABLEAUS.values(), ids=TABLEAUS)
EULER, RK4 = TABLEAUS["euler"], TABLEAUS["rk4"]

ADJOINTS = [
    Discrete(),
    Discrete(store="steps"),
    Checkpointed(),
    *(Checkpointed(snapshots) for snapshots in (1, 2, 3, 7, 100)),
    Checkpointed(2, offload=True),
    Checkpointed(memory=3 * 2 * 3 * 8),
]


def uniform(tableau, steps: int = 7, t0: float = 0.0, t1: float = 1.5) -> UniformSteps:
    return UniformSteps(RungeKutta(tableau), UniformGrid(t0, t1, steps))


@every_tableau
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("interval", [(0.0, 1.5), (1.5, 0.0)], ids=["forward", "backward"])
def test_pullback_is_autograd_through_all_steps(tableau, adjoint, interval, generator):
    field, steps = TanhField(generator), 7
    y, w = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    solved = adjoint.solve(uniform(tableau, steps, *interval), field, y)
    pulled = solved.pullback(w)

    y.requires_grad_()
    t1 = torch.full((2, 1), interval[1]).requires_grad_()
    for parameter in field.parameters:
        parameter.requires_grad_()
    end = runge_kutta(tableau, field, interval[0], t1, steps, y)
    start, duration, *parameters = torch.autograd.grad(end, (y, t1, *field.parameters), w)
    assert relative(solved.end, end.detach()) < 1e-14
    assert relative(pulled.start, start) < 1e-12
    assert relative(pulled.duration, duration[:, 0]) < 1e-12
    assert relative(pulled.parameters[0], parameters[0]) < 1e-12
    assert relative(pulled.parameters[1], parameters[1]) < 1e-12


@every_tableau
@pytest.mark.parametrize("adjoint", ADJOINTS[:4], ids=str)
@pytest.mark.parametrize("interval", [(0.3, 1.5), (1.5, 0.3)], ids=["forward", "backward"])
def test_pullback_of_a_field_with_explicit_time(tableau, adjoint, interval, generator):
    field, y, w = problem(generator)
    pulled = adjoint.solve(uniform(tableau, 7, *interval), field, y).pullback(w)

    begin, end = (torch.full((2, 1), t).requires_grad_() for t in interval)
    inputs = (y.requires_grad_(), begin, end, *(p.requires_grad_() for p in field.parameters))
    start, at_begin, at_end, *parameters = torch.autograd.grad(runge_kutta(tableau, field, begin, end, 7, y), inputs, w)
    # The duration moves t1 alone, a shift moves both.
    expected = [start, at_end[:, 0], (at_begin + at_end)[:, 0], *parameters]
    assert all(relative(*pair) < 1e-12 for pair in zip(cotangents(pulled), expected, strict=True))


@every_tableau
@pytest.mark.parametrize("adjoint", ADJOINTS[1:], ids=str)
def test_all_adjoints_agree_bit_for_bit(tableau, adjoint, generator):
    field = TanhField(generator, time=1.0)
    y, w = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    stored, other = (kind.solve(uniform(tableau), field, y) for kind in (Discrete(), adjoint))
    expected, found = stored.pullback(w), other.pullback(w)
    assert torch.equal(stored.end, other.end)
    assert torch.equal(expected.start, found.start)
    assert torch.equal(expected.duration, found.duration)
    assert all(map(torch.equal, expected.parameters, found.parameters))


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_the_pullback_may_be_called_again_and_is_linear(adjoint, generator):
    field, y = TanhField(generator), torch.randn(2, 3, generator=generator)
    w = torch.randn(2, 3, generator=generator)
    solved = adjoint.solve(uniform(RK4), field, y)
    once, twice, tripled = solved.pullback(w), solved.pullback(w), solved.pullback(3 * w)
    assert torch.equal(once.start, twice.start)
    assert torch.equal(once.duration, twice.duration)
    assert all(map(torch.equal, once.parameters, twice.parameters))
    assert relative(tripled.start, 3 * once.start) < 1e-14
    assert relative(tripled.duration, 3 * once.duration) < 1e-14


@every_tableau
@pytest.mark.parametrize(("adjoint", "rebuilds"), [(Discrete(), False), (Discrete(store="steps"), True)], ids=str)
def test_evaluations_of_the_stored_transpose(tableau, adjoint, rebuilds, generator):
    field, steps, stages = Recorder(TanhField(generator)), 5, tableau.solution_stages
    solved = adjoint.solve(uniform(tableau, steps), field, torch.randn(2, 3, generator=generator))
    assert (len(field.calls), field.products) == (steps * stages, 0)
    solved.pullback(solved.end)
    # The states of a step need no slope of the last one.
    rebuilt = steps * (stages - 1) if rebuilds else 0
    assert (len(field.calls), field.products) == (steps * stages + rebuilt, steps * stages)


# Memory


@pytest.mark.parametrize("snapshots", [1, 2, 3, 5, 8, 20, None])
@pytest.mark.parametrize("steps", [1, 2, 9, 20])
def test_the_checkpointed_sweep_takes_the_fewest_steps_and_keeps_no_more_states(steps, snapshots, generator):
    recorder = Recorder(TanhField(generator))
    start = torch.randn(2, 3, generator=generator)
    kept = min(snapshots or ceil(sqrt(2 * steps)), steps)
    solved = Checkpointed(snapshots).solve(uniform(EULER, steps), recorder, start)
    assert len(recorder.calls) == steps
    best = fewest_repeated_steps(steps, kept)
    # The solve is the first descent of the first sweep, and its last step; a second sweep starts from scratch.
    solved.pullback(start)
    assert len(recorder.calls) == best + 1
    solved.pullback(start)
    assert len(recorder.calls) == best + 1 + best
    assert recorder.products == 2 * steps


@pytest.mark.parametrize("steps", [40, 50, 51, 286])
def test_without_a_number_snapshots_stop_growing(steps, generator):
    recorder = Recorder(TanhField(generator))
    start = torch.randn(2, 3, generator=generator)
    with Blocks() as blocks:
        Checkpointed().solve(uniform(EULER, steps), recorder, start).pullback(start)
    kept = 9 if steps == 40 else 10
    assert blocks.shapes == [(kept, 2, 3)]
    if steps == 286:  # C(10+3, 10): no step is taken more than three times, r·n − C(s+r, r−1) in all
        assert len(recorder.calls) == 3 * steps - comb(13, 2) + 1
    assert recorder.products == steps


@pytest.mark.parametrize("snapshots", [1, 2, 3, 5, 8])
def test_the_checkpointed_sweep_keeps_no_more_states_than_snapshots(snapshots, generator):
    recorder = Recorder(TanhField(generator))
    recorder.watch = True
    start = torch.randn(2, 3, generator=generator)
    with Blocks() as blocks:
        solved = Checkpointed(snapshots).solve(uniform(EULER, 20), recorder, start)
        solved.pullback(solved.end)
    # The snapshots lie in one block, made once.
    assert blocks.shapes == [(snapshots, 2, 3)]
    # Beside them there are the state that is being stepped and the one that it came from.
    assert recorder.most_alive <= snapshots + 2


class Blocks(TorchDispatchMode):
    """Sees every uninitialised tensor of more than one state that is made."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if "empty" in str(func) and made.ndim == 3:
            self.shapes.append(tuple(made.shape))
        return made


def test_the_count_of_living_states_sees_those_that_are_kept(generator):
    recorder, kept = Recorder(TanhField(generator)), []
    recorder.watch = True
    grid, y = UniformGrid(0.0, 1.0, 20), torch.randn(2, 3, generator=generator)
    integrate(RungeKutta(EULER), recorder, grid, y, record=lambda index, taken: kept.append(taken.states))
    assert recorder.most_alive == 20


@pytest.mark.parametrize("adjoint", ADJOINTS[:4], ids=str)
@pytest.mark.parametrize("leaf", ["parameters", "initial state"])
def test_a_solve_in_grad_mode_builds_no_graph(adjoint, leaf, generator):
    # The field of a user is a module whose parameters require grad, and nothing says no_grad.
    field = TanhField(generator)
    y, w = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    expected = Discrete().solve(uniform(RK4), field, y).pullback(w)
    for tensor in field.parameters if leaf == "parameters" else (y,):
        tensor.requires_grad_()
    solved = adjoint.solve(uniform(RK4), field, y)
    found = solved.pullback(w)
    assert torch.equal(found.start, expected.start)
    assert all(map(torch.equal, found.parameters, expected.parameters))
    assert not any(x.requires_grad for x in (solved.end, found.start, found.duration, *found.parameters))


# Failures and refusals


@pytest.mark.parametrize("adjoint", [Discrete(), Checkpointed(2)], ids=str)
def test_a_solve_that_blows_up_says_in_which_row(adjoint):
    class Explosion(TanhField):
        def __call__(self, t, y):
            return 1e200 * y**3

    field = Explosion(torch.Generator())
    solved = adjoint.solve(uniform(EULER, 6), field, torch.tensor([[0.0], [1.0]]))
    assert solved.codes.tolist() == [Status.SUCCESS.code, Status.NON_FINITE.code]
    with pytest.raises(SolverError, match=r"the inner solve failed in 1 of 2 rows \(row 1\).*take more steps"):
        solved.raise_if_failed()


def test_a_solve_that_succeeds_raises_nothing(generator):
    solved = Discrete().solve(uniform(EULER, 2), TanhField(generator), torch.zeros(2, 3))
    solved.raise_if_failed()
    assert solved.codes.tolist() == [Status.SUCCESS.code] * 2


@pytest.mark.parametrize("adjoint", [Discrete(), Checkpointed()], ids=str)
@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"initial state must have shape \[rows, P\]"),
        (torch.zeros(0, 3), ValueError, "at least one row"),
        (torch.zeros(2, 3, dtype=torch.long), TypeError, "floating point"),
        ([[0.0]], TypeError, "must be a tensor"),
    ],
)
def test_a_wrong_initial_state_is_refused(adjoint, y, error, message, generator):
    with pytest.raises(error, match=message):
        adjoint.solve(uniform(EULER, 2), TanhField(generator), y)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="unknown store 'stage'; did you mean 'stages'"):
        Discrete(store="stage")
    with pytest.raises(ValueError, match="snapshots must be at least 1"):
        Checkpointed(0)
    with pytest.raises(TypeError, match="snapshots must be a whole number"):
        Checkpointed(2.5)
