from __future__ import annotations

from math import ceil, sqrt

import pytest
import torch
from problems import symmetric
from references import fewest_repeated_steps, matrix_exponential, relative, rows_times
from row_problems import PAIRS, Counted, RowLinear, adaptive, mixed, recorded, replay
from torch.utils._python_dispatch import TorchDispatchMode

from adjoint_meta.solvers import (
    TABLEAUS,
    Chebyshev,
    Checkpointed,
    Constant,
    Discrete,
    Guard,
    OwnSteps,
    PIController,
    RowSteps,
    SolverError,
    SteadyState,
)

every_pair = pytest.mark.parametrize("name", PAIRS)
T0 = 0.5
# Backward in time, the fast rows grow.
DIRECTIONS = {"forward": ((T0, 1.2), (0.3, 30.0, 4.0, 0.3)), "backward": ((T0, -0.5), (0.3, 6.0, 2.0, 0.3))}
every_direction = pytest.mark.parametrize(("interval", "rates"), DIRECTIONS.values(), ids=DIRECTIONS)

OTHERS = [
    Discrete("steps"),
    Checkpointed(),
    *(Checkpointed(snapshots) for snapshots in (1, 2, 5, 10**6)),
    Checkpointed(memory=5 * 4 * 3 * 8 + 1),
    Checkpointed(3, offload=True),
]


def plan(name: str = "dopri5", interval: tuple[float, float] = (T0, 2.0), **more) -> RowSteps:
    return adaptive(name, interval[1], 1e-2 if name == "heun" else 1e-3, interval[0], **more)


def solved_by(adjoint, solve: RowSteps, field, y, w):
    found = adjoint.solve(OwnSteps(solve), field, y)
    found.raise_if_failed()
    return found, found.pullback(w)


# The transpose of the steps taken


@pytest.mark.parametrize(("name", "guard"), [("bosh3", None), ("tsit5", None), ("dopri5", Guard())])
@every_direction
def test_the_pullback_is_the_transpose_of_the_accepted_steps(name, interval, rates, guard, generator):
    field, y = mixed(generator, rates, force=12.0)
    w, v = (torch.randn(4, 3, generator=generator) for _ in range(2))
    solve = plan(name, interval, guard=guard)
    found, pulled = solved_by(Discrete(), solve, field, y, w)
    solved, steps, _ = recorded(solve, field, y)
    assert torch.equal(solved.end, found.end)
    assert len({len(taken) for taken in steps}) > 2 and solved.statistics.rejected.any()
    end, tangent = torch.func.jvp(lambda y: replay(TABLEAUS[name], field, steps, y), (y,), (v,))
    assert relative(found.end, end) < 1e-13
    forward, backward = (w * tangent).sum(dim=1), (pulled.start * v).sum(dim=1)
    scale = w.norm(dim=1) * tangent.norm(dim=1)
    assert torch.all((forward - backward).abs() < 1e-12 * scale)


@every_pair
@every_direction
def test_all_cotangents_are_autograds_through_the_accepted_steps(name, interval, rates, generator):
    field, y = mixed(generator, rates, force=12.0)
    w = torch.randn(4, 3, generator=generator)
    solve = plan(name, interval)
    _, pulled = solved_by(Discrete(), solve, field, y, w)
    _, steps, _ = recorded(solve, field, y)

    longer, later = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    inputs = (y.requires_grad_(), longer, later, *(p.requires_grad_() for p in field.parameters))
    end = replay(TABLEAUS[name], field, steps, y, interval[0], longer, later)
    start, duration, shift, *parameters = torch.autograd.grad(end, inputs, w)
    assert relative(pulled.start, start) < 1e-12
    # longer is the duration in units of t1 − t0.
    assert relative(pulled.duration, duration / (interval[1] - interval[0])) < 1e-12
    assert relative(pulled.shift, shift) < 1e-12
    for found, expected in zip(pulled.parameters, parameters, strict=True):
        assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("controller", [PIController(1e-2, 1e-2), Constant(4)], ids=["adaptive", "constant"])
def test_the_transpose_of_steps_with_their_own_stages(controller, generator):
    field, y = mixed(generator)
    w, stepper = torch.randn(4, 3, generator=generator), Chebyshev()
    solve = RowSteps(stepper, 0.0, 2.0, controller, Guard())
    found, pulled = solved_by(Discrete(), solve, field, y, w)
    taken: list[list] = [[] for _ in y]

    def record(rows, t, h, stages, step):
        for k, row in enumerate(rows.tolist()):
            taken[row].append((t[k], h[k], stages[k : k + 1]))

    solve.integrate(field, y, record)
    assert len({int(stages) for row in taken for *_, stages in row}) > 1
    inputs, ends = (y.requires_grad_(), *(p.requires_grad_() for p in field.parameters)), []
    for row in range(4):
        alone, end = field.rows(torch.tensor([row])), y[row : row + 1]
        for t, h, stages in taken[row]:
            end = stepper.step(alone, t, h, end, stages=stages).end
        ends.append(end)
    start, *parameters = torch.autograd.grad(torch.cat(ends), inputs, w)
    assert relative(found.end, torch.cat(ends).detach()) < 1e-13
    assert relative(pulled.start, start) < 1e-12
    assert all(relative(*pair) < 1e-12 for pair in zip(pulled.parameters, parameters, strict=True))


