"""The studies by name."""

from __future__ import annotations

from . import efficiency, imaml_accuracy, implicit_to_flow, meta_gradient_error
from .assumptions import ASSUMPTIONS
from .failure_modes import FAILURE_MODES
from .figure2 import FIG2_ALPINE, FIG2_COSMIXTURE
from .inner_optimisers import INNER_OPTIMISERS
from .memory_reduced_convergence import CONVERGENCE
from .memory_reduced_memory import MEMORY
from .omniglot_table import OMNIGLOT_TABLE
from .photograph_tables import MEMORY_REDUCED_TABLE, MINI_IMAGENET_TABLE
from .precision import PRECISION
from .ratings_tables import CF_TABLE1, CF_TABLE2
from .study import Study

STUDIES: dict[str, Study] = {
    "fig2-cosmixture": FIG2_COSMIXTURE,
    "fig2-alpine": FIG2_ALPINE,
    "cf-table1": CF_TABLE1,
    "cf-table2": CF_TABLE2,
    "imaml-accuracy": Study(
        "iMAML's Fig. 2a: error of the meta-gradient on linear regression",
        imaml_accuracy.run,
        imaml_accuracy.BUDGETS,
        on_gpu=True,
    ),
    "implicit-to-flow": Study(
        "From iMAML (one implicit step) to the exact flow: gradient distance and test error",
        implicit_to_flow.run,
        implicit_to_flow.BUDGETS,
        side_by_side=True,
        on_gpu=True,
    ),
    "meta-gradient-error": Study(
        "A-MAML's Tables 4 and 5: error of gradients against the number of states",
        meta_gradient_error.run,
        meta_gradient_error.BUDGETS,
    ),
    "efficiency": Study(
        "A-MAML's Figs. 3 and 4, iMAML's Fig. 2b: seconds and memory against inner steps",
        efficiency.run,
        efficiency.BUDGETS,
        on_gpu=True,
    ),
    "assumptions": ASSUMPTIONS,
    "precision": PRECISION,
    "failure-modes": FAILURE_MODES,
    "inner-optimisers": INNER_OPTIMISERS,
    "memory-reduced-convergence": CONVERGENCE,
    "memory-reduced-memory": MEMORY,
    "omniglot-table": OMNIGLOT_TABLE,
    "mini-imagenet-table": MINI_IMAGENET_TABLE,
    "memory-reduced-table": MEMORY_REDUCED_TABLE,
}
