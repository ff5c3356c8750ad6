"""ODE and Krylov solvers on rows: tableaus, steps and their transposes, adjoints, batched linear solvers."""

from .adjoints import Adjoint, Checkpointed, Cotangents, Discrete, Solve
from .integrate import UniformGrid, integrate
from .linear import LinearInfo, conjugate_gradient, neumann_series
from .runge_kutta import VJP, DifferentiableField, Field, Step, step, transpose
from .solution import SolverError, Status
from .tableaus import TABLEAUS, ButcherTableau

__all__ = [
    "TABLEAUS",
    "VJP",
    "Adjoint",
    "ButcherTableau",
    "Checkpointed",
    "Cotangents",
    "DifferentiableField",
    "Discrete",
    "Field",
    "LinearInfo",
    "Solve",
    "SolverError",
    "Status",
    "Step",
    "UniformGrid",
    "conjugate_gradient",
    "integrate",
    "neumann_series",
    "step",
    "transpose",
]
