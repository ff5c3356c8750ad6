from __future__ import annotations

from math import ceil, comb, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import Recorder, TanhField
from references import fewest_repeated_steps, relative, runge_kutta
from torch.utils._python_dispatch import TorchDispatchMode

from adjoint_meta.solvers import TABLEAUS, Checkpointed, Discrete, SolverError, Status, UniformGrid, integrate
from adjoint_meta.solvers.adjoints import placements

every_tableau = pytest.mark.parametrize("tableau", TABLEAUS.values(), ids=TABLEAUS)
EULER, RK4 = TABLEAUS["euler"], TABLEAUS["rk4"]

ADJOINTS = [
    Discrete(),
    Discrete(store="steps"),
    Checkpointed(),
    *(Checkpointed(snapshots) for snapshots in (1, 2, 3, 7, 100)),
]


@every_tableau
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("interval", [(0.0, 1.5), (1.5, 0.0)], ids=["forward", "backward"])
def test_pullback_is_autograd_through_all_steps(tableau, adjoint, interval, generator):
    field, steps = TanhField(generator), 7
    y, w = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    solved = adjoint.solve(tableau, field, UniformGrid(*interval, steps), y)
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
@pytest.mark.parametrize("adjoint", ADJOINTS[1:], ids=str)
def test_all_adjoints_agree_bit_for_bit(tableau, adjoint, generator):
    field, grid = TanhField(generator, time=1.0), UniformGrid(0.0, 1.5, 7)
    y, w = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    stored, other = (kind.solve(tableau, field, grid, y) for kind in (Discrete(), adjoint))
    expected, found = stored.pullback(w), other.pullback(w)
    assert torch.equal(stored.end, other.end)
    assert torch.equal(expected.start, found.start)
    assert torch.equal(expected.duration, found.duration)
    assert all(map(torch.equal, expected.parameters, found.parameters))


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_the_pullback_may_be_called_again_and_is_linear(adjoint, generator):
    field, y = TanhField(generator), torch.randn(2, 3, generator=generator)
    w = torch.randn(2, 3, generator=generator)
    solved = adjoint.solve(RK4, field, UniformGrid(0.0, 1.5, 7), y)
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
    solved = adjoint.solve(tableau, field, UniformGrid(0.0, 1.0, steps), torch.randn(2, 3, generator=generator))
    assert (len(field.calls), field.products) == (steps * stages, 0)
    solved.pullback(solved.end)
    rebuilt = steps * stages if rebuilds and stages > 1 else 0
    assert (len(field.calls), field.products) == (steps * stages + rebuilt, steps * stages)


# The schedule


@given(steps=st.integers(1, 60), snapshots=st.integers(1, 12))
def test_the_schedule_is_optimal(steps, snapshots):
    def repeated(steps: int, snapshots: int) -> int:
        """Steps taken on the way to the states of all steps, last to first, snapshots left where the schedule says."""
        kept, taken = [0], 0
        for index in reversed(range(steps)):
            while kept[-1] > index:
                kept.pop()
            base = kept[-1]
            kept += [base + offset for offset in placements(index + 1 - base, snapshots - len(kept))]
            assert len(kept) <= snapshots
            assert kept == sorted(set(kept)) and kept[-1] <= index
            taken += index - base
        return taken

    assert repeated(steps, snapshots) == fewest_repeated_steps(steps, snapshots)


@given(snapshots=st.integers(1, 8), repetitions=st.integers(1, 5))
def test_the_longest_chains_have_the_cost_of_the_formula(snapshots, repetitions):
    # Griewank and Walther 2000, eq. 3: with n = C(s+r, s) no step is taken more than r times, r·n − C(s+r, r−1) in all.
    steps = comb(snapshots + repetitions, snapshots)
    if steps <= 150:
        cost = repetitions * steps - comb(snapshots + repetitions, repetitions - 1)
        assert fewest_repeated_steps(steps, snapshots) == cost


