"""Runs of a few meta-steps, and what is the same in two of them."""

import json

import torch

from adjoint_meta import checkpoint
from adjoint_meta.experiments.registry import resolve
from adjoint_meta.experiments.run import train
from adjoint_meta.experiments.run_directory import read_metrics

SMALL = {
    "meta_steps": 14,
    "checkpoint_every": 4,
    "tasks_per_step": 3,
    "model": {"width": 6},
    "task": {"train_tasks": 12, "validation_tasks": 4, "test_tasks": 5, "test_queries": 20},
    "method": {"horizon": 0.6, "steps": 3},
    # a rate that grows until it spoils what was learned, so that the last state is not the best one
    "optimizer": {"lr": 0.02, "options": {"betas": [0.8, 0.9]}},
    "scheduler": {"name": "ExponentialLR", "options": {"gamma": 1.3}},
    "clip_norm": 0.5,
    "validation": {"every": 2},
    "test": {"adam_epochs": 100},
}


def small(**changes):
    return resolve({**SMALL, **changes}, "sine")


def started(config, directory, **options):
    """Train from a known state of the global generator, which belongs to the checkpoint too."""
    torch.manual_seed(5)
    return train(config, directory, **options)


def strict(text):
    """Parse JSON as the standard has it, without NaN and Infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def without_time(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def same(one, other):
    """Whether two checkpoints hold the same but for the seconds spent."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "seconds")
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def assert_same_run(one, other, but=()):
    """Everything but times, memory and the directory's own name is the same to the last bit."""
    trainers = [checkpoint.load(each.checkpoint)["trainer"] for each in (one, other)]
    for key in (trainers[0].keys() | trainers[1].keys()) - set(but):
        assert same(trainers[0][key], trainers[1][key]), key
    assert without_time(read_metrics(one.metrics)) == without_time(read_metrics(other.metrics))
    summaries = [strict(each.summary.read_text()) for each in (one, other)]
    for each in summaries:
        for key in ("seconds", "seconds_per_meta_step", "peak_memory_bytes", "run_dir"):
            del each[key]
    assert summaries[0] == summaries[1]
