"""Which tensors a function depends on besides its arguments: those it can reach, and those its graph shows."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

# A container longer than this holds data, not parameters, and is not looked through.
_LONGEST = 1000
# How many plain objects and global names deep the search goes: the object that a method is bound to and those that
# it holds, the function that is called by its global name and those that it calls.
_DEEPEST = 2


def reachable(function: Any) -> list[Tensor]:
    """Return the tensors that require a gradient and that a function can reach, leaves of a graph or not, each once.

    Looked through are modules (parameters, buffers and other attributes), closures, default arguments, global names
    that the code mentions, the object that a method is bound to, `functools.partial`, and containers in any of them.
    """
    found: dict[int, Tensor] = {}
    for tensor in _search(function, {}, 0):
        found.setdefault(id(tensor), tensor)
    return list(found.values())


def _search(value: Any, seen: dict[int, Any], depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value
        return
    if (
        value is None
        or isinstance(value, (str, bytes, int, float, complex, type, types.ModuleType))
        or id(value) in seen
    ):
        return
    seen[id(value)] = value  # kept alive, or another object might get its id
    inner, deeper = _parts(value)
    if depth + deeper <= _DEEPEST:
        for part in inner:
            yield from _search(part, seen, depth + deeper)


class _Global(NamedTuple):
    """What a global name stands for."""

    value: Any


def _parts(value: Any) -> tuple[Iterable[Any], bool]:
    """Return what a value holds, and whether that is a level deeper."""
    if isinstance(value, _Global):
        return value, True
    if isinstance(value, nn.Module):
        return _of_module(value), False
    if isinstance(value, types.FunctionType):
        return () if _foreign(value) else _of_function(value), False
    if isinstance(value, types.MethodType):
        return (value.__self__, value.__func__), False
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values()), False
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        if len(value) > _LONGEST:
            return (), False
        return value.values() if isinstance(value, Mapping) else value, False
    if _foreign(type(value)):
        return (), False
    call = type(value).__call__ if callable(value) else None
    return [call, *getattr(value, "__dict__", {}).values()], True


def _of_module(module: nn.Module) -> Iterator[Any]:
    for part in module.modules():
        # The replicas of `DataParallel` hold their parameters as plain attributes.
        yield from part.parameters(recurse=False)
        yield from part.buffers(recurse=False)
        yield from (value for name, value in vars(part).items() if name not in ("_parameters", "_buffers", "_modules"))
        if not _foreign(type(part)):
            yield type(part).forward


def _of_function(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that is bound later
            continue
    yield function.__defaults__
    yield function.__kwdefaults__
    yield vars(function)
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield _Global(function.__globals__[name])


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names that a code mentions, those of the functions in it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _foreign(value: Any) -> bool:
    """Whether something was defined where nobody keeps their parameters."""
    return str(getattr(value, "__module__", "")).split(".")[0] in (
        "torch",
        "numpy",
        "builtins",
        "collections",
        "functools",
    )


def shown(value: Tensor, known: Iterable[Tensor]) -> list[Tensor]:
    """Return the leaves that the graph of a value shows, besides the known tensors and what lies behind those."""
    known = list(known)
    if value.is_leaf:
        return [value] if value.requires_grad and all(value is not tensor for tensor in known) else []
    leaves = {id(tensor) for tensor in known if tensor.is_leaf}
    edges = {(tensor.grad_fn, tensor.output_nr) for tensor in known if not tensor.is_leaf}
    found = []
    for node, index in _edges_behind(value, edges):
        leaf = getattr(node, "variable", None)
        if leaf is not None and index == 0 and id(leaf) not in leaves:
            found.append(leaf)
    return found


def entangled(tensors: Iterable[Tensor]) -> bool:
    """Whether one of the tensors lies behind another in the graph, so that cotangents of both would count it twice."""
    tensors = list(tensors)
    inner = [tensor for tensor in tensors if not tensor.is_leaf]
    leaves = {id(tensor) for tensor in tensors if tensor.is_leaf}
    edges = {(tensor.grad_fn, tensor.output_nr) for tensor in inner}
    for tensor in inner:
        for node, index in _edges_behind(tensor, set()):
            if (node, index) in edges or id(getattr(node, "variable", None)) in leaves:
                return True
    return False


def leaves_behind(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the leaves that the tensors are made from, each once; a leaf is its own."""
    found: dict[int, Tensor] = {}
    for tensor in tensors:
        for leaf in [tensor] if tensor.is_leaf else shown(tensor, []):
            found[id(leaf)] = leaf
    return list(found.values())


def _edges_behind(value: Tensor, stops: set[tuple[Any, int]]) -> Iterator[tuple[Any, int]]:
    """Yield the edges of the graph behind a value, none beyond a stop."""
    if value.grad_fn is None or (value.grad_fn, value.output_nr) in stops:
        return
    seen = set()
    stack = [value.grad_fn]
    while stack:
        for edge in stack.pop().next_functions:
            if edge[0] is None or edge in seen or edge in stops:
                continue
            seen.add(edge)
            stack.append(edge[0])
            yield edge
