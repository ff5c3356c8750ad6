"""Seconds of one meta-gradient, every method against plain unrolling by autograd, in one process, medians."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import problem

import adjoint_meta as am


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def unrolled(steps: int, batch: am.TaskBatch) -> None:
    """Take the reference's gradient."""
    problem.unrolled(steps, batch).backward()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    batch = problem.tasks(arguments.tasks, 100)
    print(f"one meta-gradient, {arguments.tasks} tasks × 100 points: milliseconds (ratio to unrolled MAML)")
    print(f"{'':28}" + "".join(f"{steps:>9} steps" for steps in arguments.steps))
    reference = [seconds(partial(unrolled, steps, batch), arguments.repeats) for steps in arguments.steps]
    print(f"{'unrolled autograd':28}" + "".join(f"{1000 * t:8.0f} (1.00)" for t in reference))
    for name in problem.methods(1):
        times = [
            seconds(partial(problem.learner(problem.methods(steps)[name]).meta_gradient, batch), arguments.repeats)
            for steps in arguments.steps
        ]
        cells = (f"{1000 * t:8.0f} ({t / r:.2f})" for t, r in zip(times, reference, strict=True))
        print(f"{name:28}" + "".join(cells))


if __name__ == "__main__":
    main()
