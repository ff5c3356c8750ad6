"""Random numbers of many episodes at once: each a hash of (seed, stream, episode, place), the same on any machine.

A `torch.Generator` an episode would take longer than the episode itself. The hash is SplitMix64 (Steele, Lea and Flood
2014, Fast Splittable Pseudorandom Number Generators), whose arithmetic is on whole numbers modulo 2⁶⁴.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
HALF = np.uint64(32)


def keys(seed: int, stream: int, numbers: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """Return ``count`` random 64-bit keys for each episode number, ``[episodes, count]``."""
    start = np.zeros(1, np.uint64)
    for word in (seed & 0xFFFFFFFFFFFFFFFF, seed >> 64, stream):
        start = _mix(start + GOLDEN ^ np.uint64(word))
    episode = _mix(start + GOLDEN ^ numbers)
    return _mix(episode[:, None] + GOLDEN * np.arange(1, count + 1, dtype=np.uint64))


def whole(draws: NDArray[np.uint64], below: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Return whole numbers in 0…below − 1 from keys, uniform to ``below`` · 2⁻³²; the shapes are broadcast."""
    return np.asarray(((draws >> HALF) * np.asarray(below, np.uint64) >> HALF).astype(np.int64))


def choose(draws: NDArray[np.uint64], among: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Return different numbers in 0…among − 1, in random order, as many of each row as it has keys.

    Of the numbers that a row has left, in order, each key takes one: the r-th that is missing from s₀ < s₁ < … is r
    plus the number of sᵢ with sᵢ − i ≤ r.

    Args:
        draws: keys ``[..., count]``.
        among: how many numbers there are, ``[...]`` or one for all rows; at least ``count``.
    """
    count = draws.shape[-1]
    rank = whole(draws, np.asarray(among)[..., None] - np.arange(count))
    chosen = rank[..., :1]
    for each in range(1, count):
        taken = np.sort(chosen, axis=-1) - np.arange(each)
        rank[..., each] += (taken <= rank[..., each, None]).sum(axis=-1)
        chosen = rank[..., : each + 1]
    return rank


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return np.asarray(word ^ word >> np.uint64(31))
