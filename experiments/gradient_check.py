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
    """Compare ``learner.meta_gradient`` with `reverse_mode`, learned hyperparameters included.

    Args:
        learner: in float64.
        tasks: in float64, a few of them: the reference keeps the graph of every inner step.

    Raises:
        SolverError: if the method's inner solve fails.
    """
    result = learner.meta_gradient(tasks)
    found = {**result.grad, **{f"learned {name}": value for name, value in result.hyper.items()}}
    exact = reverse_mode(learner, tasks)
    flat, reference = (torch.cat([g[name].flatten() for name in exact]) for g in (found, exact))
    return Comparison(
        exact=isinstance(learner.method, MAML | AdjointMAML),
        error=_relative(flat, reference),
        errors={name: _relative(found[name], exact[name]) for name in exact},
        cosine=float(torch.nn.functional.cosine_similarity(flat, reference, dim=0)),
        stats={name: result.stats[name] for name in ("n_grad", "n_hvp")},
    )


def reverse_mode(learner: MetaLearner, tasks: TaskBatch) -> Weights:
    """Return the gradient of the mean query loss by one reverse sweep through all inner steps of all tasks.

    It shares nothing with the engine: a loop over tasks, the module called on dictionaries of weights, one graph.
    Approximate methods are compared with the exact gradient of their own inner steps.
    """
    parameters: Weights = {name: p for name, p in learner.model.named_parameters() if p.requires_grad}
    hyper = {name: value.clone().requires_grad_() for name, value in learner.hyper.items()}
    start = {name: parameters[name] for name in learner.adapted_names}
    total = torch.zeros((), dtype=torch.float64, device=tasks.support.x.device)
    for task in range(len(tasks)):
        support, query = (
            partial(_loss, learner, parameters, batch.x[task], batch.y[task]) for batch in (tasks.support, tasks.query)
        )
        end = _inner_steps(learner.method, hyper, start, support)
        total = total + query(end) / len(tasks)
    wanted = {**parameters, **{f"learned {name}": value for name, value in hyper.items()}}
    gradients = torch.autograd.grad(total, list(wanted.values()))
    return dict(zip(wanted, gradients, strict=True))


def _loss(learner: MetaLearner, parameters: Weights, x: Tensor, y: Tensor, weights: Weights) -> Tensor:
    return learner.loss(functional_call(learner.model, {**parameters, **weights}, (x,)), y)


def _inner_steps(method: Method, hyper: Weights, start: Weights, loss: Callable[[Weights], Tensor]) -> Weights:
    proximal = hyper.get("proximal", getattr(method, "proximal", 0.0))
    rates = _rates(hyper, start)

    def slope(weights: Weights) -> Weights:
        gradients = torch.autograd.grad(loss(weights), list(weights.values()), create_graph=True)
        return {
            name: -rates[name] * gradient - proximal * (weights[name] - start[name])
            for name, gradient in zip(weights, gradients, strict=True)
        }

    if isinstance(method, AdjointMAML):
        solver, steps = method.solver, method.equal_steps
        if steps is None or solver not in TABLEAUS or method.adjoint in ("interpolating", "backsolve"):
            raise ValueError(
                f"the check repeats equal steps of an explicit solver with an exact adjoint; got solver={solver!r}, "
                f"steps={method.steps}, adjoint={method.adjoint!r}. Give steps, and adjoint='discrete'"
            )
        h = hyper.get("horizon", method.horizon) / steps
    else:
        solver, steps = "euler", int(getattr(method, "steps", 0))
        h = hyper.get("inner_lr", getattr(method, "inner_lr", 0.0))
    a, b, _ = TABLEAUS[solver].floats
    weights = start
    for _ in range(steps):
        slopes: list[Weights] = []
        for row in a:
            slopes.append(slope(_advance(weights, h, row, slopes)))
        weights = _advance(weights, h, b, slopes)
    return weights


def _rates(hyper: Weights, start: Weights) -> Weights:
    """Return each parameter's rates; the flat vector of them has the order of the adapted parameters."""
    if "rates" not in hyper:
        return {name: torch.ones_like(value) for name, value in start.items()}
    parts = hyper["rates"].split([value.numel() for value in start.values()])
    return {name: part.view_as(value) for part, (name, value) in zip(parts, start.items(), strict=True)}


def _advance(weights: Weights, h: float | Tensor, coefficients: tuple[float, ...], slopes: list[Weights]) -> Weights:
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
