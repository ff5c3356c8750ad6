"""Functions of torch whose second derivatives are slow for a batch of weights, and what is evaluated in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .batch_norm import batch_norm
from .convolution import Choose, Geometry, convolve, the_first

_Sizes: TypeAlias = int | Sequence[int]


class ClosedForms(TorchFunctionMode):
    """Inside, convolutions and batch norms have second derivatives that cost what they must.

    Everything else, and what their closed forms do not cover, is torch's own: half precision, autocast, running
    statistics.

    Args:
        choose: of several ways to convolve.
    """

    def __init__(self, choose: Choose = the_first) -> None:
        super().__init__()
        self.choose = choose

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CONVOLUTIONS:
            found = _convolve(self.choose, _CONVOLUTIONS[func], *args, **(kwargs or {}))
        elif func is functional.batch_norm:
            found = _batch_norm(*args, **(kwargs or {}))
        else:
            found = None
        return func(*args, **(kwargs or {})) if found is None else found


_CONVOLUTIONS = {functional.conv1d: 1, functional.conv2d: 2, functional.conv3d: 3}


def _convolve(
    choose: Choose,
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Sizes = 1,
    padding: _Sizes | str = 0,
    dilation: _Sizes = 1,
    groups: int = 1,
) -> Tensor | None:
    if not _covered(input, weight) or weight.ndim != dims + 2 or input.ndim not in (dims + 1, dims + 2):
        return None
    steps, spread = _each(stride, dims), _each(dilation, dims)
    x = input if input.ndim == dims + 2 else input[None]
    if padding == "same":
        if any(step != 1 for step in steps):
            return None
        total = [d * (k - 1) for d, k in zip(spread, weight.shape[2:], strict=True)]
        # Of an odd number the last one is on the far side.
        far = [side for n in reversed(total) for side in (0, n % 2)]
        x, edges = functional.pad(x, far) if any(far) else x, tuple(n // 2 for n in total)
    else:
        edges = (0,) * dims if isinstance(padding, str) else _each(padding, dims)
    geometry = Geometry(tuple(x.shape[2:]), tuple(weight.shape[2:]), steps, edges, spread, groups, choose)
    y = convolve(x, weight, bias, geometry)
    return y if input.ndim == dims + 2 else y[0]


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    tracked = running_mean is not None or running_var is not None
    if tracked or not training or not _covered(input) or input.numel() <= input.shape[1]:
        return None
    channels = input.shape[1]
    weight = input.new_ones(channels) if weight is None else weight
    bias = input.new_zeros(channels) if bias is None else bias
    return batch_norm(input, weight, bias, eps)


def _covered(*tensors: Tensor) -> bool:
    plain = all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors)
    return plain and not torch.is_autocast_enabled(tensors[0].device.type)


def _each(value: _Sizes, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values
