from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import symmetric
from references import matrix_exponential, relative, rows_times, runge_kutta
from row_problems import PAIRS, Counted, Gradient, RowLinear, RowTanh, adaptive, mixed, names, pair, recorded, replay
from scipy.integrate import solve_ivp

from adjoint_meta.solvers import TABLEAUS, Chebyshev, Constant, Guard, PIController, RowSteps

every_pair = pytest.mark.parametrize("name", PAIRS)


# The solution


@every_pair
@pytest.mark.parametrize("t1", [2.0, -1.0])
def test_rows_of_mixed_stiffness_against_the_matrix_exponential(name, t1, generator):
    scale = torch.tensor([[0.2], [1.0], [8.0], [40.0 if t1 > 0 else 3.0]])
    a = symmetric(generator, scale * (0.2 + torch.rand(4, 3, generator=generator)))
    b, y = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    expected = b + rows_times(matrix_exponential(-t1 * a), y - b)
    growth = float(matrix_exponential(-t1 * a).norm(dim=(1, 2)).max())
    for tol in (1e-3, 1e-4):
        solved = adaptive(name, t1, tol).integrate(RowLinear(a, b), y)
        assert names(solved) == ["SUCCESS"] * 4
        assert float((solved.end - expected).abs().max()) < 20 * tol * growth
    assert len(set(solved.statistics.accepted.tolist())) == 4


@every_pair
def test_the_error_is_proportional_to_the_tolerance(name, generator):
    field, y = mixed(generator)
    order = pair(name).estimate_order
    tolerances = [1e-2, 1e-3, 1e-4] if order == 1 else [1e-3, 1e-4, 1e-5, 1e-6]
    solved = [adaptive(name, tol=tol).integrate(field, y).end for tol in tolerances]
    errors = torch.stack([(end - exact(field, y)).norm(dim=1) for end in solved])
    slopes = np.polyfit(np.log(tolerances), np.log(errors.numpy()), 1)[0]
    # A step errs by h^(p+1) = tol, and the errors add up to h^p at the least.
    assert np.all(slopes > order / (order + 1) - 0.2) and np.all(slopes < 1.5)
    assert torch.all(errors[-1] < 100 * tolerances[-1])


def exact(field: RowTanh, y: torch.Tensor, t1: float = 2.0) -> torch.Tensor:
    """By SciPy, a row at a time."""
    weight, force, rates = (x.numpy() for x in field.parameters)
    ends = [
        solve_ivp(
            lambda t, z, r=rate: np.tanh(weight @ z + np.sin(4 * t) * force) - r * z,
            (0.0, t1),
            row,
            method="DOP853",
            rtol=1e-12,
            atol=1e-13,
        ).y[:, -1]
        for rate, row in zip(rates, y.numpy(), strict=True)
    ]
    return torch.from_numpy(np.array(ends))


def test_as_many_steps_as_scipy_takes(generator):
    # The same pair, tolerances and norm; SciPy's controller has no integral of the past, ours reacts to it.
    field, y = mixed(generator)
    solved = adaptive("dopri5", tol=1e-6).integrate(field, y)
    weight, force, rates = (x.numpy() for x in field.parameters)
    for row, (rate, start) in enumerate(zip(rates, y.numpy(), strict=True)):
        theirs = solve_ivp(
            lambda t, z, r=rate: np.tanh(weight @ z + np.sin(4 * t) * force) - r * z,
            (0.0, 2.0),
            start,
            rtol=1e-6,
            atol=1e-6,
        )
        assert int(solved.statistics.accepted[row]) == pytest.approx(len(theirs.t) - 1, rel=0.25, abs=3)


@every_pair
def test_accepted_steps_follow_each_other_and_are_those_of_the_method(name, generator):
    field, y = mixed(generator)
    solved, steps, starts = recorded(adaptive(name, 2.5, 1e-4, t0=0.5), field, y)
    for taken in steps:
        t, h = (torch.stack(x) for x in zip(*taken, strict=True))
        assert float(t[0]) == 0.5
        assert torch.allclose(t[1:], (t + h)[:-1], rtol=1e-15)
        assert float(t[-1] + h[-1]) == pytest.approx(2.5, rel=1e-15)
    assert relative(replay(TABLEAUS[name], field, steps, y), solved.end) < 1e-13
    assert all(torch.equal(first, start[0]) for first, start in zip(y, starts, strict=True))


@every_pair
def test_the_recorded_errors_are_within_the_tolerance_and_the_rejected_ones_were_not(name, generator):
    field, y = mixed(generator)
    seen = []

    class Watching(PIController):
        def judge(self, *arguments):
            seen.append(super().judge(*arguments))
            return seen[-1]

    solved = adaptive(name, controller=Watching(1e-4, 1e-4)).integrate(field, y)
    accepted = torch.cat([verdict.ratio[verdict.accept] for verdict in seen])
    rejected = torch.cat([verdict.ratio[~verdict.accept] for verdict in seen])
    assert len(accepted) == int(solved.statistics.accepted.sum()) and torch.all(accepted <= 1)
    assert len(rejected) == int(solved.statistics.rejected.sum()) and torch.all(rejected > 1)


@pytest.mark.parametrize("t1", [1.0, -1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30])
def test_constant_steps_are_the_textbook_loop(steps, t1, generator):
    field, y = mixed(generator, rates=(0.3, 1.0))
    solved, taken, _ = recorded(adaptive("bosh3", t1, controller=Constant(steps)), field, y)
    assert relative(solved.end, runge_kutta(TABLEAUS["bosh3"], field, 0.0, t1, steps, y)) < 1e-13
    assert [len(row) for row in taken] == [steps] * 2


