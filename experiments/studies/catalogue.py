"""The studies by name."""

from __future__ import annotations

from .assumptions import ASSUMPTIONS
from .failure_modes import FAILURE_MODES
from .figure2 import FIG2_ALPINE, FIG2_COSMIXTURE
from .inner_optimisers import INNER_OPTIMISERS
from .precision import PRECISION
from .ratings_tables import CF_TABLE1, CF_TABLE2
from .study import Study

STUDIES: dict[str, Study] = {
    "fig2-cosmixture": FIG2_COSMIXTURE,
    "fig2-alpine": FIG2_ALPINE,
    "cf-table1": CF_TABLE1,
    "cf-table2": CF_TABLE2,
    "assumptions": ASSUMPTIONS,
    "precision": PRECISION,
    "failure-modes": FAILURE_MODES,
    "inner-optimisers": INNER_OPTIMISERS,
}
