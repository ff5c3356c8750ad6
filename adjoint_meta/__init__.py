"""adjoint-meta: meta-learning whose inner adaptation is a gradient flow and whose meta-gradient is its adjoint."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout the sibling folders solvers/, experiments/ and cli/ are part of this package, installed or not.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "setup.cfg").is_file() and str(_ROOT) not in __path__:
    __path__.append(str(_ROOT))

if TYPE_CHECKING:
    from .hessian import HessianOperator, hvp
    from .learner import MetaLearner
    from .meta_gradients import (
        ANIL,
        FOMAML,
        MAML,
        AdjointMAML,
        ImplicitMAML,
        MemoryReduced,
        MetaGradient,
        Method,
        Reptile,
    )
    from .solvers.solution import SolverError
    from .tasks import Batch, StackedTasks, TaskBatch, TaskSource

# Looked up on first use: `adjoint-meta --help` lives below this package and must not wait for torch.
_HOMES = {
    "hessian": ("HessianOperator", "hvp"),
    "learner": ("MetaLearner",),
    "meta_gradients": (
        *("ANIL", "FOMAML", "MAML", "AdjointMAML", "ImplicitMAML", "MemoryReduced", "Reptile"),
        *("MetaGradient", "Method"),
    ),
    "tasks": ("Batch", "StackedTasks", "TaskBatch", "TaskSource"),
    "solvers.solution": ("SolverError",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ANIL",
    "FOMAML",
    "MAML",
    "AdjointMAML",
    "Batch",
    "HessianOperator",
    "ImplicitMAML",
    "MemoryReduced",
    "MetaGradient",
    "MetaLearner",
    "Method",
    "Reptile",
    "SolverError",
    "StackedTasks",
    "TaskBatch",
    "TaskSource",
    "hvp",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
