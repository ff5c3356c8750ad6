"""Adjoints side by side: error of the meta-gradient, evaluations, peak memory in fresh processes, time; by horizon."""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time

import torch

import adjoint_meta as am
from adjoint_meta.experiments.models import HalfMSELoss, mlp
from adjoint_meta.experiments.studies.workloads import regression_tasks

TASKS, POINTS, REPEATS = 5, 100, 3
HORIZONS = (0.5, 2.0, 10.0, 50.0)
ADJOINTS: dict[str, dict[str, object]] = {
    "discrete": {"adjoint": "discrete"},
    "checkpointed, √(2n)": {"adjoint": "checkpointed"},
    "checkpointed, 4": {"adjoint": "checkpointed", "snapshots": 4},
    "interpolating": {"adjoint": "interpolating"},
    "backsolve": {"adjoint": "backsolve"},
    "backsolve, 9 anchors": {"adjoint": "backsolve", "snapshots": 9},
}
STEPS_PER_TIME = 24  # of rk4: h‖H‖ stays below 1 up to ‖H‖ = 24


def learner(method: am.Method) -> am.MetaLearner:
    """Return the network in float64, so that errors are the methods' own."""
    return am.MetaLearner(mlp(2, 32, 2, 1), HalfMSELoss(), method).double()


def gradient(method: am.Method) -> tuple[torch.Tensor, dict[str, object]]:
    """Return the flat meta-gradient and its statistics."""
    found = learner(method).meta_gradient(regression_tasks(TASKS, POINTS).to(dtype=torch.float64))
    return torch.cat([part.flatten() for part in found.grad.values()]), found.stats


def measure(name: str, horizon: float) -> dict[str, object]:
    """Return error, evaluations, seconds and extra MiB of one adjoint, or why it failed."""
    torch.set_num_threads(1)
    steps = round(STEPS_PER_TIME * horizon)
    options = dict(ADJOINTS[name])
    if name.endswith("√(2n)"):
        options["snapshots"] = math.ceil(math.sqrt(2 * steps))
    method = am.AdjointMAML(horizon=horizon, solver="rk4", steps=steps, **options)
    warm = am.AdjointMAML(horizon=horizon / steps, solver="rk4", steps=1)
    gradient(warm)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found, stats = gradient(method)
    except am.SolverError as error:
        return {"failed": str(error)}
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        gradient(method)
        times.append(time.perf_counter() - started)
    exact, _ = gradient(am.AdjointMAML(horizon=horizon, solver="rk4", steps=4 * steps))
    return {
        "error": float((found - exact).norm() / exact.norm()),
        "n_grad": stats["n_grad"],
        "n_hvp": stats["n_hvp"],
        "extra": extra,
        "seconds": statistics.median(times),
    }


def main() -> None:
    """Print the table and, with --json, the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--horizons", type=float, nargs="+", default=list(HORIZONS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "T"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], float(arguments.one[1]))))
        return
    rows = {}
    for horizon in arguments.horizons:
        print(f"\nT = {horizon:g}, rk4 × {round(STEPS_PER_TIME * horizon)}, {TASKS} tasks × {POINTS} points, float64")
        print(f"{'':24}{'error':>10}{'gradients':>11}{'HVPs':>7}{'MiB':>8}{'seconds':>9}")
        for name in ADJOINTS:
            command = [sys.executable, __file__, "--one", name, str(horizon)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            rows[f"{name}, T={horizon:g}"] = row
            if "failed" in row:
                print(f"{name:24}  failed: {row['failed'][:100]}")
                continue
            print(
                f"{name:24}{row['error']:10.1e}{row['n_grad']:11d}{row['n_hvp']:7d}{row['extra']:8.1f}"
                f"{row['seconds']:9.2f}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
