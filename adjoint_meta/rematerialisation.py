"""Modules whose activations are computed again in the backward pass instead of kept from the forward pass.

``torch.utils.checkpoint`` does not work under vmap, and under forward-mode differentiation it keeps every tangent. Here
a call leaves vmap, so that what autograd sees is one function of all tasks; it keeps its inputs alone, tangents with
them (Kemaev et al., MixFlow-MG, ICML 2025, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from adjoint_meta.solvers import checks

from .dependence import plain, swapped

# From the tensors of a call to the tensors of its result.
_Body = Callable[..., tuple[Tensor, ...]]
Within = Callable[[Tensor], AbstractContextManager[None]]


class Rematerialisation:
    """The modules whose activations are not kept.

    Args:
        model: the whole model.
        patterns: glob patterns of module names, such as ``"blocks.*"``; of modules within each other the outermost
            counts.
        within: what the model is evaluated within, on the device of a tensor; also when that is done again.

    Raises:
        ValueError: if a pattern matches nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        patterns: str | Sequence[str] = (),
        within: Within = lambda like: nullcontext(),
    ) -> None:
        self._model = model
        self.within = within
        names = [name for name, _ in model.named_modules() if name]
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"remat pattern {pattern!r} matches no module; {checks.nearest(pattern, names)}")
        self.names: list[str] = []
        for name in names:  # outer modules come first
            nested = any(name.startswith(f"{outer}.") for outer in self.names)
            if not nested and any(fnmatchcase(name, pattern) for pattern in patterns):
                self.names.append(name)

    @contextmanager
    def during(self, x: Tensor, around: Sequence[str] = ()) -> Iterator[None]:
        """Inside, under vmap over tasks, calls of the modules keep no activations.

        Args:
            x: the inputs, which vmap is over.
            around: names of modules that must be called as they are, within whatever they are in.
        """
        names = [name for name in self.names if not any(inner.startswith(f"{name}.") for inner in around)]
        modules = {name: self._model.get_submodule(name) for name in names} if torch.is_grad_enabled() else {}
        with swapped(self._model, {name: _forward(m, x, self.within) for name, m in modules.items() if plain(m)}):
            yield


def _forward(module: nn.Module, x: Tensor, evaluating: Within) -> Callable[..., Any]:
    """Return a forward method that keeps no activations."""
    original, within = module.forward, False

    def forward(*args: Any, **kwargs: Any) -> Any:
        if within:
            return original(*args, **kwargs)
        weights = dict(module.named_parameters())
        leaves, spec = tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        result: list[Any] = []

        def body(*tensors: Tensor) -> tuple[Tensor, ...]:
            nonlocal within
            filled = list(leaves)
            for place, tensor in zip(places, tensors, strict=False):
                filled[place] = tensor
            args, kwargs = tree_unflatten(filled, spec)
            within = True
            try:
                with evaluating(x):
                    own = dict(zip(weights, tensors[len(places) :], strict=True))
                    found = functional_call(module, own, args, kwargs)
            finally:
                within = False
            flat, shape = tree_flatten(found)
            result[:] = [[None if isinstance(leaf, Tensor) else leaf for leaf in flat], shape]
            return tuple(leaf for leaf in flat if isinstance(leaf, Tensor))

        tensors = iter(_OutsideVmap.apply(body, x, *(leaves[place] for place in places), *weights.values()))
        leaves[:] = [None if place in places else leaf for place, leaf in enumerate(leaves)]
        flat, shape = result
        return tree_unflatten([next(tensors) if leaf is None else leaf for leaf in flat], shape)

    return forward


class _OutsideVmap(torch.autograd.Function):
    """Leaves vmap: ``apply(body, x, *tensors)`` with an x that vmap is over."""

    @staticmethod
    def forward(body: _Body, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("modules are rematerialised under one vmap over tasks only")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: what is differentiated is `_Recomputed`."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, body: _Body, x: Tensor, *tensors: Tensor) -> Any:
        found = _Recomputed.apply(vmap(body, in_dims=tuple(in_dims[2:])), *tensors)
        return found, (0,) * len(found)


class _Recomputed(torch.autograd.Function):
    """``apply(body, *tensors)`` is ``body(*tensors)``, differentiated by evaluating it again."""

    @staticmethod
    def forward(ctx: Any, body: _Body, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.body = body
        ctx.save_for_backward(*tensors)
        # The tangents of the result come with it; torch would switch them off here and ask for them later.
        with torch.no_grad(), forward_ad._set_fwd_grad_enabled(True):
            values, tangents = zip(*(forward_ad.unpack_dual(each) for each in body(*tensors)), strict=True)
        ctx.tangents = tangents
        found = tuple(value.detach() for value in values)
        ctx.mark_non_differentiable(*(value for value in found if not value.is_floating_point()))
        return found

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
        tangents, ctx.tangents = ctx.tangents, None
        return tuple(tangents)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [place for place, need in enumerate(ctx.needs_input_grad[1:]) if need]
        again = torch.is_grad_enabled()  # another derivative is to follow, for which the graph must reach the inputs
        with torch.enable_grad():
            tensors = [tensor if again else _leaf(tensor) for tensor in ctx.saved_tensors]
            found = ctx.body(*tensors)
            pairs = [(each, c) for each, c in zip(found, cotangents, strict=True) if each.requires_grad]
            inputs = [tensors[place] for place in wanted]
            outputs, along = zip(*pairs, strict=True)
            gradients = torch.autograd.grad(outputs, inputs, along, create_graph=again, allow_unused=True)
        by_place = dict(zip(wanted, gradients, strict=True))
        return (None, *(by_place.get(place) for place in range(len(tensors))))


def _leaf(tensor: Tensor) -> Tensor:
    """Return a tensor of that value and tangent, to be differentiated from."""
    value, tangent = forward_ad.unpack_dual(tensor)
    leaf: Tensor = value.detach().requires_grad_(value.is_floating_point() and tensor.requires_grad)
    if tangent is not None:
        leaf = forward_ad.make_dual(leaf, tangent.detach())
    return leaf
