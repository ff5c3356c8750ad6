"""ODE and Krylov solvers on rows: steppers and their transposes, loops, adjoints, batched linear solvers."""

from .adjoints import Adjoint, Checkpointed, Cotangents, Discrete, Solve
from .butcher import ButcherTableau
from .chebyshev import Chebyshev
from .continuous import Backsolve, Interpolating
from .implicit import SDIRK2, ImplicitEuler
from .integrate import UniformGrid, integrate
from .ivp import Solution, solve_ivp
from .linear import LinearInfo, conjugate_gradient, lanczos, neumann_series
from .odeint import odeint, odeint_adjoint, odeint_dense, odeint_event
from .paths import OwnSteps, UniformSteps
from .row_steps import RowSteps
from .runge_kutta import RungeKutta
from .solution import SolverError, Status
from .spectrum import Guard
from .steady import SteadyState
from .step_size import Constant, PIController
from .stepper import VJP, DifferentiableField, Field, RowField, Step, Stepper
from .tableaus import TABLEAUS

__all__ = [
    "SDIRK2",
    "TABLEAUS",
    "VJP",
    "Adjoint",
    "Backsolve",
    "ButcherTableau",
    "Chebyshev",
    "Checkpointed",
    "Constant",
    "Cotangents",
    "DifferentiableField",
    "Discrete",
    "Field",
    "Guard",
    "ImplicitEuler",
    "Interpolating",
    "LinearInfo",
    "OwnSteps",
    "PIController",
    "RowField",
    "RowSteps",
    "RungeKutta",
    "Solution",
    "Solve",
    "SolverError",
    "Status",
    "SteadyState",
    "Step",
    "Stepper",
    "UniformGrid",
    "UniformSteps",
    "conjugate_gradient",
    "integrate",
    "lanczos",
    "neumann_series",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "solve_ivp",
]
