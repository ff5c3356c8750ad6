"""`adjoint-meta train`, in this process or as one of its own."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def call(invoke):
    def run(*arguments, settings=()):
        assigned = [part for setting in settings for part in ("--set", setting)]
        return invoke("train", *arguments, *assigned)

    return run


@pytest.fixture
def start(root):
    """Start `adjoint-meta train` as a process; whatever is left of it at the end is killed."""
    started = []

    def launch(*arguments, settings=(), **options):
        assigned = [part for setting in settings for part in ("--set", setting)]
        process = subprocess.Popen(
            [sys.executable, "-m", "adjoint_meta.cli", "train", *map(str, arguments), *assigned],
            **{
                "cwd": root,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                "env": {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "TERM": "xterm"},
                **options,
            },
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()
