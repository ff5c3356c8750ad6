"""TensorBoard events of a run, where the extra is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def events_writer(folder: Path, step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a writer of the records that follow a meta-step; it does nothing when the extra is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        yield lambda record: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=step) as writer:

        def write(record: dict[str, Any]) -> None:
            for name in ("loss", "grad_norm", "validation", "lr"):
                if record.get(name) is not None:
                    writer.add_scalar(name, record[name], record["step"])

        yield write
