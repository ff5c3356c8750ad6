"""The fastest of several ways to compute the same, by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

# Measured so often, one way after the other; the least time of each counts, since other work only ever adds to it.
_ROUNDS = 5

# Another way than the first must take less than this share of its time: runs on the same machine should choose alike.
_SHARE = 0.8


def fastest(ways: Sequence[Callable[[], Tensor]]) -> int:
    """Return the index of the fastest way; of ways about as fast, the first."""
    least = [float("inf")] * len(ways)
    with _disable_current_modes(), torch.no_grad():  # unseen by a trace or a counter of operations
        for _ in range(1 + _ROUNDS):
            seconds = [_seconds(way) for way in ways]
            least = [min(pair) for pair in zip(least, seconds, strict=True)]
    best = min(range(len(ways)), key=least.__getitem__)
    return best if least[best] < _SHARE * least[0] else 0


def _seconds(way: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    try:
        found = way()
    except torch.OutOfMemoryError:
        return float("inf")
    if found.is_cuda:
        torch.cuda.synchronize(found.device)
    return time.perf_counter() - started
