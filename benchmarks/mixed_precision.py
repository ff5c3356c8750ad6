"""Mixed precision: error of the meta-gradient against float64, time and peak memory, each in a fresh process."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

import adjoint_meta as am
from adjoint_meta.experiments.measure import peak_memory_bytes, reset_peak_memory
from adjoint_meta.experiments.studies.workloads import INNER_LR, flat, place

REPEATS = 3
CPU = torch.device("cpu")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Workload, tasks, and each method with steps that a float64 reference can afford.
CASES: dict[str, tuple[str, int, am.Method]] = {
    "regression, 5 tasks, MAML 50": ("regression", 5, am.MAML(50, INNER_LR)),
    "regression, 5 tasks, A-MAML rk4 5": ("regression", 5, am.AdjointMAML(horizon=0.5, solver="rk4", steps=5)),
    "regression, 64 tasks, MAML 50": ("regression", 64, am.MAML(50, INNER_LR)),
    "omniglot, 2 tasks, MAML 2": ("omniglot", 2, am.MAML(2, INNER_LR)),
    "omniglot, 2 tasks, A-MAML rk4 1": ("omniglot", 2, am.AdjointMAML(horizon=0.02, solver="rk4", steps=1)),
}


def measure(case: str, precision: str, backend: str) -> dict[str, Any]:
    """Return error, seconds and extra MiB of one meta-gradient."""
    torch.set_num_threads(1)
    name, tasks, method = CASES[case]
    placed = place(name, tasks, CPU, torch.float32)
    learner = am.MetaLearner(placed.model, placed.loss, method, backend=backend, autocast=PRECISIONS[precision])
    learner.meta_gradient(placed.tasks)  # programs, kernels and libraries are loaded on first use
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    times = []
    for _ in range(REPEATS):
        started = time.process_time()  # other work on the machine does not count
        found = learner.meta_gradient(placed.tasks)
        times.append(time.process_time() - started)
    extra = (peak_memory_bytes(CPU) - before) / 2**20
    double = place(name, tasks, CPU, torch.float64)
    exact = flat(
        list(
            am.MetaLearner(double.model, double.loss, method, backend="eager").meta_gradient(double.tasks).grad.values()
        )
    )
    error = (flat(list(found.grad.values())).double() - exact).norm() / exact.norm()
    return {"error": float(error), "seconds": statistics.median(times), "extra": extra}


def main() -> None:
    """Print the table and, with --json, the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments.backend)))
        return
    print(f"CPU, 1 thread, {arguments.backend}, torch {torch.__version__}")
    print(f"{'':36}{'precision':>10}{'error':>10}{'seconds':>9}{'ratio':>7}{'MiB':>8}{'ratio':>7}")
    rows = {}
    for case in arguments.cases:
        first: dict[str, Any] | None = None
        for precision in arguments.precisions:
            command = [sys.executable, __file__, "--one", case, precision, "--backend", arguments.backend]
            row = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            rows[f"{case}, {precision}"] = row
            first = first or row
            print(
                f"{case:36}{precision:>10}{row['error']:10.1e}{row['seconds']:9.3f}"
                f"{row['seconds'] / first['seconds']:7.2f}{row['extra']:8.1f}{row['extra'] / first['extra']:7.2f}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
