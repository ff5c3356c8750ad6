"""What `adjoint-meta doctor` looks at."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from typing import Any

import torch

import adjoint_meta

from .data.locate import search_path
from .gradient_check import compare
from .prepare import prepare
from .registry import resolve

PACKAGES = ("torchvision", "torchdiffeq", "numpy", "scipy", "matplotlib", "tensorboard")


def diagnose() -> dict[str, Any]:
    """Return versions, devices, data directories and the result of a small gradient check."""
    devices = ["cpu"] + [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": {
            "adjoint-meta": adjoint_meta.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _version(name) for name in PACKAGES},
        },
        "devices": devices,
        "threads": torch.get_num_threads(),
        "data": [str(folder) for folder in search_path(None)],
        "gradient_check": _check(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check() -> dict[str, Any]:
    started = time.perf_counter()
    prepared = prepare(resolve({"dtype": "float64", "model": {"width": 8}}, "sine"))
    tasks = prepared.place(prepared.experiment.train.meta_batch(0, 2, 0))
    found = compare(prepared.learner, tasks)
    return {"passed": not found.failed, "error": found.error, "seconds": time.perf_counter() - started}
