"""Peak extra memory of one meta-gradient against the number of inner steps, each in a fresh process.

Activations must not grow with the steps: what grows is the stored states, 4 bytes × tasks × P × steps × stages, which
the last column shows, and with a checkpointed adjoint only √steps of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

TASKS, POINTS = 5, 1000
UNROLLED = "unrolled autograd"


def measure(name: str, steps: int) -> dict[str, float]:
    """Return the peak in MiB above that of a 2-step meta-gradient of the same kind, in this process."""
    import problem

    torch.set_num_threads(1)
    batch = problem.tasks(TASKS, POINTS)

    def run(steps: int) -> None:
        if name == UNROLLED:
            problem.unrolled(steps, batch).backward()
        else:
            problem.learner(problem.methods(steps)[name]).meta_gradient(batch)

    run(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(steps)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parameters = problem.learner(problem.methods(1)["maml"]).initial(1).shape[1]
    stages = {"maml": 1, "adjoint heun": 2}.get(name, 0)
    return {"extra": (after - before) / 1024, "states": 4 * TASKS * parameters * steps * stages / 2**20}


def main() -> None:
    """Print the table and, with --out, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 500, 5000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "STEPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return

    import problem

    rows: dict[str, dict[int, dict[str, float]]] = {}
    print(f"peak extra memory in MiB of one meta-gradient, {TASKS} tasks × {POINTS} points, 2×32 tanh, float32")
    print(f"{'':28}" + "".join(f"{steps:>9}" for steps in arguments.steps) + "   steps   (stored states)")
    for name in [UNROLLED, *problem.methods(1)]:
        rows[name] = {}
        print(f"{name:28}", end="", flush=True)
        for steps in arguments.steps:
            if name == UNROLLED and steps > 500:  # 2.4 MiB a step: it would need more than 10 GiB
                print(f"{'–':>9}", end="", flush=True)
                continue
            command = [sys.executable, __file__, "--one", name, str(steps)]
            rows[name][steps] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            print(f"{rows[name][steps]['extra']:9.1f}", end="", flush=True)
        print("           " + " ".join(f"{row['states']:.1f}" for row in rows[name].values()))
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