# Every row on its own


@every_pair
@pytest.mark.parametrize("guard", [None, Guard(every=4)], ids=["free", "guarded"])
def test_a_row_ends_where_it_would_end_alone(name, guard, generator):
    field, y = mixed(generator)
    solve = adaptive(name, tol=1e-3 if name == "heun" else 1e-4, guard=guard)
    together, steps, _ = recorded(solve, field, y)
    assert len({len(row) for row in steps[:3]}) == 3 and torch.any(together.statistics.rejected > 0)
    for row in range(len(y)):
        only = torch.tensor([row])
        alone, alone_steps, _ = recorded(solve, field.rows(only), y[row : row + 1])
        assert len(steps[row]) == len(alone_steps[0])
        assert torch.allclose(alone.end[0], together.end[row], rtol=1e-13, atol=1e-15)
        for whole, own in zip(together.statistics, alone.statistics, strict=True):
            assert whole is own is None or torch.allclose(whole[row], own[0], rtol=1e-10)


@pytest.mark.parametrize("controller", [PIController(1e-3, 1e-3), Constant(6)], ids=["adaptive", "constant"])
def test_a_row_with_its_own_stages_ends_where_it_would_end_alone(controller, generator):
    # Also when it shares the batch with rows that need many more stages.
    basis, _ = torch.linalg.qr(torch.randn(3, 4, 4, generator=generator))
    steepness = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 20.0, 30.0, 100.0], [1.0, 50.0, 500.0, 1000.0]])
    field, y = Gradient(basis, steepness, torch.zeros(3, 4)), torch.randn(3, 4, generator=generator)
    solve = RowSteps(Chebyshev(), 0.0, 2.0, controller, Guard(every=8))
    together, steps, _ = recorded(solve, field, y)
    for row in range(len(y)):
        alone, alone_steps, _ = recorded(solve, field.rows(torch.tensor([row])), y[row : row + 1])
        assert len(steps[row]) == len(alone_steps[0])
        assert torch.allclose(alone.end[0], together.end[row], rtol=1e-12)


def test_rows_that_are_done_are_not_evaluated_any_more(generator):
    field, y = mixed(generator)
    counted = Counted(field, len(y))
    solved = adaptive(tol=1e-5).integrate(counted, y)
    statistics = solved.statistics
    # The slope at the start and the probe of the first step; every attempt of dopri5 knows its first slope.
    assert torch.equal(counted.evaluations, 2 + 6 * (statistics.accepted + statistics.rejected))
    assert torch.equal(statistics.evaluations, counted.evaluations - 2)
    assert int(counted.evaluations.max()) > 3 * int(counted.evaluations.min())
    assert not counted.products.any()


@every_pair
def test_a_step_is_judged_beside_the_last_accepted_one(name, generator):
    field, y = mixed(generator, rates=(4.0,), force=12.0)
    seen = []

    class Watching(PIController):
        def judge(self, error, y, end, before, order):
            verdict = super().judge(error, y, end, before, order)
            seen.append((bool(verdict.accept), float(verdict.ratio), float(before)))
            return verdict

    adaptive(name, controller=Watching(1e-4, 1e-4)).integrate(field, y)
    assert not all(accept for accept, *_ in seen)
    last = 1.0
    for accept, ratio, before in seen:
        assert before == last
        last = ratio if accept else last


@every_pair
def test_statistics(name, generator):
    field, y = mixed(generator)
    attempts = []

    class Watching(PIController):
        def judge(self, error, *rest):
            attempts.append(len(error))
            return super().judge(error, *rest)

    statistics = adaptive(name, tol=1e-4, controller=Watching(1e-4, 1e-4)).integrate(field, y).statistics
    assert int((statistics.accepted + statistics.rejected).sum()) == sum(attempts)
    new_slopes = TABLEAUS[name].with_last_slope().stages - 1
    assert torch.equal(statistics.evaluations, new_slopes * (statistics.accepted + statistics.rejected))
    assert not statistics.radius.any() and not statistics.stability.any() and statistics.vector is None


def test_the_last_step_is_not_tiny(generator):
    # An attempt that would leave less than one more step behind it takes half of the rest.
    _, steps, _ = recorded(adaptive(tol=1e-3, t1=3.0), *mixed(generator))
    for taken in steps:
        sizes = [float(h) for _, h in taken]
        assert sizes[-1] > 0.19 * max(sizes[-3:])


def test_float32_stays_float32(generator):
    field, y = mixed(generator)
    seen = set()

    def record(rows, t, h, stages, taken):
        seen.update(x.dtype for x in (t, h, taken.end, *taken.states))

    solved = adaptive(tol=1e-3, guard=Guard()).integrate(field.float(), y.float(), record)
    assert seen == {torch.float32}
    statistics = solved.statistics
    assert {x.dtype for x in (solved.end, statistics.radius, statistics.stability, statistics.vector)} == seen
    assert relative(solved.end.double(), adaptive(tol=1e-3, guard=Guard()).integrate(field, y).end) < 1e-4


def test_times_may_be_tensors(generator):
    field, y = mixed(generator)
    expected = adaptive().integrate(field, y)
    found = adaptive(t1=torch.tensor(2.0), t0=torch.tensor(0.0, dtype=torch.float32)).integrate(field, y)
    assert torch.equal(found.end, expected.end)
