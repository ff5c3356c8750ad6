"""Meta-gradients of the methods against reverse mode through every inner step, or through the flow, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from adjoint_meta.learner import MetaLearner
from adjoint_meta.meta_gradients import MAML, AdjointMAML, ImplicitMAML, MemoryReduced, Method
from adjoint_meta.solvers import TABLEAUS
from adjoint_meta.tasks import TaskBatch

Weights = dict[str, Tensor]

# Rounding of a few hundred float64 steps; a wrong formula is off by many orders more.
ROUNDING = 1e-9

# rk4 steps through the flow are doubled until the gradient changes by less than this; its error is a sixteenth then.
SETTLED, FEWEST, MOST = 1e-6, 32, 1024


@dataclass(frozen=True)
class Comparison:
    """How far a method's meta-gradient is from reverse mode through the same inner steps, or through the flow.

    Args:
        exact: whether the method claims to be exact, and its steps could be repeated.
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
    flat, reference = _flat({name: found[name] for name in exact}), _flat(exact)
    return Comparison(
        exact=isinstance(learner.method, MAML | AdjointMAML) and repeatable(learner.method),
        error=_relative(flat, reference),
        errors={name: _relative(found[name], exact[name]) for name in exact},
        cosine=float(torch.nn.functional.cosine_similarity(flat, reference, dim=0)),
        stats={name: result.stats[name] for name in ("n_grad", "n_hvp")},
    )


def repeatable(method: Method) -> bool:
    """Return whether reverse mode can repeat the inner steps: equal explicit ones, and no other costate equation."""
    if not isinstance(method, AdjointMAML):
        return True
    continuous = method.adjoint in ("interpolating", "backsolve")
    return method.equal_steps is not None and method.solver in TABLEAUS and not continuous


def reverse_mode(learner: MetaLearner, tasks: TaskBatch) -> Weights:
    """Return the gradient of the mean query loss by reverse sweeps through all inner steps, task by task.

    It shares nothing with the engine: a loop over tasks, the module called on dictionaries of weights, one graph a
    task. Approximate methods are compared with the exact gradient of their own inner steps, and steps that cannot be
    repeated with the flow: with rk4 steps, doubled until the gradient settles.

    Raises:
        ValueError: if the horizon is infinite, or the gradient does not settle.
    """
    method = learner.method
    if isinstance(method, AdjointMAML) and method.horizon == math.inf:
        raise ValueError("reverse mode cannot go through an infinite flow; check it with a finite horizon")
    if repeatable(method):
        if isinstance(method, AdjointMAML):
            return _sweeps(learner, tasks, method.solver, method.equal_steps or 0)
        return _sweeps(learner, tasks, "euler", int(getattr(method, "steps", 0)))
    steps, found = FEWEST, _sweeps(learner, tasks, "rk4", FEWEST)
    while steps < MOST:
        steps, before, found = 2 * steps, found, _sweeps(learner, tasks, "rk4", 2 * steps)
        if _relative(_flat(before), _flat(found)) < SETTLED:
            return found
    raise ValueError(
        f"the flow's gradient has not settled to {SETTLED:g} with {MOST} steps of rk4; check it with a shorter horizon"
    )


def _sweeps(learner: MetaLearner, tasks: TaskBatch, solver: str, steps: int) -> Weights:
    parameters: Weights = {name: p for name, p in learner.model.named_parameters() if p.requires_grad}
    hyper = {name: value.clone().requires_grad_() for name, value in learner.hyper.items()}
    start = {name: parameters[name] for name in learner.adapted_names}
    wanted = {**parameters, **{f"learned {name}": value for name, value in hyper.items()}}
    total = {name: torch.zeros_like(value) for name, value in wanted.items()}
    for task in range(len(tasks)):
        support, query = (
            partial(_loss, learner, parameters, batch.x[task], batch.y[task]) for batch in (tasks.support, tasks.query)
        )
        end = _inner_steps(learner.method, solver, steps, hyper, start, support)
        gradients = torch.autograd.grad(query(end) / len(tasks), list(wanted.values()))
        total = {name: value + g for (name, value), g in zip(total.items(), gradients, strict=True)}
    return total


def _loss(learner: MetaLearner, parameters: Weights, x: Tensor, y: Tensor, weights: Weights) -> Tensor:
    return learner.loss(functional_call(learner.model, {**parameters, **weights}, (x,)), y)


def _inner_steps(
    method: Method, solver: str, steps: int, hyper: Weights, start: Weights, loss: Callable[[Weights], Tensor]
) -> Weights:
    proximal = hyper.get("proximal", getattr(method, "proximal", 0.0))
    rates = _rates(hyper, start)

    def slope(weights: Weights) -> Weights:
        gradients = torch.autograd.grad(loss(weights), list(weights.values()), create_graph=True)
        return {
            name: -rates[name] * gradient - proximal * (weights[name] - start[name])
            for name, gradient in zip(weights, gradients, strict=True)
        }

    if isinstance(method, AdjointMAML):
        h = hyper.get("horizon", method.horizon) / steps
    else:
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


def _flat(parts: Weights) -> Tensor:
    return torch.cat([part.flatten() for part in parts.values()])


def _relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def note(method: Method) -> str:
    """Return why a method's gradient is or is not exact, in a few words."""
    if not repeatable(method):
        return "beside the flow itself: what the steps and the adjoint leave out"
    if isinstance(method, MAML | AdjointMAML):
        return "exact: the transpose of the steps taken"
    if isinstance(method, ImplicitMAML):
        return f"implicit: exact at the minimiser, {method.steps} steps and {method.cg_steps} CG steps away"
    if isinstance(method, MemoryReduced):
        return f"implicit: exact for what is shared, at the minimiser; {method.steps} and {method.cg_steps} steps away"
    return "first order: an approximation by design"