@pytest.mark.parametrize("adjoint", OTHERS, ids=str)
@pytest.mark.parametrize("stepper", ["tsit5", "rkc"])
def test_all_adjoints_agree(adjoint, stepper, generator):
    field, y = mixed(generator)
    w = torch.randn(4, 3, generator=generator)
    solve = plan("tsit5")
    if stepper == "rkc":
        solve = RowSteps(Chebyshev(), 0.0, 2.0, Constant(8), Guard())
    (stored, expected), (other, found) = (solved_by(a, solve, field, y, w) for a in (Discrete(), adjoint))
    assert torch.equal(stored.end, other.end)
    for name in ("accepted", "rejected", "evaluations"):
        assert torch.equal(stored.stats[name], other.stats[name])
    for name in ("start", "duration", "shift", "stability"):
        assert relative(getattr(found, name), getattr(expected, name)) < 1e-14
    assert all(relative(*pair) < 1e-14 for pair in zip(found.parameters, expected.parameters, strict=True))
    # And again, linearly.
    assert relative(other.pullback(-2 * w).start, -2 * found.start) < 1e-14


@pytest.mark.parametrize("adjoint", [Discrete(), *OTHERS[:3]], ids=str)
def test_a_solve_in_grad_mode_builds_no_graph(adjoint, generator):
    field, y = mixed(generator)
    w = torch.randn(4, 3, generator=generator)
    _, expected = solved_by(adjoint, plan(), field, y, w)
    for tensor in (y, *field.parameters):
        tensor.requires_grad_()
    solved, found = solved_by(adjoint, plan(guard=None), field, y, w)
    assert torch.equal(found.start, expected.start)
    assert not any(x.requires_grad for x in (solved.end, found.start, found.duration, found.shift, *found.parameters))


def test_the_meta_gradient_is_as_accurate_as_the_tolerance(generator):
    spectra = torch.tensor([[0.1], [1.0], [20.0]]) * (0.2 + torch.rand(3, 4, generator=generator))
    a, b = symmetric(generator, spectra), torch.randn(3, 4, generator=generator)
    y, w = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    propagator = matrix_exponential(-2.0 * a)
    end, field = b + rows_times(propagator, y - b), RowLinear(a, b)
    for tol in (1e-3, 1e-5):
        solve = adaptive("bosh3", 2.0, tol, guard=Guard())
        solved, pulled = solved_by(Discrete(), solve, field, y, w)
        assert relative(solved.end, end) < 10 * tol
        assert relative(pulled.start, rows_times(propagator, w)) < 10 * tol
        # d/dT of ⟨w, y(T)⟩ is ⟨w, f(y(T))⟩.
        assert relative(pulled.duration, (w * field(0.0, end)).sum(dim=1)) < 100 * tol


# Costs


def test_products_and_rebuilding_are_spent_on_the_rows_that_stepped(generator):
    field, y = mixed(generator)
    for adjoint, rebuilt in ((Discrete(), 0), (Discrete("steps"), 5)):
        counted = Counted(field, 4)
        solved = adjoint.solve(OwnSteps(plan()), counted, y)
        accepted = solved.stats["accepted"]
        counted.evaluations.zero_()
        solved.pullback(y)
        assert torch.equal(counted.products, 6 * accepted)
        assert torch.equal(counted.evaluations, rebuilt * accepted)


@pytest.mark.parametrize("snapshots", [1, 2, 3, 6, None])
def test_the_way_back_repeats_as_few_steps_as_the_binomial_optimum(snapshots, generator):
    field, y = mixed(generator, rates=(10.0,), force=12.0)
    counted = Counted(field, 1)
    solved = Checkpointed(snapshots).solve(OwnSteps(plan()), counted, y)
    steps = int(solved.stats["accepted"])
    assert steps > 10
    for _ in range(2):
        counted.evaluations.zero_()
        solved.pullback(y)
        # All of them: the solve left nothing behind. A step takes six evaluations; rebuilding its stages, five.
        repeated = fewest_repeated_steps(steps, snapshots or min(ceil(sqrt(2 * steps)), 10))
        assert int(counted.evaluations) == 6 * repeated + 5 * steps


