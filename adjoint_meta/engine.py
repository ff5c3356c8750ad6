"""Functions of tensors, evaluated as they are or traced and compiled once for their shapes, and replayed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from adjoint_meta.solvers import checks

from .evaluations import Evaluations
from .fastest import fastest
from .flattening import Builder, as_list, flat
from .graphs import Graphs

# Of flat tensors.
_Run: TypeAlias = Callable[..., Sequence[Tensor]]
# What runs, what makes the result of what it returns, and what a run adds to the counters.
_Built: TypeAlias = tuple[_Run, Builder, Sequence[int]]

BACKENDS = ("auto", "eager", "compile", "cudagraph")

# "auto" compiles a function after so many eager calls: with the few milliseconds that small networks take, as long as
# compiling takes, so that a run that ends right then is at most twice as slow ("rent or buy"). Calls are counted and
# not seconds, and replays are not timed against eager calls, so that a run repeats itself bit for bit.
_PATIENCE = 1000


class Engine:
    """Evaluates functions of tensors, by one of the backends.

    ``"eager"`` calls them. ``"compile"`` traces each once for the shapes, dtypes and devices of its tensors, gradients
    and all, and replays what the compiler makes of the trace; ``"cudagraph"`` also captures that on a CUDA device,
    whole meta-gradients where it can, so that a replay is one launch. ``"auto"`` compiles what has been called 1000
    times, but no convolutions on a CPU. What cannot be compiled stays eager, and one warning says why.

    Args:
        backend: a name of `BACKENDS`.
        evaluations: counters that the functions add to; a replay adds what the trace added.
    """

    def __init__(self, backend: str, evaluations: Evaluations) -> None:
        self.backend = checks.one_of("backend", backend, BACKENDS)
        self.evaluations = evaluations
        self.compile_seconds = 0.0
        self.graphs = Graphs(backend == "cudagraph")
        self._programs: dict[Hashable, _Program] = {}
        self._known: dict[str, int] = {}
        self._within = False
        self._warned = False
        self._given_up = False

    def __getstate__(self) -> dict[str, Any]:
        """Programs stay behind in a copy: it compiles its own."""
        return {**vars(self), "_programs": {}}

    @property
    def eager(self) -> bool:
        """Whether functions are called as they are: always, or within a function that is traced or called itself."""
        return self.backend == "eager" or self._within or self._given_up

    def __call__(
        self, key: Hashable, function: Callable[..., Any], *tensors: Tensor, eager: Callable[[], Any] | None = None
    ) -> Any:
        """Return ``function(*tensors)``, a tensor or named tuples and sequences of tensors.

        Args:
            key: what the function depends on besides its tensors.
            function: without side effects other than on the counters.
            tensors: all that it reads.
            eager: returns the same without a program, where there is a better way than calling the function.
        """
        plain = eager or (lambda: function(*tensors))
        if self.eager:
            return plain()
        program = self.program(key, tensors)
        if not program.eager:
            return program(function, tensors, plain)
        program.rent()
        self._within = True  # a step that waits to be compiled waits for its evaluations, too
        try:
            return plain()
        finally:
            self._within = False

    def whole(self, key: Hashable, function: Callable[..., Any], *tensors: Tensor, apart: Callable[[], Any]) -> Any:
        """Return ``function(*tensors)`` by one CUDA graph, or ``apart()``; see `Graphs.whole`."""
        return apart() if self.eager else self.graphs.whole(self, key, function, tensors, apart)

    @contextmanager
    def building(self) -> Iterator[None]:
        """Count what is built within as one-time cost, once."""
        before, started = self.compile_seconds, time.perf_counter()
        try:
            yield
        finally:
            self.compile_seconds = before + time.perf_counter() - started

    def program(self, key: Hashable, tensors: Sequence[Tensor]) -> _Program:
        """Return what is known of the function of this key at such tensors."""
        signature = (key, *((t.shape, t.dtype, t.device) for t in tensors))
        found = self._programs.get(signature)
        if found is None:
            found = self._programs[signature] = _Program(self, self._known.get(str(signature), 0))
        return found

    def choose(self, name: str, ways: Sequence[Callable[[], Tensor]]) -> int:
        """Return which of several ways to compute the same is the fastest, measured when it is first asked for."""
        if name not in self._known:
            self._known[name] = fastest(ways)
        return self._known[name]

    def state(self) -> dict[str, int]:
        """Return what `load` goes on with elsewhere: calls of functions that are not compiled yet, and choices."""
        return {**self._known, **{str(signature): program.calls for signature, program in self._programs.items()}}

    def load(self, state: Mapping[str, int]) -> None:
        """Let "auto" go on counting where another process was, for functions not called here yet, and choose alike."""
        self._known = dict(state)

    @property
    def replayed(self) -> int:
        """How many functions have been compiled."""
        return sum(program.compiled for program in self._programs.values())

    def give_up(self, why: str) -> None:
        """Call functions as they are from now on, and say why."""
        if not self.eager:
            self._given_up = True
            warnings.warn(why, RuntimeWarning, stacklevel=2)

    def refuse(self, error: Exception) -> None:
        """Say once why something stays eager."""
        if not self._warned:
            self._warned = True
            warnings.warn(_refusal(error), RuntimeWarning, stacklevel=2)

    def compiled(self, key: Hashable, tensors: Sequence[Tensor]) -> bool:
        """Return whether the function is called through a program now, not as it is."""
        return not self.eager and not self.program(key, tensors).eager

    def build(self, function: Callable[..., Any], tensors: Sequence[Tensor]) -> _Built:
        """Return the compiled function of flat tensors, what makes its result of them, and what it adds to counters.

        The trace is of the eager function itself, so both compute the same; only the order of sums may differ.
        """
        # Imported where they are needed: they take a second, and most of torch's compiler with them.
        import torch._inductor
        from torch.fx.experimental.proxy_tensor import make_fx

        leaves, shape = flat(function)
        self._within = True
        try:
            with self.evaluations.apart() as added:
                graph = make_fx(leaves)(*tensors)
        finally:
            self._within = False
        if self.backend == "auto" and not tensors[0].is_cuda and _convolves(graph):
            raise _NothingGained
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler says of its own code
            run = torch._inductor.compile(graph, list(tensors))
            run(*tensors)
        return (lambda *inputs: as_list(run(*inputs))), shape[0], added


class _Program:
    """A function at given shapes: eager, waiting for "auto" to compile it, or compiled."""

    def __init__(self, engine: Engine, calls: int) -> None:
        self._engine = engine
        self._patience = _PATIENCE if engine.backend == "auto" else 0
        self.calls = calls
        self._run: _Run | None = None
        self._shape: Builder = next
        self._added: Any = None
        self._refused = False

    @property
    def eager(self) -> bool:
        """Whether the function is to be called as it is."""
        return self._refused or self.calls < self._patience

    @property
    def compiled(self) -> bool:
        """Whether the function is replayed."""
        return self._run is not None

    def rent(self) -> None:
        """Note an eager call."""
        self.calls += 1

    def __call__(self, function: Callable[..., Any], tensors: Sequence[Tensor], eager: Callable[[], Any]) -> Any:
        """Compile if need be, and replay."""
        inputs = [t if t.is_contiguous() and not t.requires_grad else t.detach().contiguous() for t in tensors]
        if self._run is None:
            try:
                with self._engine.building():
                    self._run, self._shape, self._added = self._engine.build(function, inputs)
            except torch.OutOfMemoryError:  # smaller chunks may do
                raise
            except Exception as error:  # whatever a tracer or a compiler meets: training goes on
                self._refused = True
                if not isinstance(error, _NothingGained):
                    self._engine.refuse(error)
                return eager()
        with torch.no_grad():
            found = self._engine.graphs.piece(self._engine, self, self._run, inputs)
        self._engine.evaluations.add(*self._added)
        return self._shape(iter(found))


class _NothingGained(Exception):
    """A program would not be faster by what compiling it takes."""


def _convolves(graph: torch.fx.GraphModule) -> bool:
    """Return whether a trace convolves: on a CPU a program then calls the kernels that the eager function calls.

    A step of 16 tasks on Omniglot's network took minutes to compile, and as long as the eager one ever after.
    """
    return any("convolution" in str(node.target) for node in graph.graph.nodes)


def _refusal(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    first = lines[0][:200] if lines else "no reason given"
    return (
        f"a function could not be compiled ({type(error).__name__}: {first}); it stays eager, which is slower and just "
        "as right. backend='eager' leaves compiling out"
    )
