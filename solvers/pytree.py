"""States of any form as rows of real numbers: tensors, tuples and dicts of them, real or complex."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from . import checks


class Layout:
    """How a state lies in rows ``[rows, P]``: its leaves one after the other, complex numbers as pairs.

    A state is a tensor, or a tuple, list or dict of states. Without ``batched`` all of it is one row; with it, the
    first axis of every leaf counts rows. Leaves of different precision are raised to the highest, as torchdiffeq does;
    `flatten` takes each in its own precision as well.

    Args:
        y0: the state to take as the model.
        batched: whether the first axis counts rows.

    Raises:
        TypeError: if a leaf is not a floating-point or complex tensor.
        ValueError: if there is no leaf, or leaves disagree in device or in their number of rows.
    """

    def __init__(self, y0: Any, batched: bool = False) -> None:
        self.batched = batched
        named = list(_named_leaves(y0))
        if not named:
            raise ValueError(f"y0 must hold at least one tensor, got {y0!r}")
        for name, leaf in named:
            _check_leaf(f"y0{name}", leaf)
        leaves = [leaf.detach() for _, leaf in named]
        self._names = [name for name, _ in named]
        self.dtype = _common(leaves)
        self.device = leaves[0].device
        self._given = [leaf.dtype for leaf in leaves]
        self._models = [leaf.to(_like_precision(leaf, self.dtype)) for leaf in leaves]
        for name, leaf in named:
            if leaf.device != self.device:
                raise ValueError(f"all of y0 must be on one device, got {self.device} and y0{name} on {leaf.device}")
            if batched and (leaf.ndim == 0 or leaf.shape[0] != leaves[0].shape[0] or leaf.shape[0] == 0):
                raise ValueError(
                    "with batched=True the first axis of every tensor in y0 counts rows, at least one and as many in "
                    f"each; got shape {list(leaf.shape)} for y0{name}"
                )
        self.rows = leaves[0].shape[0] if batched else 1
        self._shapes = [leaf.shape[1:] if batched else leaf.shape for leaf in leaves]
        self._widths = [
            shape.numel() * (1 + leaf.is_complex()) for shape, leaf in zip(self._shapes, leaves, strict=True)
        ]
        self.size = sum(self._widths)
        self.axes = max(map(len, self._shapes))
        self.is_tensor = isinstance(y0, Tensor)
        self._tree = _map(Tensor.detach, y0)

    def start(self, y0: Any) -> Tensor:
        """Return a copy of y0 as rows ``[rows, P]``, differentiably, its leaves raised to the common precision."""
        leaves = [leaf for _, leaf in _named_leaves(y0)]
        return self._join([leaf.to(model.dtype) for leaf, model in zip(leaves, self._models, strict=True)])

    def flatten(self, state: Any, what: str, cast: bool = False) -> Tensor:
        """Return a copy of a state of this form as rows ``[rows, P]``, differentiably.

        Args:
            what: its name in messages.
            cast: whether to convert another precision instead of refusing it.

        Raises:
            TypeError, ValueError: if it has another structure, shape, dtype or device.
        """
        leaves = [state] if self.is_tensor and isinstance(state, Tensor) else _matching(what, state, self._tree)
        for name, leaf, model in zip(self._names, leaves, self._models, strict=True):
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"{what}{name} must be a tensor of shape {list(model.shape)}, got {type(leaf).__name__}"
                )
        leaves = [
            leaf.to(model.dtype) if cast or leaf.dtype == given else leaf
            for leaf, given, model in zip(leaves, self._given, self._models, strict=True)
        ]
        for name, leaf, model in zip(self._names, leaves, self._models, strict=True):
            checks.like(what + name, leaf, model)
        return self._join(leaves)

    def unflatten(self, rows: Tensor) -> Any:
        """Return rows ``[…, rows, P]`` as a state whose leaves are ``[…, *shape]``, differentiably.

        With ``batched`` the number of rows may differ from y0's.
        """
        parts = iter(rows.split(self._widths, dim=-1) if len(self._widths) > 1 else (rows,))
        shapes, models = iter(self._shapes), iter(self._models)

        def leaf(_: Tensor) -> Tensor:
            part, shape, model = next(parts), next(shapes), next(models)
            front = part.shape[:-1] if self.batched else part.shape[:-2]
            if not model.is_complex():
                return part.reshape((*front, *shape))
            pairs = part.reshape((*front, *shape, 2))
            return torch.complex(pairs[..., 0], pairs[..., 1])

        return _map(leaf, self._tree)

    def columns(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the part ``[rows, n]`` of each leaf."""
        parts: tuple[Tensor, ...] = rows.split(self._widths, dim=-1)
        return parts

    def modulus(self, rows: Tensor) -> Tensor:
        """Return the absolute values ``[rows, P]``, for both parts of a complex number its modulus."""
        if not any(model.is_complex() for model in self._models):
            return rows.abs()
        parts = []
        for part, model in zip(self.columns(rows), self._models, strict=True):
            if model.is_complex():
                pairs = part.reshape(len(part), -1, 2)
                parts.append(torch.linalg.vector_norm(pairs, dim=2, keepdim=True).expand_as(pairs).reshape(part.shape))
            else:
                parts.append(part.abs())
        return torch.cat(parts, dim=1)

    def root_mean_square(self, rows: Tensor) -> Tensor:
        """Return the root mean square modulus of each row, ``[rows]``; of several leaves the largest one."""
        found = [
            torch.linalg.vector_norm(part, dim=1) / max(shape.numel(), 1) ** 0.5
            for part, shape in zip(self.columns(rows), self._shapes, strict=True)
        ]
        return found[0] if len(found) == 1 else torch.stack(found).amax(dim=0)

    def elements(self, what: str, values: Any) -> Tensor:
        """Return numbers given for each element of a state, or for each of its leaves, as one row ``[P]``.

        Args:
            values: a tensor that broadcasts to the state, or one or a number for each leaf of it.

        Raises:
            TypeError, ValueError: if they do not fit.
        """
        if isinstance(values, Tensor) and not self.is_tensor:
            values = values.unbind()
        parts = [values] if self.is_tensor else _matching(what, values, self._tree)
        row = []
        for name, part, shape, model in zip(self._names, parts, self._shapes, self._models, strict=True):
            value = torch.as_tensor(part, dtype=self.dtype, device=self.device).detach()
            try:
                value = value.expand(shape).reshape(-1)
            except RuntimeError:
                raise ValueError(
                    f"{what}{name} must broadcast to shape {list(shape)}, got {list(value.shape)}"
                ) from None
            row.append(value.repeat_interleave(2) if model.is_complex() else value)
        return torch.cat(row)

    def _join(self, leaves: list[Tensor]) -> Tensor:
        rows = [
            (torch.stack([leaf.real, leaf.imag], dim=-1) if leaf.is_complex() else leaf).reshape(self.rows, width)
            for leaf, width in zip(leaves, self._widths, strict=True)
        ]
        # One real leaf would still be the memory of whoever gave it, which a func may use again for its next result.
        return rows[0].clone() if len(rows) == 1 else torch.cat(rows, dim=1)