class Blocks(TorchDispatchMode):
    """Sees every uninitialised tensor that is made, other than of times, and whether it is of states."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.empty, torch.ops.aten.new_empty, torch.ops.aten.zeros):
            self.shapes += [tuple(made.shape)] if made.ndim == 3 else []
        return made


@pytest.mark.parametrize(
    ("adjoint", "snapshots"),
    [(Checkpointed(4), 4), (Checkpointed(1), 1), (Checkpointed(memory=7 * 96), 7), (Checkpointed(memory=767), 7)],
)
def test_snapshots_take_exactly_their_place(adjoint, snapshots, generator):
    field, y = mixed(generator)
    assert y.numel() * y.element_size() == 96
    with Blocks() as blocks:
        solved = adjoint.solve(OwnSteps(plan()), field, y)
        assert blocks.shapes == []
        solved.pullback(y)
    assert blocks.shapes == [(snapshots, 4, 3)]


def test_no_more_snapshots_than_steps(generator):
    field, y = mixed(generator)
    with Blocks() as blocks:
        solved = Checkpointed(10**6).solve(OwnSteps(plan()), field, y)
        solved.pullback(y)
    assert blocks.shapes == [(int(solved.stats["accepted"].max()), 4, 3)]


# Ends


@pytest.mark.parametrize("adjoint", [Discrete(), *OTHERS], ids=str)
def test_rows_at_rest_hand_their_cotangent_through(adjoint, generator):
    field = RowLinear(symmetric(generator, torch.ones(2, 3)), torch.zeros(2, 3))
    y, w = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    y[0] = 0
    solve = adaptive(t1=1.0, steady=1e-6)
    if isinstance(adjoint, Checkpointed) and adjoint.memory:
        adjoint = Checkpointed(memory=2 * 3 * 8)
    _, pulled = solved_by(adjoint, solve, field, y, w)
    assert torch.equal(pulled.start[0], w[0]) and float(pulled.duration[0]) == 0
    assert relative(pulled.start[1], w[1] * torch.exp(torch.tensor(-1.0))) < 1e-4
    # All of them at rest, so that there is no step at all.
    _, pulled = solved_by(adjoint, solve, field, 0 * y, w)
    assert torch.equal(pulled.start, w) and not pulled.duration.any()


@pytest.mark.parametrize("adjoint", [Discrete(), Checkpointed(2), SteadyState()], ids=str)
def test_a_row_that_failed_is_named(adjoint, generator):
    field, y = mixed(generator, rates=(0.3, 1000.0, 4.0))
    solved = adjoint.solve(OwnSteps(plan(max_steps=200)), field, y)
    with pytest.raises(SolverError, match=r"the inner solve failed in 1 of 3 rows \(row 1\).*allow more steps"):
        solved.raise_if_failed()


def test_an_infinite_horizon_has_no_duration(generator):
    field = RowLinear(symmetric(generator, torch.ones(2, 3)), torch.zeros(2, 3))
    y = torch.randn(2, 3, generator=generator)
    solve = adaptive(t1=float("inf"), steady=1e-3, guard=Guard())
    solved, pulled = solved_by(Discrete(), solve, field, y, y)
    assert torch.all(solved.end.norm(dim=1) <= 1e-3)
    assert pulled.duration.tolist() == [0.0, 0.0] and torch.isfinite(pulled.start).all()


@pytest.mark.parametrize("adjoint", [Discrete(), *OTHERS[:2], OTHERS[-1]], ids=str)
def test_float32_stays_float32(adjoint, generator):
    field, y = mixed(generator)
    found, pulled = solved_by(adjoint, plan(guard=Guard()), field.float(), y.float(), y.float())
    kinds = {x.dtype for x in (found.end, pulled.start, pulled.duration, pulled.shift, pulled.stability)}
    assert kinds | {x.dtype for x in pulled.parameters} == {torch.float32}
    _, exact = solved_by(adjoint, plan(guard=Guard()), field, y, y)
    assert relative(pulled.start.double(), exact.start) < 1e-2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"snapshots": 3, "memory": 1000}, ValueError, "give snapshots or memory, not both; got 3 and 1000"),
        ({"memory": 0}, ValueError, "memory must be at least 1"),
        ({"memory": 1e6}, TypeError, "memory must be a whole number"),
    ],
)
def test_wrong_settings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Checkpointed(**arguments)


def test_memory_for_no_snapshot_is_refused_before_anything_is_solved(generator):
    field, y = mixed(generator)
    counted = Counted(field, 4)
    with pytest.raises(ValueError, match=r"memory=95 bytes hold no snapshot of shape \[4, 3\], which takes 96"):
        Checkpointed(memory=95).solve(OwnSteps(plan()), counted, y)
    assert not counted.evaluations.any()
