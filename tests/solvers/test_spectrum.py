from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import symmetric
from references import matrix_exponential, relative, rows_times
from row_problems import PAIRS, Counted, Elementwise, Gradient, RowLinear, adaptive, names, recorded

from adjoint_meta.solvers import TABLEAUS, Constant, Discrete, Guard, OwnSteps, PIController
from adjoint_meta.solvers.linear import Tridiagonal
from adjoint_meta.solvers.spectrum import SpectralRadius

every_pair = pytest.mark.parametrize("name", PAIRS)


def linear(generator: torch.Generator, *spectra: torch.Tensor) -> tuple[RowLinear, torch.Tensor, torch.Tensor]:
    """A linear field, a state, and f there."""
    a = symmetric(generator, torch.stack(spectra))
    b, y = (torch.randn(len(spectra), a.shape[1], generator=generator) for _ in range(2))
    field = RowLinear(a, b)
    return field, y, field(0.0, y)


# Curvatures as networks have them: a bulk, and a few steep directions; of either sign.
STEEP = [
    torch.cat([torch.logspace(-4, 0, 26), torch.tensor([3.0, 8.0, 15.0, 28.0])]),
    torch.cat([torch.linspace(-1, 2, 28), torch.tensor([-20.0, 9.0])]),
    torch.cat([torch.full((28,), 1e-3), torch.tensor([5.0, 5.1])]),
]


def test_the_first_estimate_is_within_a_hundredth_after_six_products(generator):
    for _ in range(10):
        field, y, slope = linear(generator, *STEEP)
        counted = Counted(field, 3)
        found = SpectralRadius.start(counted, 0.0, y, slope, 6)
        exact = torch.linalg.matrix_norm(field.a, 2)
        assert torch.all((found.value / exact - 1).abs() < 0.01)
        assert counted.products.tolist() == [6] * 3 and not counted.evaluations.any()
        # The vector is the direction in which it is: a unit vector with ‖Jv‖ at the estimate.
        assert torch.allclose(found.vector.norm(dim=1), torch.ones(3), rtol=1e-14)
        stretched = rows_times(field.a, found.vector).norm(dim=1)
        assert torch.allclose(stretched, found.value, rtol=0.02)


