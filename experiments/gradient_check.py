"""Meta-gradients of the methods against exact reverse mode through every inner step, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from adjoint_meta.learner import MetaLearner
from adjoint_meta.meta_gradients import MAML, AdjointMAML, ImplicitMAML, Method
from adjoint_meta.solvers import TABLEAUS
from adjoint_meta.tasks import TaskBatch

Weights = dict[str, Tensor]

# Rounding of a few hundred float64 steps; a wrong formula is off by many orders more.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Comparison:
    """How far a method's meta-gradient is from reverse mode through the same inner steps.

    Args:
        exact: whether the method claims to be exact.
        error: ‖g − g_exact‖ / ‖g_exact‖ over all parameters.
        errors: the same for each parameter.
        cosine: of the angle between the two.
        stats: evaluations spent.
    """

    exact: bool
    error: float
    errors: dict[str, float]
    cosine: float
    stats: dict[str, int]

    @property
    def failed(self) -> bool:
        """Whether an exact method is off by more than rounding."""
        return self.exact and not self.error < ROUNDING


def compare(learner: MetaLearner, tasks: TaskBatch) -> Comparison:
    """Compare ``learner.meta_gradient`` with `reverse_mode`.

    Args:
        learner: in float64.
        tasks: in float64, a few of them: the reference keeps the graph of every inner step.
    """
    found = learner.meta_gradient(tasks)
    exact = reverse_mode(learner, tasks)
    flat, reference = (torch.cat([g[name].flatten() for name in exact]) for g in (found.grad, exact))
    return Comparison(
        exact=isinstance(learner.method, MAML | AdjointMAML),
        error=_relative(flat, reference),
        errors={name: _relative(found.grad[name], exact[name]) for name in exact},
        cosine=float(torch.nn.functional.cosine_similarity(flat, reference, dim=0)),
        stats={name: found.stats[name] for name in ("n_grad", "n_hvp")},
    )


def reverse_mode(learner: MetaLearner, tasks: TaskBatch) -> Weights:
    """Return the gradient of the mean query loss by one reverse sweep through all inner steps of all tasks.

    It shares nothing with the engine: a loop over tasks, the module called on dictionaries of weights, one graph.
    Approximate methods are compared with the exact gradient of their own inner steps.
    """
    parameters: Weights = {name: p for name, p in learner.model.named_parameters() if p.requires_grad}
    adapted = [name for name in parameters if name in learner.adapted_names]
    total = torch.zeros((), dtype=torch.float64, device=tasks.support.x.device)
    for task in range(len(tasks)):
        support, query = (
            partial(_loss, learner, parameters, batch.x[task], batch.y[task]) for batch in (tasks.support, tasks.query)
        )
        end = _inner_steps(learner.method, {name: parameters[name] for name in adapted}, support)
        total = total + query(end) / len(tasks)
    gradients = torch.autograd.grad(total, list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


def _loss(learner: MetaLearner, parameters: Weights, x: Tensor, y: Tensor, weights: Weights) -> Tensor:
    return learner.loss(functional_call(learner.model, {**parameters, **weights}, (x,)), y)


def _inner_steps(method: Method, start: Weights, loss: Callable[[Weights], Tensor]) -> Weights:
    proximal = getattr(method, "proximal", 0.0)

    def slope(weights: Weights) -> Weights:
        gradients = torch.autograd.grad(loss(weights), list(weights.values()), create_graph=True)
        return {
            name: -gradient - proximal * (weights[name] - start[name])
            for (name, gradient) in zip(weights, gradients, strict=True)
        }

    if isinstance(method, AdjointMAML):
        solver, h = method.solver, method.horizon / method.steps
    else:
        solver, h = "euler", float(getattr(method, "inner_lr", 0.0))
    a, b, _ = TABLEAUS[solver].floats
    weights = start
    for _ in range(int(getattr(method, "steps", 0))):
        slopes: list[Weights] = []
        for row in a:
            slopes.append(slope(_advance(weights, h, row, slopes)))
        weights = _advance(weights, h, b, slopes)
    return weights


def _advance(weights: Weights, h: float, coefficients: tuple[float, ...], slopes: list[Weights]) -> Weights:
    return {
        name: value + h * sum((c * k[name] for c, k in zip(coefficients, slopes, strict=True)), torch.zeros_like(value))
        for name, value in weights.items()
    }


def _relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def note(method: Method) -> str:
    """Return why a method's gradient is or is not exact, in a few words."""
    if isinstance(method, MAML | AdjointMAML):
        return "exact: the transpose of the steps taken"
    if isinstance(method, ImplicitMAML):
        return f"implicit: exact at the minimiser, {method.steps} steps and {method.cg_steps} CG steps away"
    return "first order: an approximation by design"
