"""The binomial schedule: where to leave snapshots so that a chain of steps is reversed most cheaply."""

from __future__ import annotations

from collections.abc import Iterator
from math import comb


def placements(steps: int, free: int) -> Iterator[int]:
    """Yield where to leave snapshots ahead of a snapshot at 0, so that ``steps`` steps are reversed most cheaply.

    Args:
        steps: how many steps are to be reversed from here.
        free: how many more snapshots may be kept.
    """
    at = 0
    while free > 0 and steps - at > 1:
        at += _split(steps - at, free + 1)
        free -= 1
        yield at


def _split(steps: int, snapshots: int) -> int:
    """Return how far the next snapshot lies ahead when ``snapshots`` may be kept, the one at 0 included.

    With β(s, r) = C(s+r, s) the longest chain that s snapshots reverse in r repetitions, and r the least with
    β(s, r) ≥ n, the next snapshot at m is optimal when the m steps before it, reversed with s snapshots, need at
    most r−1 repetitions and the n−m steps after it, with s−1 snapshots, at most r, neither chain being so short that
    it wastes repetitions: β(s, r−2) ≤ m ≤ β(s, r−1) and β(s−1, r−1) ≤ n−m ≤ β(s−1, r). The largest such m is taken.
    """

    def longest(s: int, r: int) -> int:
        return comb(s + r, s)

    repetitions = 1
    while longest(snapshots, repetitions) < steps:
        repetitions += 1
    return min(longest(snapshots, repetitions - 1), steps - longest(snapshots - 1, repetitions - 1))
