"""Which functions an engine replays as CUDA graphs: compiled ones, and whole ones with the programs that they call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from adjoint_meta.solvers import SolverError

from .cuda_graphs import CudaGraph, ForbidReading, ReadsBack, capturable
from .evaluations import Evaluations
from .flattening import Builder, flat

# Each holds all that a meta-gradient allocates, so only those of the last few shapes stay.
_WHOLE = 4
# Capturing takes as long as several meta-gradients, so that shapes without end are not worth it.
_CAPTURES = 32


class Engine(Protocol):
    """What an engine has for graphs: its counters, and how its one-time cost is counted."""

    evaluations: Evaluations

    def building(self) -> AbstractContextManager[None]:
        """Count what is built within as one-time cost, once."""
        ...


class _Whole(NamedTuple):
    """A whole function: its graph, what makes its result of flat tensors, and what it adds to the counters."""

    graph: CudaGraph
    shape: Builder
    added: Sequence[int]


class Graphs:
    """The graphs of one engine.

    Args:
        wanted: whether there are to be any.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._broken = self._within = False
        self._captures = 0
        self._pieces: dict[Hashable, CudaGraph] = {}
        self._whole: dict[Hashable, _Whole] = {}
        self._unfit: set[Hashable] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Graphs stay behind in a copy: it captures its own."""
        return vars(Graphs(self._wanted))

    def wanted(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether a function of these tensors is to become a graph, and is no part of one already."""
        return self._wanted and not self._broken and not self._within and capturable(tensors)

    def release(self) -> None:
        """Give back the memory that graphs hold."""
        self._pieces.clear()
        self._whole.clear()

    def piece(
        self, engine: Engine, key: Hashable, run: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Return ``run(*tensors)`` of a compiled function, by a graph of its own.

        Args:
            engine: counts and times.
            key: of the function at such tensors.
            run: the compiled function.
            tensors: all that it reads.

        Raises:
            torch.OutOfMemoryError: as it comes; smaller chunks may do.
        """
        if not self.wanted(tensors):
            return run(*tensors)
        if key not in self._pieces:
            try:
                with engine.building(), engine.evaluations.apart():
                    self._pieces[key] = CudaGraph(run, tensors)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a capture meets: training goes on
                self._broken = True
                self.release()
                _warn("a compiled function", error, "compiled functions are launched kernel by kernel")
                return run(*tensors)
        return self._pieces[key](*tensors)

    def whole(
        self,
        engine: Engine,
        key: Hashable,
        function: Callable[..., Any],
        tensors: Sequence[Tensor],
        apart: Callable[[], Any],
    ) -> Any:
        """Return ``function(*tensors)``, whose programs and all between them are one graph, or ``apart()``.

        A function that reads something back from the device is left to ``apart``, as what it calls can be captured
        piece by piece.

        Args:
            engine: counts and times.
            key: what the function depends on besides its tensors.
            function: of the tensors.
            tensors: what may differ between calls.
            apart: returns the same.

        Raises:
            SolverError, torch.OutOfMemoryError: as they come.
        """
        if not self.wanted(tensors) or key in self._unfit:
            return apart()
        signature = (key, *((t.shape, t.dtype, t.device) for t in tensors))
        inputs = [tensor.detach().contiguous() for tensor in tensors]
        if signature in self._whole:
            self._whole[signature] = self._whole.pop(signature)  # the last one used is the last one to go
        elif self._captures == _CAPTURES:
            return apart()
        else:
            try:
                self._add(engine, signature, function, inputs)
            except (torch.OutOfMemoryError, SolverError):
                raise
            except Exception as error:
                self._unfit.add(key)
                result = apart()  # which raises what is wrong with the function itself
                if not isinstance(error, ReadsBack):
                    _warn("a whole meta-gradient", error, "its parts are captured one by one")
                return result
        found = self._whole[signature]
        with torch.no_grad():
            outputs = found.graph(*inputs)
        engine.evaluations.add(*found.added)
        return found.shape(iter(outputs))

    def _add(self, engine: Engine, key: Hashable, function: Callable[..., Any], tensors: Sequence[Tensor]) -> None:
        """Capture a whole function, and let the graph go that was used the longest ago."""
        while len(self._whole) >= _WHOLE:
            self._whole.pop(next(iter(self._whole)))
        with engine.building(), self._part():
            self._whole[key] = _capture(engine, function, tensors)
        self._captures += 1
        if self._captures == _CAPTURES:
            warnings.warn(
                f"{_CAPTURES} whole meta-gradients were captured as CUDA graphs, for other shapes or a model whose "
                "tensors were replaced; further ones are captured piece by piece. Change parameters and buffers in "
                "place, and keep batches of one size",
                RuntimeWarning,
                stacklevel=4,
            )

    @contextmanager
    def _part(self) -> Iterator[None]:
        """Let programs that are called within become part of a graph."""
        self._within = True
        try:
            yield
        finally:
            self._within = False


def _capture(engine: Engine, function: Callable[..., Any], tensors: Sequence[Tensor]) -> _Whole:
    """Return the graph of a function.

    Raises:
        ReadsBack: if it reads numbers back from the device.
    """
    leaves, shape = flat(function)
    with engine.evaluations.apart():
        leaves(*tensors)  # builds the programs that it calls
    with engine.evaluations.apart() as added, ForbidReading():
        leaves(*tensors)
    with engine.evaluations.apart():
        return _Whole(CudaGraph(leaves, tensors), shape[0], added)


def _warn(what: str, error: Exception, instead: str) -> None:
    lines = str(error).strip().splitlines()
    first = lines[0][:200] if lines else "no reason given"
    warnings.warn(
        f"{what} could not be captured as a CUDA graph ({type(error).__name__}: {first}); {instead}, which is slower "
        "and just as right. backend='compile' leaves capturing out",
        RuntimeWarning,
        stacklevel=4,
    )