def _named_leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a state and how to reach them, as in ``"[0]['x']"``."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _named_leaves(value, f"{name}[{key!r}]")
    elif isinstance(tree, (tuple, list)):
        for index, value in enumerate(tree):
            yield from _named_leaves(value, f"{name}[{index}]")
    else:
        yield name, tree


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return the state with a function applied to each leaf; a named tuple stays one."""
    if isinstance(tree, Mapping):
        return {key: _map(function, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        values = [_map(function, value) for value in tree]
        if hasattr(tree, "_fields"):
            return type(tree)(*values)
        return values if isinstance(tree, list) else tuple(values)
    return function(tree)


def _matching(what: str, state: Any, model: Any) -> list[Any]:
    """Return the leaves of a state that has the model's structure; tuples and lists stand for each other."""
    if isinstance(model, Mapping):
        if not isinstance(state, Mapping):
            raise TypeError(f"{what} must be a dict with the keys {list(model)}, as y0 is, got {type(state).__name__}")
        if set(state) != set(model):
            raise ValueError(f"{what} must have the keys {list(model)}, as y0 has, got {list(state)}")
        return [leaf for key in model for leaf in _matching(f"{what}[{key!r}]", state[key], model[key])]
    if isinstance(model, (tuple, list)):
        if not isinstance(state, (tuple, list)):
            raise TypeError(f"{what} must be a tuple of {len(model)}, as y0 is, got {type(state).__name__}")
        if len(state) != len(model):
            raise ValueError(f"{what} must be a tuple of {len(model)}, as y0 is, got one of {len(state)}")
        pairs = enumerate(zip(state, model, strict=True))
        return [leaf for index, (value, part) in pairs for leaf in _matching(f"{what}[{index}]", value, part)]
    return [state]


def _check_leaf(what: str, leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        raise TypeError(f"{what} must be a tensor, or a tuple or dict of tensors, got {type(leaf).__name__}")
    if not (leaf.is_floating_point() or leaf.is_complex()):
        raise TypeError(
            f"{what} must be floating point or complex, got {leaf.dtype}; convert it with .to(torch.float32)"
        )
    if leaf.layout != torch.strided:
        raise TypeError(f"{what} must be dense, got {leaf.layout}; convert it with .to_dense()")
    if not bool(torch.isfinite(leaf.detach()).all()):
        raise ValueError(f"{what} must be finite, got NaN or infinite entries")


def _common(leaves: list[Tensor]) -> torch.dtype:
    """Return the real dtype that holds all leaves."""
    dtype = leaves[0].dtype
    for leaf in leaves[1:]:
        dtype = torch.promote_types(dtype, leaf.dtype)
    return dtype.to_real()


def _like_precision(leaf: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of this precision that is complex if the leaf is."""
    return dtype.to_complex() if leaf.is_complex() else dtype
