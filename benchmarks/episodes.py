"""Episodes a second on one CPU core: what the sampler of few-shot tasks costs, drawing and assembling apart."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from adjoint_meta.experiments.data.image_loading import load_images
from adjoint_meta.experiments.few_shot import Episodes

SETTINGS = ((5, 1, 1), (5, 1, 15), (5, 5, 15), (20, 1, 1), (20, 1, 15))


def seconds(call: Callable[[int], object], patience: float) -> float:
    """Return the median time of a call, which is given its number, over ``patience`` seconds after a first one."""
    call(0)
    taken: list[float] = []
    while sum(taken) < patience:
        started = time.perf_counter()
        call(len(taken) + 1)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def main() -> None:
    """Print a table: meta-batches as training asks for them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="glyphs")
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--patience", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    classes = load_images(options.images)["train"]
    print("ways  shots  queries  episodes/s  drawing µs  in all µs")
    numbers = np.arange(options.tasks, dtype=np.uint64)
    for ways, shots, queries in SETTINGS:
        # Rotations need square images with no natural way up, which characters are.
        episodes = Episodes(classes, ways, shots, queries, seed=0, rotations=classes.shape[0] == 1)
        drawing = seconds(lambda _, made=episodes: made.draw(numbers), options.patience)
        whole = seconds(lambda step, made=episodes: made.meta_batch(step, options.tasks, 0), options.patience)
        micro = (1e6 * each / options.tasks for each in (drawing, whole))
        print(f"{ways:4} {shots:6} {queries:8} {options.tasks / whole:11,.0f} {next(micro):11.1f} {next(micro):10.1f}")


if __name__ == "__main__":
    main()
