"""Checkpointed adjoints by steps: peak memory, evaluations and time of a meta-gradient, each in a fresh process."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch

import adjoint_meta as am
from adjoint_meta.experiments.measure import peak_memory_bytes, reset_peak_memory
from adjoint_meta.experiments.models import HalfMSELoss, mlp
from adjoint_meta.experiments.studies.workloads import regression_tasks

STEPS = (50, 500, 5000)
LR = 0.01
CPU = torch.device("cpu")


def method(name: str, steps: int, options: dict[str, Any]) -> am.Method:
    """Return MAML of α = 0.01, or A-MAML by rk4 with as many steps to T = 0.5."""
    if name == "MAML":
        return am.MAML(steps, LR, **options)
    return am.AdjointMAML(horizon=50 * LR, solver="rk4", steps=steps, **options)


def measure(name: str, steps: int, backend: str, tasks: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return evaluations, seconds and extra MiB of one meta-gradient."""
    torch.set_num_threads(1)
    batch = regression_tasks(tasks)
    learner = am.MetaLearner(mlp(2, 32, 2, 1), HalfMSELoss(), method(name, 50, options), backend=backend)
    learner.meta_gradient(batch)  # programs, kernels and libraries are loaded on first use
    learner.method = method(name, steps, options)
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    started = time.process_time()  # other work on the machine does not count
    stats = learner.meta_gradient(batch).stats
    seconds = time.process_time() - started
    extra = (peak_memory_bytes(CPU) - before) / 2**20
    return {"n_grad": stats["n_grad"], "n_hvp": stats["n_hvp"], "seconds": seconds, "extra": extra}


def main() -> None:
    """Print a table for each method and, with --json, the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["MAML", "A-MAML rk4"])
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--backend", default="compile")
    parser.add_argument("--adjoint", default="checkpointed")
    parser.add_argument("--snapshots", type=int)
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(**json.loads(arguments.one))))
        return
    options = {"adjoint": arguments.adjoint, "snapshots": arguments.snapshots}
    rows: dict[str, dict[str, Any]] = {}
    for name in arguments.methods:
        print(f"\n{name}, {options}, {arguments.backend}, {arguments.tasks} tasks × 100 points, float32, 1 thread")
        print(f"{'steps':>8}{'gradients':>11}{'HVPs':>8}{'MiB':>8}{'ratio':>7}{'seconds':>10}{'ratio':>8}{'work':>8}")
        first: dict[str, Any] | None = None
        for steps in arguments.steps:
            job = {"name": name, "steps": steps, "backend": arguments.backend, "tasks": arguments.tasks}
            command = [sys.executable, __file__, "--one", json.dumps({**job, "options": options})]
            found = [
                json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                for _ in range(arguments.repeats)
            ]
            row = sorted(found, key=lambda one: one["seconds"])[len(found) // 2]
            row["extra"] = sorted(one["extra"] for one in found)[len(found) // 2]
            # A product and the gradient that falls out of it cost about two gradients.
            row["work"] = row["n_grad"] + 2 * row["n_hvp"]
            first = first or row
            rows[f"{name}, {steps}"] = row
            extra, seconds, work = (row[key] / first[key] for key in ("extra", "seconds", "work"))
            print(
                f"{steps:8d}{row['n_grad']:11d}{row['n_hvp']:8d}{row['extra']:8.2f}{extra:7.2f}{row['seconds']:10.3f}"
                f"{seconds:8.1f}{work:8.1f}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
