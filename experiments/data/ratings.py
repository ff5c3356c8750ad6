"""Ratings of items by users: the triples, and the dense part of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import DataError


@dataclass(frozen=True, eq=False)
class Ratings:
    """Who rated what, and how.

    Args:
        name: of the data set.
        user: user of each rating, 0 ≤ user < users, int ``[ratings]``.
        item: item of each rating, 0 ≤ item < items, int ``[ratings]``.
        value: the rating, on the scale's own unit (stars), float ``[ratings]``.
        low, high: ends of the scale.
        users, items: how many there are.

    Raises:
        DataError: if the arrays differ in length or are empty, an index or a value is out of range or NaN, or a user
            rates an item twice.
    """

    name: str
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    value: NDArray[np.float64]
    low: float
    high: float
    users: int
    items: int

    def __post_init__(self) -> None:
        if not self.user.shape == self.item.shape == self.value.shape or self.value.ndim != 1 or not len(self):
            raise DataError(
                f"{self.name}: user, item and value must be arrays of one length, at least 1, "
                f"got {self.user.shape}, {self.item.shape} and {self.value.shape}"
            )
        for what, index, end in (("user", self.user, self.users), ("item", self.item, self.items)):
            if index.min() < 0 or index.max() >= end:
                raise DataError(f"{self.name}: {what} must lie in 0..{end - 1}, got {index.min()}..{index.max()}")
        inside = (self.value >= self.low) & (self.value <= self.high)  # false for NaN too
        if not inside.all():
            raise DataError(
                f"{self.name}: ratings must lie in {self.low:g}..{self.high:g}, got {self.value[~inside][0]}"
            )
        twice = first_repeat(self.user, self.item)
        if twice is not None:
            place = twice[1]
            raise DataError(f"{self.name}: user {self.user[place]} rates item {self.item[place]} twice, expected once")

    def __len__(self) -> int:
        return len(self.value)

    def matrix(self, top_items: int, min_ratings: int) -> NDArray[np.float64]:
        """Return the ``top_items`` most rated items for the users with ``min_ratings`` ratings among them.

        Of items rated equally often the one of lower index comes first. Users and items keep their order.

        Returns:
            ``[users kept, items kept]``, NaN where there is no rating.

        Raises:
            ValueError: if no user has so many ratings.
        """
        counts = np.bincount(self.item, minlength=self.items)
        kept = np.sort(np.argsort(-counts, kind="stable")[:top_items])
        column = np.full(self.items, -1)
        column[kept] = np.arange(len(kept))
        among = column[self.item] >= 0
        dense: NDArray[np.float64] = np.full((self.users, len(kept)), np.nan)
        dense[self.user[among], column[self.item[among]]] = self.value[among]
        enough = (~np.isnan(dense)).sum(axis=1) >= min_ratings
        if not enough.any():
            raise ValueError(
                f"no user of {self.name} has rated {min_ratings} of its {len(kept)} most rated items; "
                "ask for fewer ratings or more items"
            )
        return np.asarray(dense[enough])


def first_repeat(user: NDArray[np.int64], item: NDArray[np.int64]) -> tuple[int, int] | None:
    """Return the places of the first (user, item) pair that comes a second time, or ``None``: (earlier, later)."""
    key = user * (item.max() + 1) + item
    order = np.argsort(key, kind="stable")  # stable: equal pairs stay in the order of the file
    repeats = np.flatnonzero(key[order][1:] == key[order][:-1])
    if not len(repeats):
        return None
    where = repeats[np.argmin(order[repeats + 1])]
    return int(order[where]), int(order[where + 1])
