"""The bilevel optimisers that memory-reduced meta-learning is compared with, as configurations of the same pieces."""

from __future__ import annotations

from .memory_reduced import MemoryReduced
from .unrolled import MAML


def itd_bio(steps: int = 20, inner_lr: float = 0.05) -> MAML:
    """Return ITD-BiO: back-propagation through the gradient steps on the head.

    The head's start gets its gradient too; leave it out of the optimiser where it is to stay fixed, as the authors'
    code does. Ji, Yang, Liang, Bilevel Optimization: Convergence Analysis and Enhanced Design, ICML 2021.
    """
    return MAML(steps, inner_lr)


def aid_bio(tasks: int, steps: int = 20, inner_lr: float = 0.05, cg_steps: int = 20) -> MemoryReduced:
    """Return AID-BiO: heads and CG start from where the meta-step before left them (Ji, Yang, Liang 2021).

    Args:
        tasks: how many there are; every meta-step takes all of them, in the same order.
        steps: number of inner gradient steps.
        inner_lr: their size.
        cg_steps: most CG steps.
    """
    return MemoryReduced(steps, inner_lr, cg_steps=cg_steps, warm_start=tasks)


def stoc_bio(
    steps: int = 20, inner_lr: float = 0.05, products: int = 20, scale: float | None = None, *, tasks: int = 0
) -> MemoryReduced:
    """Return stocBiO: a Neumann series in place of CG (Ji, Yang, Liang 2021).

    The authors take each product on other support points; here each takes all points of its task.

    Args:
        steps: number of inner gradient steps.
        inner_lr: their size.
        products: with the Hessian.
        scale: η; ``inner_lr`` when ``None``.
        tasks: how many return at each meta-step, whose heads then go on from where they were; 0 starts anew.
    """
    return MemoryReduced(steps, inner_lr, inverse="neumann", cg_steps=products, neumann_scale=scale, warm_start=tasks)
