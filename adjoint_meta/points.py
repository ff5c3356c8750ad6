"""Points taken a part at a time, where not even one task fits: right for a mean over points that do not meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .batched_model import BatchedModel
from .linearisation import Linear, Products
from .tasks import Batch

# So few that the statistics of a part of them are visibly not those of the whole.
_FEW = 16


def parts(points: int, size: int | None) -> Iterator[tuple[slice, float]]:
    """Yield slices of at most ``size`` points, equal to one point, each with its share of all points."""
    count = 1 if size is None else -(-points // size)
    ends = [points * k // count for k in range(count + 1)]
    return ((slice(first, last), (last - first) / points) for first, last in pairwise(ends))


def mean_over_points(
    evaluate: Callable[[Batch], tuple[Tensor, ...]], batch: Batch, size: int | None
) -> tuple[Tensor, ...]:
    """Return what ``evaluate`` finds on parts of the points, weighted by their shares."""
    total: list[Tensor] = []
    for points, share in parts(batch.x.shape[1], size):
        if share == 1:
            return evaluate(batch)
        found = [share * part for part in evaluate(batch.points(points))]
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return tuple(total)


class MeanLinearisation:
    """The mean of the linearisations on parts of the points; nothing is kept between products."""

    def __init__(
        self,
        on: Callable[[Batch], Linear],
        mean: Callable[[Callable[[Batch], tuple[Tensor, ...]]], tuple[Tensor, ...]],
    ) -> None:
        self._on, self._mean = on, mean
        self._gradient: Tensor | None = None

    @property
    def gradient(self) -> Tensor:
        """∇_φ L, shape ``[tasks, P]``."""
        if self._gradient is None:
            (self._gradient,) = self._mean(lambda part: (self._on(part).gradient,))
        return self._gradient

    def product(self, v: Tensor, keep: bool = False) -> Products:
        """Return the curvature products with v ``[tasks, P]``, and find the gradient along with them."""

        def both(part: Batch) -> tuple[Tensor, ...]:
            linear = self._on(part)
            products = linear.product(v)
            return linear.gradient, *products

        self._gradient, phi, psi = self._mean(both)
        return Products(phi, psi)


def check_parts(model: BatchedModel, phi: Tensor, psi: Tensor, x: Tensor, y: Tensor | None = None) -> None:
    """Refuse a model that does not treat points one by one, and a loss that is not their mean, by trying one task.

    Args:
        model: tried without autocast, in the dtype of its parameters.
        phi, psi: near where, shapes ``[tasks, P]`` and ``[Q]``.
        x: inputs ``[tasks, points, ...]``; the first task is tried, on as many of its points as fit, 16 at most.
        y: targets; without them only predictions are tried.

    Raises:
        ValueError: saying which of the two it is, and what to do.
        torch.OutOfMemoryError: if not even two points fit.
    """
    exact = BatchedModel(model.model, model.loss, model.rows)
    phi, psi = (moved(value) for value in (phi[:1].detach(), psi.detach()))
    count = min(x.shape[1], _FEW)
    while count > 1:
        which = torch.arange(count, device=x.device) * x.shape[1] // count
        try:
            _check(exact, phi, psi, x[:1, which], None if y is None else y[:1, which])
            return
        except torch.OutOfMemoryError:
            if count == 2:
                raise
        count = max(2, count // 2)


def moved(value: Tensor) -> Tensor:
    """Return parameters nearby: a last layer that starts at zero would hide what the others do."""
    draw = torch.Generator().manual_seed(0)
    return value + 0.01 * torch.randn(value.shape, generator=draw, dtype=value.dtype).to(value.device)


@torch.no_grad()
def _check(model: BatchedModel, phi: Tensor, psi: Tensor, x: Tensor, y: Tensor | None) -> None:
    count = x.shape[1]
    sizes = [-(-count // 3), count - -(-count // 3)]  # unequal: the mean of two means is not to pass for the mean
    whole = model.predict(phi, psi, x)
    try:
        apart = torch.cat([model.predict(phi, psi, part) for part in x.split(sizes, dim=1)], dim=1)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError):  # batch norm refuses a single point
        apart = whole.new_empty(0)
    if not _equal(apart, whole):
        raise ValueError(
            "the model does not treat points one by one (batch norm in training mode mixes them, for one), so its "
            "points cannot be taken in parts; use GroupNorm or .eval(), or fewer points"
        )
    if y is not None:
        _check_loss(model, whole, y, sizes)


def _check_loss(model: BatchedModel, prediction: Tensor, y: Tensor, sizes: list[int]) -> None:
    losses = [
        len(part[0]) * model.prediction_losses(part, target)
        for part, target in zip(prediction.split(sizes, dim=1), y.split(sizes, dim=1), strict=True)
    ]
    if _equal(sum(losses, torch.zeros_like(losses[0])) / sum(sizes), model.prediction_losses(prediction, y)):
        return
    ignored = getattr(model.loss, "ignore_index", None)
    left_out = ignored is not None and not y.is_floating_point() and bool((y == ignored).any())
    why = f": some targets are {ignored}, which it ignores" if left_out else ""
    raise ValueError(
        f"the loss is not a mean over points{why}, so its points cannot be taken in parts; use reduction='mean', "
        "without weights of classes or points left out, or fewer points"
    )


@torch.no_grad()
def check_losses(model: BatchedModel, prediction: Tensor, y: Tensor, size: int) -> None:
    """Refuse losses that are not means over points, by taking those of all tasks in parts.

    Which points a loss leaves out or weights is a matter of the targets, so that every batch is looked at.

    Args:
        prediction: of all tasks, ``[tasks, points, ...]``, not all the same.
        y: their targets.
        size: at most so many points at a time.

    Raises:
        ValueError: saying why, and what to do.
    """
    _check_loss(model, prediction, y, [points.stop - points.start for points, _ in parts(y.shape[1], size)])


def _equal(found: Tensor, expected: Tensor) -> bool:
    """Return whether two results are equal to rounding; what is not finite is left to fail in the solve."""
    if found.shape != expected.shape:
        return False
    tolerance = 1e3 * torch.finfo(expected.dtype).eps
    scale = float(torch.nan_to_num(expected, posinf=0.0, neginf=0.0).abs().max())
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
