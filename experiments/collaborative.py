"""Collaborative filtering as meta-learning: one user is one task, from a one-hot item to that user's rating."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adjoint_meta.solvers import checks
from adjoint_meta.tasks import Batch, TaskBatch, TaskSource, generator

from .data.ratings import Ratings

# Streams of random numbers of one seed: who is held out, which ratings those users support with, and the episodes.
HOLD_OUT, SUPPORT, EPISODES = 0, 1, 2
# Of every tensor, whatever the default is: `TaskBatch.to` changes it for a model of another.
DTYPE = torch.float32


class UserTasks(TaskSource):
    """Episodes without end: a user, and a random support and query out of that user's ratings, without overlap.

    Users with fewer than ``shots + queries`` ratings are left out, which is what re-drawing them comes to.

    Args:
        ratings: ``[users, items]``, NaN where there is none.
        shots: ratings in the support.
        queries: ratings in the query.
        seed: episode i is a function of (seed, i) alone.

    Raises:
        ValueError: if no user has enough ratings.
    """

    def __init__(self, ratings: NDArray[np.float64], shots: int, queries: int, seed: int) -> None:
        checks.count("shots", shots)
        checks.count("queries", queries)
        checks.count("seed", seed, least=0)
        self.shots, self.queries, self.seed = shots, queries, seed
        rated = _rated(ratings)
        enough = [user for user, items in enumerate(rated) if len(items) >= shots + queries]
        if not enough:
            most = max((len(items) for items in rated), default=0)
            raise ValueError(
                f"no training user has the {shots} + {queries} ratings that an episode needs, "
                f"the most is {most}; ask for fewer shots or queries"
            )
        self.values = torch.from_numpy(ratings[enough]).to(DTYPE)
        self.rated = [rated[user] for user in enough]

    def batch(self, indices: Sequence[int]) -> TaskBatch:
        """Return the episodes with these indices; x is one-hot ``[tasks, points, items]``, y ``[tasks, points, 1]``."""
        users, items = [], []
        for index in indices:
            draw = generator(self.seed, EPISODES, index)
            user = int(torch.rand((), generator=draw, dtype=torch.float64) * len(self.rated))
            users.append(user)
            items.append(self.rated[user][_order(len(self.rated[user]), draw)[: self.shots + self.queries]])
        item = torch.stack(items)
        target = self.values[torch.tensor(users)[:, None], item]
        one_hot = torch.zeros(*item.shape, self.values.shape[1], dtype=DTYPE).scatter_(2, item[:, :, None], 1.0)
        points = Batch(one_hot, target[:, :, None])
        return TaskBatch(_points(points, slice(0, self.shots)), _points(points, slice(self.shots, None)))


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Users held out, each with the same number of support ratings and all the others as query.

    Args:
        ratings: ``[tasks, items]`` in the ratings' own unit, NaN where there is none.
        support: which of them may be seen, bool ``[tasks, items]``.
    """

    ratings: NDArray[np.float64]
    support: NDArray[np.bool_]

    @classmethod
    def split(cls, ratings: NDArray[np.float64], users: NDArray[np.int64], shots: int, seed: int) -> HeldOut:
        """Draw the support of each user; it is a function of (seed, user), whoever else is held out."""
        support = np.zeros((len(users), ratings.shape[1]), dtype=bool)
        for row, (user, items) in enumerate(zip(users.tolist(), _rated(ratings[users]), strict=True)):
            support[row, items[_order(len(items), generator(seed, SUPPORT, user))[:shots]].numpy()] = True
        return cls(ratings[users], support)

    @property
    def query(self) -> NDArray[np.bool_]:
        """Which ratings are to be predicted, bool ``[tasks, items]``."""
        return ~np.isnan(self.ratings) & ~self.support

    def tasks(self, shift: float, scale: float) -> TaskBatch:
        """Return the tasks with targets (rating − shift)/scale; the query is padded, its mask marks what is real."""
        targets = (self.ratings - shift) / scale
        return TaskBatch(_padded(targets, self.support), _padded(targets, self.query))

    def rmse(self, prediction: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the root mean square error over each task's query, ``[tasks]``, of a prediction ``[tasks, items]``."""
        square = np.where(self.query, prediction - self.ratings, 0.0) ** 2
        return np.asarray(np.sqrt(square.sum(axis=1) / self.query.sum(axis=1)))


class CollaborativeTasks:
    """The tasks of one data set of ratings: the most rated items, users with enough ratings, some of them held out.

    The users held out are the first in a random order of all kept users who have more than ``shots`` ratings, so
    that at least one is left to predict: first the test users, then those of the validation. All others train.
    Targets are standardised by the mean ``shift`` and the standard deviation ``scale`` of the training users'
    ratings: rating = shift + scale · target, and an RMSE of targets times ``scale`` is one in stars.

    Args:
        ratings: the data set.
        shots: ratings in a support.
        queries: ratings in the query of a training episode; a task held out is judged on all it has left.
        test_users: users held out for testing.
        validation_users: users held out for validation.
        min_ratings: a user is kept with at least so many ratings among the kept items.
        top_items: how many items are kept, the most rated.
        seed: of the split and of the episodes.

    Attributes:
        train: episodes without end, a `TaskSource`.
        validation, test: `TaskBatch`, the query masked; ``validation`` is ``None`` for no users.
        held_out: the test users' ratings, to score a prediction that is not a network's.
        training: ratings of the training users in stars, ``[users, items]``, NaN where there is none.
        scale, shift: of the standardisation, in stars.
        range: highest minus lowest rating, in stars: nRMSE = RMSE in stars / range.
        counts: users kept, trained on, eligible for episodes, validated and tested on, and items.

    Raises:
        ValueError: if there are too few users for this, or not one has ratings enough for an episode.
    """

    def __init__(
        self,
        ratings: Ratings,
        shots: int,
        queries: int,
        *,
        test_users: int = 100,
        validation_users: int = 0,
        min_ratings: int = 20,
        top_items: int = 100,
        seed: int = 0,
    ) -> None:
        checks.count("shots", shots)
        checks.count("queries", queries)
        checks.count("test_users", test_users)
        checks.count("validation_users", validation_users, least=0)
        checks.count("min_ratings", min_ratings)
        checks.count("top_items", top_items)
        checks.count("seed", seed, least=0)
        matrix = ratings.matrix(top_items, min_ratings)
        enough = np.flatnonzero((~np.isnan(matrix)).sum(axis=1) > shots)
        held_out = test_users + validation_users
        if len(enough) < held_out or len(matrix) == held_out:
            raise ValueError(
                f"{ratings.name} has {len(matrix)} users with {min_ratings} ratings, {len(enough)} of them with more "
                f"than {shots}; expected {held_out} to hold out and at least one to train on: hold out fewer"
            )
        order = enough[_order(len(enough), generator(seed, HOLD_OUT)).numpy()]
        test, validation = order[:test_users], order[test_users:held_out]
        training = matrix[np.setdiff1d(np.arange(len(matrix)), order[:held_out])]

        self.training = training
        self.shift = float(np.nanmean(training))
        self.scale = float(np.nanstd(training)) or 1.0  # all ratings equal: there is nothing to scale
        self.range = ratings.high - ratings.low
        self.train = UserTasks((training - self.shift) / self.scale, shots, queries, seed)
        self.held_out = HeldOut.split(matrix, test, shots, seed)
        self.test = self.held_out.tasks(self.shift, self.scale)
        self.validation: TaskBatch | None = None
        if validation_users:
            self.validation = HeldOut.split(matrix, validation, shots, seed).tasks(self.shift, self.scale)
        self.counts = {
            "users": len(matrix),
            "training_users": len(training),
            "episode_users": len(self.train.rated),
            "validation_users": validation_users,
            "test_users": test_users,
            "items": matrix.shape[1],
        }

    def baselines(self) -> dict[str, NDArray[np.float64]]:
        """Return the RMSE in stars of each test task, ``[tasks]``, for two predictors without a network.

        ``item_mean`` predicts the training users' mean for the item (the mean of all for an item they have not rated).
        ``user_item_bias`` adds the user's bias Σ(r − item mean)/(n + k) over the n support ratings. This is the best
        linear estimate when k is the variance of a rating around its user's bias over the variance of biases, and
        `bias_shrinkage` estimates that ratio from the training users.
        """
        items = item_means(self.training)
        residual = np.where(self.held_out.support, self.held_out.ratings - items, 0.0)
        shots = self.held_out.support.sum(axis=1)
        bias = residual.sum(axis=1) / (shots + bias_shrinkage(self.training - items))
        return {
            "item_mean": self.held_out.rmse(np.broadcast_to(items, residual.shape)),
            "user_item_bias": self.held_out.rmse(items + bias[:, None]),
        }


def item_means(ratings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each column ``[items]`` of ratings ``[users, items]``; of all ratings where it is empty."""
    counts = (~np.isnan(ratings)).sum(axis=0)
    sums = np.nansum(ratings, axis=0)
    return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), np.nanmean(ratings)))


def bias_shrinkage(residual: NDArray[np.float64]) -> float:
    """Return k = (variance within users) / (variance of the users' biases), from residuals ``[users, items]``.

    Moments of the one-way random-effects model for groups of unequal size (Searle, Casella and McCulloch 1992,
    Variance Components, chapter 3). Infinite if the users do not differ by more than chance.
    """
    counts = (~np.isnan(residual)).sum(axis=1)
    rated = residual[counts > 0]
    counts = counts[counts > 0].astype(float)
    means, total = np.nanmean(rated, axis=1), counts.sum()
    if total <= len(counts):  # one rating a user tells nothing of the variance within
        return float("inf")
    within = np.nansum((rated - means[:, None]) ** 2) / (total - len(counts))
    between = np.sum(counts * (means - np.nanmean(rated)) ** 2) - (len(counts) - 1) * within
    spread = total - np.sum(counts**2) / total
    return float(within * spread / between) if between > 0 else float("inf")


def _rated(ratings: NDArray[np.float64]) -> list[Tensor]:
    """Return the items that each user has rated, in order of index."""
    return [torch.from_numpy(np.flatnonzero(row)) for row in ~np.isnan(ratings)]


def _order(length: int, draw: torch.Generator) -> Tensor:
    return torch.randperm(length, generator=draw)


def _points(batch: Batch, which: slice) -> Batch:
    return Batch(batch.x[:, which], batch.y[:, which])


def _padded(targets: NDArray[np.float64], chosen: NDArray[np.bool_]) -> Batch:
    """Return the chosen entries of each row as points, in order of item; rows shorter than the longest are masked."""
    counts = chosen.sum(axis=1)
    task, item = (torch.from_numpy(index) for index in np.nonzero(chosen))
    point = torch.from_numpy(np.concatenate([np.arange(count) for count in counts]))
    tasks, points, items = len(targets), int(counts.max()), targets.shape[1]
    x, y = torch.zeros(tasks, points, items, dtype=DTYPE), torch.zeros(tasks, points, 1, dtype=DTYPE)
    mask = torch.zeros(tasks, points, dtype=torch.bool)
    x[task, point, item] = 1.0
    y[task, point, 0] = torch.from_numpy(targets[chosen]).to(DTYPE)
    mask[task, point] = True
    return Batch(x, y, None if bool(mask.all()) else mask)
