"""Results of functions as flat lists of tensors, which is what traces and graphs deal in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor

# From the tensors of a result, in order, to the result.
Builder: TypeAlias = Callable[[Iterator[Tensor]], Any]


def flat(function: Callable[..., Any]) -> tuple[Callable[..., list[Tensor]], list[Builder]]:
    """Return the function with its result as a list of tensors, and a list that holds what makes the result of it."""
    shape: list[Builder] = []

    def run(*inputs: Tensor) -> list[Tensor]:
        leaves: list[Tensor] = []
        shape[:] = [flatten(function(*inputs), leaves)]
        return leaves

    return run, shape


def as_list(found: Any) -> list[Tensor]:
    """Return what a compiled function returns, a tensor or a sequence of tensors, as a list."""
    return list(found) if isinstance(found, list | tuple) else [found]


def flatten(result: Any, leaves: list[Tensor]) -> Builder:
    """Append the tensors of a result to the leaves, and return what makes such a result of their successors."""
    if isinstance(result, Tensor):
        leaves.append(result)
        return next
    if result is None or isinstance(result, int | float | str):
        return lambda rest: result
    # Not the result itself: the closures would keep its tensors.
    if isinstance(result, Mapping):
        named = {name: flatten(part, leaves) for name, part in result.items()}
        return lambda rest: {name: part(rest) for name, part in named.items()}
    kind, parts = type(result), [flatten(part, leaves) for part in result]
    if hasattr(kind, "_fields"):
        return lambda rest: kind(*[part(rest) for part in parts])
    return lambda rest: kind([part(rest) for part in parts])
