"""Every tableau in floating point, and its step stage by stage."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from problems import TanhField
from torch import Tensor

from adjoint_meta.solvers import TABLEAUS, ButcherTableau
from adjoint_meta.solvers.tableaus import MORE_TABLEAUS

ALL = {**TABLEAUS, **MORE_TABLEAUS}
# Those with f at the end of the step as their last stage, and with it dense output.
DENSE = {name: tableau.with_last_slope() for name, tableau in ALL.items()}
every_tableau = pytest.mark.parametrize("tableau", ALL.values(), ids=ALL)
every_dense = pytest.mark.parametrize("tableau", DENSE.values(), ids=DENSE)

FIRST_SAME_AS_LAST = ["bosh3", "dopri5", "tsit5"]
NUDGE = Fraction(1, 1000)

T, H = 0.3, 0.25
# A few dozen operations on either side, some of which cancel.
ROUNDING = 1e-13


def dense(tableau: ButcherTableau) -> np.ndarray:
    """The square matrix A."""
    return np.array([[float(x) for x in row] + [0.0] * (tableau.stages - len(row)) for row in tableau.a])


def floats(weights: tuple[Fraction, ...]) -> np.ndarray:
    return np.array([float(weight) for weight in weights])


def two_rows(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A state and a cotangent, ``[2, 3]``."""
    return torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)


def on_paper(
    tableau: ButcherTableau, f: TanhField, t: Tensor | float, h: Tensor | float, y: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The end of a step and all its slopes, stage by stage; differentiable in everything."""
    slopes: list[Tensor] = []
    for row, node in zip(tableau.a, tableau.c, strict=True):
        stage = y + sum((h * float(weight) * slope for weight, slope in zip(row, slopes, strict=True)), 0 * y)
        slopes.append(f(t + float(node) * h, stage))
    return y + sum((h * float(weight) * slope for weight, slope in zip(tableau.b, slopes, strict=True)), 0 * y), slopes