@pytest.mark.parametrize("snapshots", [1, 2, 3, 5, 8, 20, None])
@pytest.mark.parametrize("steps", [1, 2, 9, 20])
def test_the_checkpointed_sweep_takes_the_fewest_steps_and_keeps_no_more_states(steps, snapshots, generator):
    recorder = Recorder(TanhField(generator))
    start = torch.randn(2, 3, generator=generator)
    kept = min(snapshots or ceil(sqrt(2 * steps)), steps)
    solved = Checkpointed(snapshots).solve(EULER, recorder, UniformGrid(0.0, 1.0, steps), start)
    assert len(recorder.calls) == steps
    best = fewest_repeated_steps(steps, kept)
    # The first sweep starts from the snapshots that the solve left behind, the second one from the initial state.
    left_behind = max([0, *placements(steps, kept - 1)])
    solved.pullback(start)
    assert len(recorder.calls) == steps + best - left_behind
    solved.pullback(start)
    assert len(recorder.calls) == steps + best - left_behind + best
    assert recorder.products == 2 * steps


@pytest.mark.parametrize("snapshots", [1, 2, 3, 5, 8])
def test_the_checkpointed_sweep_keeps_no_more_states_than_snapshots(snapshots, generator):
    recorder = Recorder(TanhField(generator))
    recorder.watch = True
    start = torch.randn(2, 3, generator=generator)
    with Blocks() as blocks:
        solved = Checkpointed(snapshots).solve(EULER, recorder, UniformGrid(0.0, 1.0, 20), start)
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
    integrate(EULER, recorder, grid, y, record=lambda index, taken: kept.append(taken.states))
    assert recorder.most_alive == 20


@pytest.mark.parametrize("adjoint", ADJOINTS[:4], ids=str)
@pytest.mark.parametrize("leaf", ["parameters", "initial state"])
def test_a_solve_in_grad_mode_builds_no_graph(adjoint, leaf, generator):
    # The field of a user is a module whose parameters require grad, and nothing says no_grad.
    field, grid = TanhField(generator), UniformGrid(0.0, 1.5, 7)
    y, w = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    expected = Discrete().solve(RK4, field, grid, y).pullback(w)
    for tensor in field.parameters if leaf == "parameters" else (y,):
        tensor.requires_grad_()
    solved = adjoint.solve(RK4, field, grid, y)
    found = solved.pullback(w)
    assert torch.equal(found.start, expected.start)
    assert all(map(torch.equal, found.parameters, expected.parameters))
    assert not any(x.requires_grad for x in (solved.end, found.start, found.duration, *found.parameters))


@given(steps=st.integers(1, 400))
def test_the_default_number_of_snapshots_repeats_no_step_more_than_twice(steps):
    snapshots = ceil(sqrt(2 * steps))
    assert fewest_repeats(steps, snapshots) <= 2


def fewest_repeats(steps: int, snapshots: int) -> int:
    """Repetitions r of the binomial schedule: the least with C(s+r, s) ≥ n."""
    return next(r for r in range(steps + 1) if comb(snapshots + r, snapshots) >= steps)


# Failures and refusals


@pytest.mark.parametrize("adjoint", [Discrete(), Checkpointed(2)], ids=str)
def test_a_solve_that_blows_up_says_in_which_row(adjoint):
    class Explosion(TanhField):
        def __call__(self, t, y):
            return 1e200 * y**3

    field = Explosion(torch.Generator())
    solved = adjoint.solve(EULER, field, UniformGrid(0.0, 1.0, 6), torch.tensor([[0.0], [1.0]]))
    assert solved.codes.tolist() == [Status.SUCCESS.code, Status.NON_FINITE.code]
    with pytest.raises(SolverError, match=r"the inner solve failed in 1 of 2 rows \(row 1\).*take more steps"):
        solved.raise_if_failed()


def test_a_solve_that_succeeds_raises_nothing(generator):
    solved = Discrete().solve(EULER, TanhField(generator), UniformGrid(0.0, 1.0, 2), torch.zeros(2, 3))
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
        adjoint.solve(EULER, TanhField(generator), UniformGrid(0.0, 1.0, 2), y)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="unknown store 'stage'; did you mean 'stages'"):
        Discrete(store="stage")
    with pytest.raises(ValueError, match="snapshots must be at least 1"):
        Checkpointed(0)
    with pytest.raises(TypeError, match="snapshots must be a whole number"):
        Checkpointed(2.5)
