"""A failed solve whose data are to blame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adjoint_meta.solvers import SolverError

from .tasks import Batch


@contextmanager
def blaming_data(support: Batch, query: Batch | None = None) -> Iterator[None]:
    """Blame the data for a failed solve when the data are to blame; a solve that succeeds costs nothing."""
    try:
        yield
    except SolverError:
        for what, batch in (("support", support), ("query", query)):
            for name, value in () if batch is None else (("x", batch.x), ("y", batch.y)):
                bad = int((~torch.isfinite(value)).sum())
                if bad:
                    raise ValueError(
                        f"{what}.{name} holds {bad} value{'s' if bad > 1 else ''} that {'are' if bad > 1 else 'is'} "
                        "NaN or infinite; remove those points, or replace them, before adapting"
                    ) from None
        raise
