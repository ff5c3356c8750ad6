"""What a world of processes finds, as a script under torchrun and, for a process alone, as a module.

The script writes ``found-RANK.pt`` into the folder it is given.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import torch
from problems import mlp, regression
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adjoint_meta import MAML, AdjointMAML, ImplicitMAML, MetaLearner, Reptile, SolverError, StackedTasks
from adjoint_meta.distributed import World, processes
from adjoint_meta.evaluation import adam_curve, evaluate
from adjoint_meta.training import Trainer, TrainingPlan

TASKS = 5  # a meta-step; odd, so that shares differ
STEPS = {"rk4": 25, "dopri5": 8, "rkc": 6, "head": 25, "imaml": 6, "reptile": 25}

LEARNERS: dict[str, dict[str, Any]] = {
    "rk4": {"method": AdjointMAML(horizon=0.8, steps=2, learn=("horizon", "rates"))},
    "dopri5": {"method": AdjointMAML(horizon=0.5, solver="dopri5", learn=("horizon", "proximal"), proximal=0.1)},
    "rkc": {"method": AdjointMAML(horizon=0.5, solver="rkc", rtol=1e-2)},
    "head": {"method": MAML(steps=3, inner_lr=0.1), "adapt": "2.*"},
    "imaml": {"method": ImplicitMAML(proximal=2.0, steps=20, inner_lr=0.1, cg_steps=8)},
    "reptile": {"method": Reptile(steps=3, inner_lr=0.1)},
}  # fmt: skip


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def learner(name: str, seed_by: torch.Generator | None = None) -> MetaLearner:
    return MetaLearner(mlp(seed_by or generator()), nn.functional.mse_loss, **LEARNERS[name])


def tasks(count: int):
    return regression(generator(), tasks=count, points=6)


def trainer(
    learned: MetaLearner, world: World, steps: int, optimizer: str = "Adam", fails_at: int | None = None
) -> Trainer:
    source = StackedTasks(tasks(12))

    def schedule(step: int):
        share = world.share(TASKS)
        if step == fails_at and share.stop == TASKS:  # only the process that has the last task
            raise SolverError("the last task fails")
        return source.meta_batch(step, TASKS, 3, share)

    rate = {"lr": 0.02} if optimizer == "Adam" else {"lr": 0.1, "max_iter": 4}
    outer = getattr(torch.optim, optimizer)(learned.parameters(), **rate)
    return Trainer(learned, outer, schedule, TrainingPlan(steps), world=world)


def trained(training: Trainer) -> dict[str, Any]:
    losses = []
    training.observe = lambda record: losses.append(record["loss"])
    training.run()
    return {"state": copy.deepcopy(training.learner.state_dict()), "losses": losses, "progress": training.progress}


def same_as_alone(world: World) -> dict[str, dict[str, Any]]:
    """Everything that one process finds, too."""
    found = {name: trained(trainer(learner(name), world, STEPS[name])) for name in LEARNERS}
    found["lbfgs"] = trained(trainer(learner("rk4"), world, 3, "LBFGS"))
    # A failed solve is skipped, and the direction that the other processes remembered with it.
    found["skipped"] = trained(trainer(learner("dopri5"), world, 4, fails_at=2))
    judged = learner("rk4")
    for count in (1, 4, 7):
        result = evaluate(judged, tasks(count), world=world)
        curve = adam_curve(judged, tasks(count), epochs=4, every=2, world=world)
        found[f"{count} tasks"] = {"before": result.before, "after": result.after, "curve": curve}
    return found


def weights_that_differ(world: World) -> dict[str, Any]:
    """Processes that start with different weights train those of the first."""
    own = generator().manual_seed(7 + world.rank)
    return trained(trainer(learner("rk4", own), world, STEPS["rk4"]))


def data_parallel(world: World) -> dict[str, torch.Tensor]:
    """The gradients of torch's own wrapper, with shares of equal size."""
    batch = tasks(2 * world.size)
    found = {}
    for name in ("rk4", "dopri5", "head"):
        wrapped = DistributedDataParallel(learner(name))
        for _ in range(2):  # the second time from the direction that the first one left
            wrapped.zero_grad()
            wrapped(batch[world.share(len(batch))]).backward()
        found[name] = {key: p.grad for key, p in wrapped.module.named_parameters()}
    return found


def elements_sent(world: World) -> dict[str, list[int]]:
    """The sizes of the all-reduces of two meta-steps."""
    found: dict[str, list[int]] = {}
    all_reduce = torch.distributed.all_reduce
    for name in LEARNERS:
        sizes = found[name] = []
        torch.distributed.all_reduce = lambda vector, sizes=sizes: sizes.append(vector.numel()) or all_reduce(vector)
        trainer(learner(name), world, 2).run()
    torch.distributed.all_reduce = all_reduce
    return found


def stopped(world: World) -> int:
    """The meta-step at which all stop when one asks for it."""
    training = trainer(learner("rk4"), world, 9)
    training.run(lambda: world.rank == world.size - 1 and training.progress.step >= 4)
    return training.progress.step


def failures(world: World) -> dict[str, tuple[str, str, bool]]:
    """What becomes of an error on some processes: its kind and message, and whether this process reports it."""

    def fail(error: Exception, *ranks: int) -> None:
        if world.rank in ranks:
            raise error

    last, everyone = world.size - 1, range(world.size)

    def two() -> None:
        fail(SolverError("no solve"), 0)
        fail(TypeError("no type"), last)

    def measure(prediction: torch.Tensor, batch: object) -> torch.Tensor:
        fail(SolverError("far"), last)
        return prediction.mean(dim=(1, 2))

    attempts = {
        "gather": lambda: world.gather(lambda: fail(ValueError("bad"), last)),
        "first": lambda: world.first(lambda: fail(FileNotFoundError("gone"), 0)),
        "bug": lambda: world.gather(lambda: fail(KeyError("oops"), last)),
        "the worse of two": lambda: world.gather(two),
        "evaluate": lambda: evaluate(learner("rk4"), tasks(4), measure, world),
        "all": lambda: world.gather(lambda: fail(ValueError("all of us"), *everyone)),
    }
    found = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            reports = world.reports(error) if name in ("gather", "all") else None
            found[name] = (type(error).__name__, str(error), reports)
    with world.together():
        found["position"] = (world.rank, world.size, world.gather(lambda: world.rank))
    return found


def main() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with processes() as world:
        found = {
            "same": same_as_alone(world),
            "weights": weights_that_differ(world),
            "parallel": data_parallel(world),
            "sent": elements_sent(world),
            "stopped": stopped(world),
            "failures": failures(world),
        }
        torch.save(found, Path(sys.argv[1]) / f"found-{world.rank}.pt")
        os._exit(0)  # as the command line leaves


if __name__ == "__main__":
    main()
