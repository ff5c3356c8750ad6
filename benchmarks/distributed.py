"""Throughput of several processes against one, and a model of the time of a meta-step fitted to it.

All processes are started once. In turns, the first takes meta-steps alone while the others wait, and all take them
together; the ratio is that of medians. Each has one thread. Beside the seconds that pass stand those for which the
processor worked, of the process that worked longest: on a machine with other work to do, the former say how that work
was scheduled, and the latter leave out what the processes wait for.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

import adjoint_meta as am
from adjoint_meta.distributed import ALONE, World, processes
from adjoint_meta.experiments.models import HalfMSELoss, mlp
from adjoint_meta.experiments.studies.workloads import regression_tasks
from adjoint_meta.training import Trainer, TrainingPlan

METHOD = am.AdjointMAML(horizon=2.0, solver="rk4", steps=10)
VECTORS = (1, 1_000, 10_000, 100_000, 1_000_000)  # elements of float32


def network(backend: str = "eager") -> am.MetaLearner:
    """Return the 2 × 32 network as a learner."""
    return am.MetaLearner(mlp(2, 32, 2, 1), HalfMSELoss(), METHOD, backend=backend)


def trainer(learner: am.MetaLearner, batch: am.TaskBatch, world: World) -> Trainer:
    """Return a trainer that takes the same tasks in every meta-step."""
    share = batch[world.share(len(batch))]
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    return Trainer(learner, optimizer, lambda step: share, TrainingPlan(10**9), world=world)


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Return the time of a call, and the processor's."""
    started = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started[0], time.process_time() - started[1]


def meta_steps(world: World, tasks: int, rounds: int, backend: str) -> dict[str, list[tuple[float, float]]]:
    """Return the times of meta-steps by one process and by all, in turns."""
    batch, learner = regression_tasks(tasks), network(backend)
    one, all_ = trainer(copy.deepcopy(learner), batch, ALONE), trainer(learner, batch, world)
    found: dict[str, list[tuple[float, float]]] = {"one": [], "all": []}
    for turn in range(rounds + 1):  # the first warms up
        dist.barrier()
        alone = seconds(one.meta_step) if world.leads else (0.0, 0.0)
        dist.barrier()
        together = seconds(all_.meta_step)
        passed, worked = zip(*world.gather(lambda together=together: together), strict=True)
        if turn:
            found["one"].append(alone)
            found["all"].append((max(passed), max(worked)))
    return found


def all_reduces(rounds: int) -> dict[int, float]:
    """Return the median seconds of an all-reduce by its number of float32 elements."""
    found = {}
    for size in VECTORS:
        vector, times = torch.zeros(size), []
        for _ in range(rounds):
            dist.barrier()
            times.append(seconds(lambda vector=vector: dist.all_reduce(vector))[0])
        found[size] = statistics.median(times)
    return found


def worker(task_counts: list[int], rounds: int, backend: str) -> None:
    """Measure in one of the processes; the first prints JSON."""
    torch.set_num_threads(1)
    with processes() as world:
        steps = {tasks: meta_steps(world, tasks, rounds, backend) for tasks in task_counts}
        found = {"processes": world.size, "meta_steps": steps, "all_reduce": all_reduces(10 * rounds)}
        if world.leads:
            print(json.dumps(found))


def line(x: list[float], y: list[float]) -> tuple[float, float]:
    """Return a, b ≥ 0 of y ≈ a + b x, every relative error weighing the same."""
    from scipy.optimize import nnls

    x_, y_ = np.asarray(x, dtype=float), np.asarray(y)
    (a, b), _ = nnls(np.stack([1 / y_, x_ / y_], axis=1), np.ones(len(x)))
    return float(a), float(b)


def report(found: dict[str, object]) -> None:
    """Print the measurements beside the model."""
    processes_, steps = found["processes"], {int(key): value for key, value in found["meta_steps"].items()}
    reduces = {4 * int(size): value for size, value in found["all_reduce"].items()}
    alpha, beta = line(list(reduces), list(reduces.values()))
    print(f"all-reduce: {1e6 * alpha:.0f} µs + {1e9 * beta:.2f} ns a byte")
    for size, value in reduces.items():
        print(f"  {size:>9} bytes  {1e6 * value:8.0f} µs measured  {1e6 * (alpha + beta * size):8.0f} µs by the model")
    elements = network().initial(1).shape[1] + 4  # gradient, loss, count and two flags
    print(f"a meta-step sends {elements} elements = {4 * elements} bytes (float32)")
    for which, what in enumerate(("seconds that passed", "seconds of the processor")):
        medians = {
            tasks: {who: statistics.median(time[which] for time in times) for who, times in each.items()}
            for tasks, each in steps.items()
        }
        fixed, per_task = line(list(medians), [each["one"] for each in medians.values()])
        print(f"\n{what}; one process: {1e3 * fixed:.1f} ms + {1e3 * per_task:.3f} ms a task")
        print(f"{'tasks':>6}{'one, ms':>10}{'all, ms':>10}{'model, ms':>11}{'ratio':>8}")
        for tasks, each in medians.items():
            model = fixed + per_task * -(-tasks // processes_) + alpha + beta * 4 * elements
            print(
                f"{tasks:>6}{1e3 * each['one']:10.1f}{1e3 * each['all']:10.1f}{1e3 * model:11.1f}"
                f"{each['one'] / each['all']:8.2f}"
            )


def main() -> None:
    """Start the processes, and print what they measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tasks", type=int, nargs="+", default=[4, 16, 64, 128])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--backend", default="eager", choices=["eager", "compile"])
    parser.add_argument("--json", action="store_true", help="print every time measured, too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.tasks, arguments.rounds, arguments.backend)
        return
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    own = [
        __file__,
        "--worker",
        "--backend",
        arguments.backend,
        "--rounds",
        str(arguments.rounds),
        "--tasks",
        *map(str, arguments.tasks),
    ]
    found = subprocess.run(
        [*launch, "--nproc-per-node", str(arguments.processes), *own],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
    )
    measured = json.loads(found.stdout)
    report(measured)
    if arguments.json:
        print(json.dumps(measured))


if __name__ == "__main__":
    main()
