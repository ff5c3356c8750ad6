"""What a model computes before the first adapted parameter: evaluated once a task batch, its gradient taken once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_leaves, tree_unflatten

from .dependence import Call, Independent, Result, independent_calls, swapped
from .parameters import Layout, ParameterRows
from .rematerialisation import Rematerialisation
from .tasks import Batch

Weights: TypeAlias = dict[str, Tensor]
# From a call that was met and its own forward method, and what it was called with, to what it returns.
_Met: TypeAlias = Callable[[Call, Callable[..., Any], Any, Any], Any]


class Prefix:
    """The calls of a model's modules that come out the same whatever φ is, for inputs of one shape.

    Their results, the features, are one row a task ``[tasks, F]``. The rest of the model reads ψ extended by them:
    first the shared parameters that it still reads itself, then all features. So a gradient in the extended ψ holds
    the cotangent of the features, and `pull` takes that back to ψ by one vector-Jacobian product.

    Args:
        model: the module.
        rows: how its parameters divide.
        calls: as `independent_calls` finds them.
        remat: the modules whose activations are not kept.
    """

    def __init__(
        self, model: nn.Module, rows: ParameterRows, calls: Independent, remat: Rematerialisation | None = None
    ) -> None:
        self.model, self.rows, self.calls = model, rows, calls
        self.remat = remat or Rematerialisation(model)
        self.names = [name for name, _ in (*calls.kept, *calls.skipped)]
        parameters = dict(model.named_parameters())
        self.layout = Layout({name: parameters[name] for name in rows.psi.names if name in calls.names})
        shapes = [shape for result in calls.kept.values() for shape, _ in result.tensors]
        self.sizes = [shape.numel() for shape in shapes]

    def features(self, x: Tensor, parameters: Weights | None = None) -> Tensor:
        """Return the features ``[tasks, F]`` of inputs ``[tasks, points, ...]``, by the model's own parameters.

        Args:
            parameters: what takes the place of some of these.
        """

        def one(x: Tensor) -> tuple[Tensor, ...]:
            found: dict[Call, list[Tensor]] = {}

            def met(call: Call, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
                result = original(*args, **kwargs)
                if call in self.calls.kept:
                    found[call] = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
                if len(found) == len(self.calls.kept):
                    raise _Complete
                return result

            try:
                with self.remat.within(x), self._meeting(met):
                    functional_call(self.model, parameters or {}, (x,))
            except _Complete:
                pass
            return tuple(tensor for call in self.calls.kept for tensor in found[call])

        with self.remat.during(x, self.names):
            parts = vmap(one)(x)
        return torch.cat([part.reshape(len(x), -1) for part in parts], dim=1)

    @contextmanager
    def given(self, features: Tensor) -> Iterator[None]:
        """Inside, the calls are not made, and return what these features ``[F]`` of one task say."""
        parts = iter(features.split(self.sizes))
        results = {call: _rebuilt(result, parts) for call, result in self.calls.kept.items()}

        def met(call: Call, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            known = results.get(call)
            # Nothing that counts reads the others, but what reads them asks for their shape.
            return _blank(self.calls.skipped[call], features) if known is None else known

        with self._meeting(met):
            yield

    @contextmanager
    def _meeting(self, met: _Met) -> Iterator[None]:
        count, inside = Counter[str](), False

        def forward(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
            def meet(*args: Any, **kwargs: Any) -> Any:
                nonlocal inside
                call = name, count[name]
                if inside or call not in known:
                    count[name] += not inside
                    return original(*args, **kwargs)
                count[name] += 1
                inside = True
                try:
                    return met(call, original, args, kwargs)
                finally:
                    inside = False

            return meet

        known = {**self.calls.kept, **self.calls.skipped}
        with swapped(self.model, {n: forward(n, self.model.get_submodule(n).forward) for n in set(self.names)}):
            yield

    def extend(self, psi: Tensor, batch: Batch, chunks: Sequence[slice]) -> tuple[Tensor, Batch]:
        """Return the extended ψ and the batch to evaluate with it; features that no ψ moves stay in the batch."""
        with torch.no_grad():
            features = torch.cat([self.features(batch.x[chunk]) for chunk in chunks])
        if psi.numel() == 0:
            return psi, replace(batch, kept=features)
        parts = self.rows.psi.unflatten(psi)
        own = [parts[name].reshape(-1) for name in self.layout.names]
        return torch.cat([*own, features.reshape(-1)]), replace(batch, kept=torch.arange(len(batch), device=psi.device))

    def split(self, psi: Tensor, kept: Tensor) -> tuple[Weights, Tensor]:
        """Return the shared parameters that the rest of the model reads, and the features of these tasks."""
        if psi.numel() == 0:
            return {}, kept
        own, features = psi.split((self.layout.size, psi.numel() - self.layout.size))
        return self.layout.unflatten(own), features.view(-1, sum(self.sizes)).index_select(0, kept)

    def pull(self, cotangent: Tensor, x: Tensor, chunks: Sequence[slice], into: Tensor) -> None:
        """Add the gradient in ψ that one in the extended ψ implies to ``into`` ``[Q]``."""
        if into.numel() == 0:
            return
        total = self.rows.psi.unflatten(into)
        own, features = cotangent.split((self.layout.size, cotangent.numel() - self.layout.size))
        for name, part in self.layout.unflatten(own).items():
            total[name] += part
        parameters = dict(self.model.named_parameters())
        leaves = {name: parameters[name].detach().requires_grad_() for name in total}
        for name, leaf in leaves.items():
            leaf.grad = total[name]  # autograd adds to it in place: as large as ψ, it is not held twice
        for chunk in chunks:
            found = self.features(x[chunk], leaves)
            if found.requires_grad:
                torch.autograd.backward(found, features.view(len(x), -1)[chunk], inputs=list(leaves.values()))


class _Complete(Exception):
    """All features are there; the rest of the model need not run."""


def find_prefix(
    model: nn.Module, rows: ParameterRows, x: Tensor, remat: Rematerialisation | None = None
) -> Prefix | None:
    """Return the prefix of a model for inputs of this shape, ``[points, ...]`` of one task, if there is one.

    It is tried, too: a model whose calls are not the same each time is evaluated in full.
    """
    if not rows.psi.names and all(p.requires_grad for p in model.parameters()) and not list(model.buffers()):
        return None
    adapted = rows.theta.unflatten(rows.read(model)[0])
    calls = independent_calls(model, adapted, x)
    if calls is None:
        return None
    prefix = Prefix(model, rows, calls, remat)
    with torch.no_grad():
        try:
            with prefix.remat.within(x):
                expected = functional_call(model, adapted, (x,))
            features = prefix.features(x[None])[0]
            with prefix.remat.within(x), prefix.given(features):
                found = functional_call(model, adapted, (x,))
        except torch.OutOfMemoryError:  # smaller parts may do
            raise
        except (RuntimeError, KeyError, IndexError, AttributeError, TypeError):
            return None
    same = found.shape == expected.shape and torch.allclose(found, expected, *_rounding(found), equal_nan=True)
    return prefix if same else None


def _rounding(values: Tensor) -> tuple[float, float]:
    tolerance = torch.finfo(values.dtype).eps ** 0.5 if values.is_floating_point() else 0.0
    return tolerance, tolerance


def _rebuilt(result: Result, parts: Iterator[Tensor]) -> Any:
    leaves = [next(parts).view(leaf[0]) if isinstance(leaf, tuple) else leaf for leaf in result.leaves]
    return tree_unflatten(leaves, result.spec)


def _blank(result: Result, like: Tensor) -> Any:
    leaves = [like.new_zeros(()).expand(leaf[0]) if isinstance(leaf, tuple) else leaf for leaf in result.leaves]
    return tree_unflatten(leaves, result.spec)
