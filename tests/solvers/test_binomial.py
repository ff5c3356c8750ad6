from __future__ import annotations

from math import ceil, comb, sqrt

from hypothesis import given
from hypothesis import strategies as st
from references import fewest_repeated_steps

from adjoint_meta.solvers.binomial import placements


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


def test_a_schedule_of_griewank_and_walther():
    # Ten steps with three snapshots: C(3+2, 3) = 10, so no step is taken more than twice; the first leap is C(3+1, 3).
    assert list(placements(10, 2)) == [4, 7]
    assert list(placements(1, 5)) == [] and list(placements(7, 0)) == []
    # With room for all, every state is kept.
    assert list(placements(5, 4)) == [1, 2, 3, 4]


@given(steps=st.integers(1, 400))
def test_the_root_of_twice_the_steps_repeats_no_step_more_than_twice(steps):
    snapshots = ceil(sqrt(2 * steps))
    assert comb(snapshots + 2, snapshots) >= steps
