"""Batched products with dense, diagonal and positive definite matrices."""

from __future__ import annotations

import torch
from problems import symmetric


def product(a: torch.Tensor):
    """The batched product with matrices ``[rows, P, P]``."""
    return lambda v: torch.einsum("rij,rj->ri", a, v)


def diagonal(*rows: list[float]):
    """The batched product with diagonal matrices."""
    entries = torch.tensor(rows)
    return lambda v: entries.to(v.dtype) * v


def definite(generator: torch.Generator, rows: int = 4, size: int = 6, condition: float = 50.0) -> torch.Tensor:
    return symmetric(generator, condition ** torch.rand(rows, size, generator=generator))
