"""Methods: each an inner solve and the pullback of the query cotangent through it."""

from .adjoint import AdjointMAML
from .base import Adapted, Hyper, MetaGradient, Method, Pullback, meta_gradient
from .first_order import FOMAML, Reptile
from .implicit import ImplicitMAML
from .unrolled import ANIL, MAML

__all__ = [
    "ANIL",
    "FOMAML",
    "MAML",
    "Adapted",
    "AdjointMAML",
    "Hyper",
    "ImplicitMAML",
    "MetaGradient",
    "Method",
    "Pullback",
    "Reptile",
    "meta_gradient",
]
