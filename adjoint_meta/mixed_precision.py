"""Mixed precision: a model evaluated in half precision, between rows, losses and gradients in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

HALVES = (torch.bfloat16, torch.float16)

_CONVOLUTIONS = (
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
)


def check_autocast(dtype: torch.dtype | None, like: Tensor) -> None:
    """Refuse a dtype that is not half precision, and parameters or a device that cannot do with it.

    Raises:
        TypeError: if the dtype is not one of `HALVES`, or the parameters are not float32.
        ValueError: if the device has no such arithmetic.
    """
    if dtype is None:
        return
    if dtype not in HALVES:
        raise TypeError(f"autocast must be torch.bfloat16, torch.float16 or None, got {dtype!r}")
    if like.dtype != torch.float32:
        raise TypeError(
            f"autocast={dtype} evaluates a float32 model in half precision, but the model is {like.dtype}; use "
            "model.float(), or autocast=None"
        )
    device = like.device.type
    if not torch.amp.is_autocast_available(device) or (
        device == "cuda" and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported()
    ):
        raise ValueError(f"autocast={dtype} is not available on {device}; use autocast=None")


@contextmanager
def casting(dtype: torch.dtype | None, like: Tensor) -> Iterator[None]:
    """Inside, matrix products and convolutions run in ``dtype``; their backward passes do so by themselves.

    Casts of weights are not kept: each task has weights of its own, and a trace must see all it reads.
    """
    if dtype is None:
        yield
        return
    with torch.autocast(like.device.type, dtype=dtype, cache_enabled=False), _Convolutions(dtype):
        yield


class _Convolutions(TorchFunctionMode):
    """Casts what convolutions are given: on a CPU autocast does not see them under vmap."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _CONVOLUTIONS:
            args = [arg.to(self._dtype) if isinstance(arg, Tensor) else arg for arg in args]
        return func(*args, **(kwargs or {}))
