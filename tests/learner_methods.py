"""A method of every kind, learning what it can learn, and the loss that learners are tested with."""

from __future__ import annotations

import pytest
from torch import nn

from adjoint_meta import FOMAML, MAML, AdjointMAML, ImplicitMAML, Reptile

mse = nn.functional.mse_loss

METHODS = [
    MAML(steps=3, inner_lr=0.1, learn=("inner_lr", "rates")),
    FOMAML(steps=3, inner_lr=0.1),
    Reptile(steps=3, inner_lr=0.1),
    ImplicitMAML(proximal=5.0, steps=3, inner_lr=0.05, cg_steps=3, cg_tol=0.0, learn=("proximal",)),
    AdjointMAML(horizon=0.5, solver="heun", steps=3, learn=("horizon",)),
    AdjointMAML(horizon=0.5, solver="rk4", steps=3, adjoint="checkpointed", proximal=0.5, learn=("proximal",)),
]


def kind(method: object) -> str:
    """What a method is called in the name of a test."""
    return type(method).__name__


every_method = pytest.mark.parametrize("method", METHODS, ids=kind)
