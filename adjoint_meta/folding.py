"""Tasks as channels: a function of channels serves all tasks in one call."""

from __future__ import annotations

from torch import Tensor


def fold(tensor: Tensor, dim: int | None, tasks: int, axis: int) -> Tensor:
    """Return a tensor whose channels, at ``axis``, are those of all tasks: task after task.

    Args:
        tensor: one a task.
        dim: where its tasks lie, as `torch.vmap` says; ``None`` gives every task the same.
        tasks: how many there are.
        axis: of the channels, without the tasks.
    """
    if dim is None:
        shape = tensor.shape
        return tensor.unsqueeze(axis).expand(*shape[:axis], tasks, *shape[axis:]).flatten(axis, axis + 1)
    return tensor.movedim(dim, axis).flatten(axis, axis + 1)


def unfold(tensor: Tensor, tasks: int, axis: int) -> Tensor:
    """Return a folded tensor with its tasks at ``axis``, before the channels."""
    found: Tensor = tensor.unflatten(axis, (tasks, -1))
    return found
