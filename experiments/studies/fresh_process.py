"""A contestant in a process of its own, so that its peak of memory and its compiled code are its own.

Processes fork from a server that has imported torch and nothing else has run in, which takes a tenth of starting Python
anew. A child's resident set begins with what it shares with the server; only growth beyond a baseline is reported.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from ..measure import peak_memory_bytes, reset_peak_memory
from ..tensor_bytes import TensorBytes
from .contestants import ENTRANTS, REFERENCES, Run
from .workloads import place

# All that contestants import, some of it on first use; what is not installed is passed over.
PRELOADED = [__name__, "sympy", "torch._dynamo", "torchdiffeq", "higher", "torchopt"]


@dataclass(frozen=True)
class Job:
    """What a process works on.

    Args:
        workload: a name that `workload` knows.
        tasks: how many.
        contestant: a name of `ENTRANTS`, or of `REFERENCES`.
        backend: of ours.
        device, dtype: by name.
        threads: of torch.
    """

    workload: str
    tasks: int
    contestant: str
    backend: str = "eager"
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1


class FreshProcess:
    """A process that measures one contestant on one workload, when it is asked to.

    Args:
        job: what it works on.
    """

    def __init__(self, job: Job) -> None:
        # Not everywhere may a process fork once it has loaded the system's libraries.
        linux = sys.platform == "linux"
        context: Any = multiprocessing.get_context("forkserver" if linux else "spawn")
        if linux:
            context.set_forkserver_preload(PRELOADED)
        self._line, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, job), daemon=True)
        self._process.start()
        other.close()

    def measure(self, steps: int, timeout: float, *, again: bool = False, tensors: bool = False) -> dict[str, Any]:
        """Return what one meta-gradient took, or ``{"failed": why}``; a process that failed is gone.

        Args:
            steps: inner steps.
            timeout: seconds to wait.
            again: time the same once more, seconds alone.
            tensors: follow the tensors of the same once more, bytes alone.
        """
        try:
            self._line.send((steps, "tensors" if tensors else "again" if again else "first"))
            if self._line.poll(timeout):
                reply: dict[str, Any] = self._line.recv()
            else:
                reply = {"failed": f"it took more than {timeout:.0f} s, compilation included"}
        except (EOFError, OSError):
            reply = {"failed": "its process was ended, which is what happens when memory runs out"}
        if "failed" in reply:
            self.close()
        return reply

    def close(self) -> None:
        """End the process."""
        self._line.close()
        self._process.kill()
        self._process.join()


def _serve(line: Connection, job: Job) -> None:
    """Answer requests until the other end hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the first one decides
    warnings.simplefilter("ignore")
    try:
        bench = _Bench(job)
        while True:
            steps, what = line.recv()
            line.send(bench.first(steps) if what == "first" else getattr(bench, what)())
    except EOFError:
        return
    except Exception as error:
        line.send({"failed": " ".join(f"{error}".split())[:300] or type(error).__name__})


class _Bench:
    """The work of one process."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self.device, self.backend = torch.device(job.device), job.backend
        self.contestant = {**ENTRANTS, **REFERENCES}[job.contestant]
        self.placed = place(job.workload, job.tasks, self.device, getattr(torch, job.dtype))
        self.run: Run = self.contestant.prepare(self.placed, 1, self.backend)
        self.run()  # libraries, kernels and threads are loaded on first use

    def first(self, steps: int) -> dict[str, Any]:
        """Prepare for this many steps, and measure memory, seconds and the gradient."""
        self.run = self.contestant.prepare(self.placed, steps, self.backend)
        once = 0.0
        if self.backend != "eager":  # compile and capture before anything is measured
            once = self._timed()[0]["seconds"]
        reset_peak_memory(self.device)
        before = peak_memory_bytes(self.device)
        taken, gradient = self._timed()
        extra = peak_memory_bytes(self.device) - before
        return {
            **taken,
            "once": max(0.0, once - taken["seconds"]),
            "extra": max(0, extra),
            "gradient": gradient.double().cpu().numpy(),
        }

    def again(self) -> dict[str, Any]:
        """Measure seconds, and those that the processor spent on this process."""
        return self._timed()[0]

    def tensors(self) -> dict[str, Any]:
        """Measure the most bytes of tensors that are alive at once, of those that the call itself makes."""
        gc.collect()
        with TensorBytes() as found:
            self.run()
        return {"tensors": found.peak}

    def _timed(self) -> tuple[dict[str, float], Tensor]:
        synchronise(self.device)
        started, spent = time.perf_counter(), time.process_time()
        gradient = self.run()
        synchronise(self.device)
        return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - spent}, gradient


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
