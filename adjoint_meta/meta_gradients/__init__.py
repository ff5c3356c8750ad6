"""Methods: each an inner solve and the pullback of the query cotangent through it."""

from .adjoint import AdjointMAML
from .base import Adapted, Hyper, MetaGradient, Method, Pullback, meta_gradient
from .bilevel import aid_bio, itd_bio, stoc_bio
from .first_order import FOMAML, Reptile
from .implicit import ImplicitMAML
from .memory_reduced import MemoryReduced
from .unrolled import ANIL, MAML

__all__ = [
    "ANIL",
    "FOMAML",
    "MAML",
    "Adapted",
    "AdjointMAML",
    "Hyper",
    "ImplicitMAML",
    "MemoryReduced",
    "MetaGradient",
    "Method",
    "Pullback",
    "Reptile",
    "aid_bio",
    "itd_bio",
    "meta_gradient",
    "stoc_bio",
]
