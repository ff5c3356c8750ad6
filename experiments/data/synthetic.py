"""Ratings drawn from a model of known structure, for trials and tests without any download."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from adjoint_meta.tasks import generator

from .ratings import Ratings

USERS, ITEMS, RANK = 200, 100, 2
# A user rates 25 to 55 items, 40 on average: 40 % of the matrix is filled, and 10 shots leave 15 queries.
FEWEST, MOST = 25, 55
MEAN = 3.5
# Standard deviations in stars. A user's other ratings vary about three times as much as users' biases do, as in
# Jester; most of that is the taste (user × item), so that there is more to learn than a bias.
ITEM_SD, USER_SD, TASTE_SD, NOISE_SD = 0.5, 0.5, 0.6, 0.5


def synthetic_ratings(seed: int = 0) -> Ratings:
    """Return stars (1 to 5) of 200 users for 100 items, about 40 % filled, at least 25 a user.

    rating = round(3.5 + item + user + ⟨taste of the user, kind of the item⟩ + noise), clipped to 1..5.
    """
    draw = generator(seed)
    item = ITEM_SD * _normal(draw, 1, ITEMS)
    user = USER_SD * _normal(draw, USERS, 1)
    taste = TASTE_SD / RANK**0.5 * _normal(draw, USERS, RANK) @ _normal(draw, RANK, ITEMS)
    noise = NOISE_SD * _normal(draw, USERS, ITEMS)
    stars = np.clip(np.rint(MEAN + item + user + taste + noise), 1, 5)
    how_many = FEWEST + np.floor(_uniform(draw, USERS, 1) * (MOST - FEWEST + 1))
    # Some items are rated more than others, as films are: the priority of an item is its popularity plus chance.
    priority = _uniform(draw, 1, ITEMS) + 2 * _uniform(draw, USERS, ITEMS)
    rank = np.argsort(np.argsort(-priority, axis=1, kind="stable"), axis=1, kind="stable")
    users, items = np.nonzero(rank < how_many)
    return Ratings("ratings-toy", users, items, stars[users, items], 1, 5, USERS, ITEMS)


def _uniform(draw: torch.Generator, *shape: int) -> NDArray[np.float64]:
    return torch.rand(shape, generator=draw, dtype=torch.float64).numpy()


def _normal(draw: torch.Generator, *shape: int) -> NDArray[np.float64]:
    """Return nearly normal numbers: sums of twelve uniform ones, since those are the same on every machine."""
    return np.asarray(_uniform(draw, 12, *shape).sum(axis=0) - 6)