@given(
    spectra=st.lists(st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=5), min_size=1, max_size=3),
    steps=st.integers(1, 7),
    seed=st.integers(0, 2**20),
)
def test_the_estimate_is_a_lower_bound_that_updates_only_raise(spectra, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    field, y, slope = linear(generator, *torch.tensor(spectra).unbind())
    exact = torch.tensor(spectra).abs().amax(dim=1)
    radius = SpectralRadius.start(field, 0.0, y, slope, steps)
    for _ in range(4):
        assert torch.all(radius.value <= exact * (1 + 1e-12))
        before = radius.value
        radius.update(field, 0.0, y)
        assert torch.all(radius.value >= before * (1 - 1e-12))


def test_as_many_products_as_dimensions_are_exact(generator):
    spectra = [torch.linspace(-3.0, 2.0, 5), torch.linspace(1.0, 7.0, 5)]
    found = SpectralRadius.start(*(lambda f, y, s: (f, 0.0, y, s))(*linear(generator, *spectra)), 5)
    assert found.value.tolist() == pytest.approx([3.0, 7.0], rel=1e-12)


def test_updates_follow_a_jacobian_that_turns_and_grows(generator):
    class Turning(Elementwise):
        """−A(t) y, with a steepest direction that turns by a right angle and steepens tenfold until t = 1."""

        def __init__(self):
            super().__init__(None)
            basis, _ = torch.linalg.qr(torch.randn(30, 30, generator=generator))
            self.bulk, self.first, self.second = basis[:, 2:], basis[:, 0], basis[:, 1]

        def matrix(self, t):
            v = math.cos(t * math.pi / 2) * self.first + math.sin(t * math.pi / 2) * self.second
            return self.bulk @ torch.diag(torch.linspace(0, 2, 28)) @ self.bulk.T + 10 * (1 + 9 * t) * torch.outer(v, v)

        def vjp(self, t, y, w):
            return Elementwise(lambda t, y: -y @ self.matrix(t)).vjp(t, y, w)

    field, y = Turning(), torch.randn(1, 30, generator=generator)
    radius = SpectralRadius.start(field, 0.0, y, -y @ field.matrix(0.0), 6)
    for t in torch.linspace(0, 1, 21).tolist():
        value = radius.update(field, t, y)
        assert relative(value, -y @ field.matrix(t)) < 1e-14
        assert float(radius.value) == pytest.approx(float(torch.linalg.matrix_norm(field.matrix(t), 2)), rel=0.02)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_a_product_that_says_nothing_leaves_the_estimate(bad):
    scale = torch.tensor([[1.0], [bad]])
    radius = SpectralRadius(torch.tensor([[0.6, 0.8], [0.6, 0.8]]), torch.tensor([3.0, 3.0]))
    radius.update(Elementwise(lambda t, y: scale * y), 0.0, torch.ones(2, 2))
    assert radius.value.tolist() == pytest.approx([1.0, 3.0])
    assert torch.allclose(radius.vector, torch.tensor([[0.6, 0.8], [0.6, 0.8]]))


# Steps inside the stability interval


def gradient(generator: torch.Generator) -> tuple[Gradient, torch.Tensor]:
    """A gradient flow whose curvature about doubles on the way, differently in each row."""
    basis, _ = torch.linalg.qr(torch.randn(3, 6, 6, generator=generator))
    scale = torch.tensor([1.0, 20.0, 100.0])[:, None]
    b = torch.randn(3, 6, generator=generator)
    offset = torch.randn(3, 6, generator=generator) / scale
    return Gradient(basis, scale * torch.linspace(0.01, 1, 6), b), b + offset


@every_pair
@pytest.mark.parametrize("safety", [0.9, 0.5])
@pytest.mark.parametrize("controller", [PIController(1e-2, 1e-3), Constant(40)], ids=["adaptive", "constant"])
def test_no_step_leaves_the_interval(name, safety, controller, generator):
    field, y = gradient(generator)
    solve = adaptive(name, 2.0, controller=controller, guard=Guard(safety, lanczos=6, every=1))
    solved, steps, starts = recorded(solve, field, y)
    assert names(solved) == ["SUCCESS"] * 3
    limit = TABLEAUS[name].stability_limit
    largest = torch.zeros(3)
    for row in range(3):
        alone = field.rows(torch.tensor([row]))
        share = [float(h * alone.radius(y[None])) / limit for (_, h), y in zip(steps[row], starts[row], strict=True)]
        largest[row] = max(share)
    # The estimate lags behind the curvature a little.
    assert torch.all(largest <= 1.06 * safety)
    assert torch.allclose(solved.statistics.stability, largest, rtol=0.06)
    # It bites: the stiffest row goes as far as it may.
    assert float(solved.statistics.stability[2]) > 0.99 * safety
    assert torch.all(solved.statistics.stability <= 1.0011 * safety)


def test_the_statistics_of_the_spectrum(generator):
    field, y = gradient(generator)
    solved, _, starts = recorded(adaptive(tol=1e-3, guard=Guard(lanczos=6, every=1)), field, y)
    statistics = solved.statistics
    exact = torch.stack(
        [field.rows(torch.tensor([row])).radius(torch.stack(states)).max() for row, states in enumerate(starts)]
    )
    assert torch.all(statistics.radius <= exact * (1 + 1e-12)) and torch.all(statistics.radius > 0.98 * exact)
    assert torch.allclose(statistics.vector.norm(dim=1), torch.ones(3), rtol=1e-12)


def test_rejected_steps_have_no_part_in_the_stability():
    # f = −5 (y − g(t)), so that ‖J‖ = 5, with a g that jumps at t = 1: steps across it are tried and rejected.
    field = Elementwise(lambda t, y: -5 * (y - torch.tanh(200 * (torch.as_tensor(t) - 1))))
    solved, steps, _ = recorded(adaptive("bosh3", tol=1e-3, guard=Guard(every=1)), field, torch.zeros(1, 2))
    longest = max(float(h) for _, h in steps[0])
    assert float(solved.statistics.stability) == pytest.approx(5 * longest / TABLEAUS["bosh3"].stability_limit)
    assert int(solved.statistics.rejected) > 3


def test_products_are_spent_at_the_start_and_when_the_estimate_has_aged(generator):
    field, y = gradient(generator)
    once = Counted(field, 3)
    adaptive(guard=Guard(lanczos=5, every=10**9)).integrate(once, y)
    assert once.products.tolist() == [5] * 3
    warm = Counted(field, 3)
    adaptive(guard=Guard(every=10**9, start=torch.ones(3, 6))).integrate(warm, y)
    assert warm.products.tolist() == [1] * 3
    often = Counted(field, 3)
    solved = adaptive(guard=Guard(lanczos=5, every=1)).integrate(often, y)
    attempts = solved.statistics.accepted + solved.statistics.rejected
    # Renewed before every attempt but the first.
    assert torch.equal(often.products, 5 + attempts - 1)


def test_a_solve_may_start_with_the_direction_that_another_one_ended_with(generator):
    field, y = gradient(generator)
    first = adaptive(tol=1e-3, guard=Guard(lanczos=6, every=1)).integrate(field, y)
    # Where it ended, one product from there is as good as many; after the first one, a little has to be learned.
    guard = Guard(start=first.statistics.vector)
    found = guard.begin(field, 0.0, first.end, field(0.0, first.end)).value
    assert torch.all((found / field.radius(first.end) - 1).abs() < 0.02)


def test_a_row_without_a_direction_to_start_with_is_guarded_all_the_same(generator):
    # As a row that failed, or was at rest, left behind.
    field, y, _ = linear(generator, STEEP[0], STEEP[0])
    start = torch.randn(2, 30, generator=generator)
    start[1] = 0
    solved = adaptive(t1=4.0, tol=1e-2, guard=Guard(start=start)).integrate(field, y)
    assert torch.all(solved.statistics.radius > 0.9 * 28)


def test_a_flow_that_starts_at_rest_is_guarded_once_it_moves():
    # f(0, 0) = 0, so that there is no slope to start with.
    field = Elementwise(lambda t, y: -100 * (y - t))
    solved = adaptive(tol=1e-3, guard=Guard(every=1)).integrate(field, torch.zeros(1, 2))
    assert float(solved.statistics.radius) == pytest.approx(100, rel=1e-6)


def test_a_jacobian_that_is_not_a_number_is_told_at_once(generator):
    class Broken(RowLinear):
        def vjp(self, t, y, w):
            found = super().vjp(t, y, w)
            return found._replace(state=torch.where(self.b[:, :1] == 7, torch.nan, found.state))

        def rows(self, index):
            return Broken(self.a[index], self.b[index])

    field, y, _ = linear(generator, STEEP[0], STEEP[1], STEEP[2])
    field.b[1, 0] = 7.0
    solved = adaptive(t1=0.5, guard=Guard(), max_steps=300).integrate(Broken(field.a, field.b), y)
    assert names(solved) == ["SUCCESS", "NON_FINITE", "SUCCESS"]
    assert int(solved.statistics.rejected[1]) == 0


def test_ritz_values_of_rows_beside_one_that_is_not_finite():
    # LAPACK refuses a whole batch for one matrix like this.
    diagonal = torch.tensor([[2.0, 1.0, 2.0], [2.0, 1.0, math.nan]])
    values, _ = Tridiagonal(diagonal, torch.ones(2, 2), torch.zeros(3, 2, 3)).ritz()
    expected = torch.linalg.eigvalsh(torch.tensor([[2.0, 1, 0], [1, 1, 1], [0, 1, 2]]))
    assert torch.allclose(values[0], expected, rtol=1e-12)
    assert values[1].isnan().all()


# Why error control is not enough


def test_without_the_guard_the_solution_is_fine_and_its_transpose_is_wrong(generator):
    a = symmetric(generator, torch.linspace(1, 1000, 12)[None])
    b, w = torch.zeros(1, 12), torch.randn(1, 12, generator=generator)
    y = torch.randn(1, 12, generator=generator)
    propagator = matrix_exponential(-1.0 * a)
    end, start = rows_times(propagator, y), rows_times(propagator, w)
    found = {}
    for guard in (None, Guard()):
        solve = OwnSteps(adaptive(t1=1.0, tol=1e-2, guard=guard))
        solved = Discrete().solve(solve, RowLinear(a, b), y)
        pulled = solved.pullback(w)
        found[guard is not None] = (
            float((solved.end - end).norm() / y.norm()),
            float((pulled.start - start).norm() / w.norm()),
            float(pulled.stability),
        )
    free, guarded = found[False], found[True]
    assert free[0] < 2e-2 and guarded[0] < 2e-2
    # The transposed steps swing where the steps did, and say so.
    assert free[1] > 100 * guarded[1] and free[2] > 1
    assert guarded[1] < 2e-2 and guarded[2] <= 0.91


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"safety": 0.0}, ValueError, "safety must be positive"),
        ({"safety": 1.5}, ValueError, "safety must be at most 1, the whole interval, got 1.5"),
        ({"safety": "half"}, TypeError, "safety must be a number"),
        ({"lanczos": 0}, ValueError, "lanczos must be at least 1"),
        ({"every": 0}, ValueError, "every must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Guard(**arguments)


def test_a_start_that_does_not_fit_is_refused(generator):
    field, y = gradient(generator)
    with pytest.raises(ValueError, match=r"the guard's start must have shape \[3, 6\], got \[3, 5\]"):
        adaptive(guard=Guard(start=torch.ones(3, 5))).integrate(field, y)
    with pytest.raises(TypeError, match=r"the guard's start must be torch\.float64"):
        adaptive(guard=Guard(start=torch.ones(3, 6, dtype=torch.float32))).integrate(field, y)


def test_float32_stays_float32(generator):
    field, y, slope = linear(generator, *STEEP)
    field, y, slope = RowLinear(field.a.float(), field.b.float()), y.float(), slope.float()
    found = SpectralRadius.start(field, 0.0, y, slope, 6)
    found.update(field, 0.0, y)
    assert found.value.dtype == found.vector.dtype == torch.float32
    assert torch.allclose(found.value, torch.linalg.matrix_norm(field.a, 2), rtol=0.01)
