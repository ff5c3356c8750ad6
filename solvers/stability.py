"""Where an explicit method is stable: the real stability interval of its stability polynomial."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np


def real_stability_limit(coefficients: Sequence[Fraction]) -> float:
    """Return the largest β such that |R(−x)| ≤ 1 for all x in [0, β].

    |R(−x)| can pass 1 only where R(−x) = ±1; β is the first such point behind which it has
    (Hairer and Wanner, Solving ODEs II, IV.2).

    Args:
        coefficients: exact, of R(z) = 1 + z + r_2 z² + …
    """
    mirrored = [r * (-1) ** power for power, r in enumerate(coefficients)]
    # The root 0 of R(−x) = 1, at which the interval starts, is divided out.
    points = sorted(_positive_roots(mirrored[1:]) + _positive_roots([mirrored[0] + 1, *mirrored[1:]]))
    for point, following in pairwise([*points, max(points, default=0.0) + 1]):
        between = (Fraction(point) + Fraction(following)) / 2
        if abs(sum(r * between**power for power, r in enumerate(mirrored))) > 1:
            return point
    # A polynomial that is not constant leaves [−1, 1].
    raise ValueError(f"no end of the stability interval of {' '.join(map(str, coefficients))} was found")


def _positive_roots(coefficients: Sequence[Fraction]) -> list[float]:
    """Return the positive roots of Σ_k p_k x^k; a double one, where the sign stays, may be missing."""
    roots = np.roots([float(p) for p in reversed(coefficients)])
    return [float(root.real) for root in roots if root.imag == 0 and root.real > 0]
