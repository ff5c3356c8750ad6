"""Which calls of a model's modules do not depend on the adapted parameters: found by running one task, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

# The n-th call of a module, by the module's name; calls within calls that are replaced do not count.
Call = tuple[str, int]

_ADAPTED, _WITHIN = object(), object()


@dataclass(frozen=True)
class Result:
    """What a call returned: a pytree whose leaves are tensors of these shapes and dtypes, or plain values."""

    spec: TreeSpec
    leaves: tuple[Any, ...]

    @property
    def tensors(self) -> list[tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of each tensor."""
        return [leaf for leaf in self.leaves if isinstance(leaf, tuple)]


@dataclass(frozen=True)
class Independent:
    """The outermost calls that do not depend on the adapted parameters.

    Args:
        kept: those whose results the rest of the model reads.
        skipped: those whose results only other such calls read.
        names: the parameters that the rest of the model reads, of those that do not adapt.
    """

    kept: Mapping[Call, Result]
    skipped: Mapping[Call, Result]
    names: frozenset[str]


def independent_calls(model: nn.Module, adapted: Mapping[str, Tensor], x: Tensor) -> Independent | None:
    """Run the model on one task, and return what it need not run again for other adapted parameters.

    Every operation is watched: what it returns depends on whatever its operands depend on, also where no gradient
    would tell, as in indices and detached values.

    Args:
        adapted: the parameters that adapt, by name.
        x: inputs of one task, ``[points, ...]``.
    """
    watch = _Watch(next(iter(adapted.values())).dtype)
    watch.label(x, ())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        watch.label(tensor, () if name in adapted else (name,))
    for tensor in adapted.values():
        watch.label(tensor, (_ADAPTED,))
    watched = {name: module for name, module in model.named_modules() if name and plain(module)}
    with torch.no_grad(), swapped(model, {name: watch.forward(name, m.forward) for name, m in watched.items()}), watch:
        prediction = functional_call(model, dict(adapted), (x,))
    return watch.found(prediction)


def plain(module: nn.Module) -> bool:
    """Return whether another forward method can stand in for a module's own."""
    hooks = module._forward_hooks or module._forward_pre_hooks  # which expect to see what the module does
    return not hooks and not isinstance(module, torch.jit.ScriptModule)


@contextmanager
def swapped(model: nn.Module, forwards: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, these functions are the forward methods of the modules with these names.

    The fused kernel of transformer layers is off, since it reads the weights of modules that it does not call.
    """
    modules = {name: model.get_submodule(name) for name in forwards}
    before = {name: module.__dict__.get("forward") for name, module in modules.items()}
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for name, module in modules.items():
            module.__dict__["forward"] = forwards[name]
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for name, module in modules.items():
            module.__dict__.pop("forward", None)
            if before[name] is not None:
                module.__dict__["forward"] = before[name]


@dataclass(eq=False)
class _Frame:
    """A call under way or over."""

    name: str
    outer: _Frame | None
    born: set[int] = field(default_factory=set)  # storages made within it
    movable: bool = True  # nothing adapted within it, and nothing outside changed by it
    result: Result | None = None  # of a call that can be replaced

    @property
    def replaced(self) -> bool:
        return self.result is not None or (self.outer is not None and self.outer.replaced)


class _Watch(TorchDispatchMode):
    """Labels storages with what their values depend on."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._labels: dict[int, frozenset[object]] = {}
        self._alive: list[Any] = []  # an address must not be given to another storage
        self._needed: set[object] = set()
        self._calls: list[_Frame] = []
        self._frame: _Frame | None = None
        self._spoiling: list[_Frame | None] = []  # within which calls the result of another one was changed in place

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        operands = _tensors((args, kwargs))
        labels = self._of(operands)
        if _ADAPTED in labels:
            self._needed |= labels
        changed = _tensors(list(_written(function, args, kwargs or {})))
        if any(isinstance(label, _Frame) for label in self._of(changed)):
            self._spoiling.append(self._frame)
        for tensor in (*_tensors(result), *changed):
            self.label(tensor, labels)
        for frame in self._frames():
            if _ADAPTED in labels or any(_storage(tensor) not in frame.born for tensor in changed):
                frame.movable = False
        return result

    def label(self, tensor: Tensor, labels: Iterable[object]) -> None:
        """Note that a tensor depends on these, too."""
        storage = _storage(tensor)
        if storage not in self._labels:
            self._alive.append(tensor.untyped_storage())
            for frame in self._frames():
                frame.born.add(storage)
        self._labels[storage] = self._labels.get(storage, frozenset()).union(labels)

    def forward(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a forward method that is watched."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            frame = self._frame = _Frame(name, self._frame)
            self._calls.append(frame)
            try:
                result = original(*args, **kwargs)
            finally:
                self._frame = frame.outer
            self._leave(frame, result)
            return result

        return forward

    def _leave(self, frame: _Frame, result: Any) -> None:
        """Decide whether the call can be replaced by its result; then only that may be read of what it made."""
        leaves, spec = tree_flatten(result)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        labels = self._of(tensors)
        plain = all(leaf is None or isinstance(leaf, Tensor | bool | int | float | str) for leaf in leaves)
        own = all(t.dtype == self._dtype and _storage(t) in frame.born for t in tensors)
        if not (frame.movable and labels and plain and own) or _WITHIN in labels:
            return
        for storage in frame.born:
            self._labels[storage] = frozenset((_WITHIN,))
        for tensor in tensors:
            self._labels[_storage(tensor)] = frozenset((frame,))
        shapes = (leaf if not isinstance(leaf, Tensor) else (leaf.shape, leaf.dtype) for leaf in leaves)
        frame.result = Result(spec, tuple(shapes))

    def found(self, prediction: Any) -> Independent | None:
        """Return what was found, once the model has returned its prediction."""
        needed = self._needed | self._of(_tensors(prediction))
        # A result that is kept must not change between evaluations.
        if not all(frame is not None and frame.replaced for frame in self._spoiling):
            return None
        # What a replaced call leaves behind in other ways than by returning it would not be there.
        if _WITHIN in needed or not any(isinstance(label, _Frame) for label in needed):
            return None
        kept: dict[Call, Result] = {}
        skipped: dict[Call, Result] = {}
        count = Counter[str]()
        for frame in self._calls:
            if frame.outer is not None and frame.outer.replaced:
                continue
            if frame.result is not None:
                (kept if frame in needed else skipped)[frame.name, count[frame.name]] = frame.result
            count[frame.name] += 1
        return Independent(kept, skipped, frozenset(label for label in needed if isinstance(label, str)))

    def _of(self, tensors: Iterable[Tensor]) -> frozenset[object]:
        return frozenset().union(*(self._labels.get(_storage(tensor), ()) for tensor in tensors))

    def _frames(self) -> Iterator[_Frame]:
        frame = self._frame
        while frame is not None:
            yield frame
            frame = frame.outer


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _written(function: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    """Yield the arguments that an operation changes in place."""
    for place, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[place] if place < len(args) else kwargs.get(argument.name)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
