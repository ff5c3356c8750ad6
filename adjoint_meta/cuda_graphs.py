"""Functions of tensors captured as CUDA graphs: one launch replays all their kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations by which the host waits for numbers, shapes depend on them, or a copy crosses from the host.
_READING = (
    "_local_scalar_dense", "equal", "is_nonzero", "lift_fresh", "masked_select", "nonzero", "_linalg_check_errors",
    "_unique2", "bincount",
)  # fmt: skip


class ReadsBack(Exception):
    """A function reads numbers back from the device to decide what to do, which a graph cannot."""


class ForbidReading(TorchDispatchMode):
    """Raises `ReadsBack` where the host waits for a number, or tensors change devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if (
            name in _READING
            or _moves(name, args, kwargs or {})
            or (name.lstrip("_").startswith("index") and _masks(args))
        ):
            raise ReadsBack(name)
        return func(*args, **(kwargs or {}))


def _moves(name: str, args: Any, kwargs: Any) -> bool:
    """Return whether an operation takes a tensor from one kind of device to another."""
    if name == "copy_":
        return bool(args[0].device.type != args[1].device.type)
    to = kwargs.get("device")
    return name == "_to_copy" and to is not None and torch.device(to).type != args[0].device.type


def _masks(args: Any) -> bool:
    """Return whether an index is a mask, whose result has a shape of its own."""
    lists = (argument for argument in args if isinstance(argument, list | tuple))
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for each in lists for part in each)


class CudaGraph:
    """A function captured as a CUDA graph, with buffers of its own for inputs and outputs.

    Args:
        run: of the tensors to a sequence of tensors; it launches the same kernels whatever the tensors hold.
        tensors: on the device.
    """

    def __init__(self, run: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in tensors]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(tensors[0].device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # allocations of the first calls must not be captured
                for _ in range(3):
                    run(*self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self._graph):
                self._outputs = list(run(*self._inputs))

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Replay it for these tensors."""
        torch._foreach_copy_(self._inputs, list(tensors))
        with torch.cuda.device(tensors[0].device):
            self._graph.replay()
        return [output.clone() for output in self._outputs]


def capturable(tensors: Sequence[Tensor]) -> bool:
    """Return whether functions of such tensors can be captured."""
    return tensors[0].is_cuda
