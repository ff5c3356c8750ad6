"""The meta-gradients of few-shot learning in plain torch, task by task, as the methods' authors write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .workloads import INNER_LR, Placed, flat

Weights: TypeAlias = Mapping[str, Tensor]
# The loss of one task's support or query as a function of what adapts.
_Loss: TypeAlias = Callable[[Weights], Tensor]

# Most products with the Hessian, and the residual below which CG stops, of the authors of Algorithm 1.
CG_STEPS, CG_TOL = 20, 1e-8
# They take none; but a head with more features than support points then has no bounded v, here nor there.
DAMPING = 0.1


def plain_maml(placed: Placed, steps: int) -> Tensor:
    """Return MAML's gradient: all parameters adapt, the graph of every step is kept (Finn, Abbeel, Levine 2017)."""
    start = dict(placed.model.named_parameters())
    return _mean(placed, lambda task: _unrolled(*_losses(placed, placed.model, task), start, steps))


def plain_itd(placed: Placed, steps: int) -> Tensor:
    """Return ITD-BiO's gradient with the whole network in every step's loss, and so a graph of the features a step.

    What a solver does that knows of L_s(φ, ψ) alone (Ji, Yang, Liang, ICML 2021).
    """
    head = {name: p for name, p in placed.model.named_parameters() if name.startswith("head.")}
    return _mean(placed, lambda task: _unrolled(*_losses(placed, placed.model, task), head, steps))


def plain_anil(placed: Placed, steps: int) -> Tensor:
    """Return ANIL's gradient, and ITD-BiO's on features evaluated once: their graph, and that of the head's steps.

    Raghu, Raghu, Bengio, Vinyals, ICLR 2020.
    """
    features, head = _parts(placed)
    start = dict(head.named_parameters())
    return _mean(placed, lambda task: _unrolled(*_losses(placed, head, task, features), start, steps))


def plain_memory_reduced(placed: Placed, steps: int) -> Tensor:
    """Return the gradient of Algorithm 1: steps on detached features, CG on the head, one mixed product.

    Support features are evaluated for the steps and again with a graph, which stands beside the query's while CG runs
    (Yang, Ma, Yu, AAAI 2025).
    """
    features, head = _parts(placed)
    shared = list(features.parameters())
    total = [torch.zeros_like(p) for p in shared]
    for task in range(len(placed.tasks)):
        phi = _adapted(placed, head, task, features, steps)
        support, query = (loss(phi) for loss in _losses(placed, head, task, features))
        for sum_, gradient in zip(total, _implicit(support, query, phi, shared), strict=True):
            sum_ += gradient / len(placed.tasks)
    return flat([*total, *(torch.zeros_like(p) for p in head.parameters())])


def _parts(placed: Placed) -> tuple[nn.Module, nn.Module]:
    """Return what tasks share and what adapts, of a network that is no more than the two, in this order."""
    return placed.model.get_submodule("features"), placed.model.get_submodule("head")


def _losses(
    placed: Placed, module: nn.Module, task: int, features: Callable[[Tensor], Tensor] = lambda x: x
) -> tuple[_Loss, _Loss]:
    """Return support and query loss of a module that reads features of the images, evaluated here and now."""

    def loss(x: Tensor, y: Tensor) -> _Loss:
        return lambda weights: placed.loss(functional_call(module, dict(weights), (x,)), y)

    support, query = placed.tasks.support, placed.tasks.query
    return loss(features(support.x[task]), support.y[task]), loss(features(query.x[task]), query.y[task])


def _unrolled(support: _Loss, query: _Loss, phi: Weights, steps: int) -> Tensor:
    """Return the query loss after so many steps, with the graph of all of them."""
    for _ in range(steps):
        gradients = torch.autograd.grad(support(phi), list(phi.values()), create_graph=True)
        phi = {n: p - INNER_LR * g for (n, p), g in zip(phi.items(), gradients, strict=True)}
    return query(phi)


def _mean(placed: Placed, loss: Callable[[int], Tensor]) -> Tensor:
    """Return the gradient of the mean over tasks in all parameters, one task's graph at a time."""
    total = [torch.zeros_like(p) for p in placed.parameters]
    for task in range(len(placed.tasks)):
        for sum_, gradient in zip(total, torch.autograd.grad(loss(task), placed.parameters), strict=True):
            sum_ += gradient / len(placed.tasks)
    return flat(total)


def _adapted(placed: Placed, head: nn.Module, task: int, features: nn.Module, steps: int) -> Weights:
    """Return the head after so many steps, as leaves of a new graph."""
    x, y = features(placed.tasks.support.x[task]).detach(), placed.tasks.support.y[task]
    phi = _leaves(dict(head.named_parameters()))
    for _ in range(steps):
        loss = placed.loss(functional_call(head, dict(phi), (x,)), y)
        gradients = torch.autograd.grad(loss, list(phi.values()))
        phi = _leaves({n: p - INNER_LR * g for (n, p), g in zip(phi.items(), gradients, strict=True)})
    return phi


def _implicit(support: Tensor, query: Tensor, phi: Weights, shared: Sequence[Tensor]) -> list[Tensor]:
    """Return ∂_ψL_q − ∂_ψ⟨∇_φL_s, v⟩ with (∇²_φL_s + δI) v = ∇_φL_q."""
    rows, count = list(phi.values()), len(phi)
    both = torch.autograd.grad(query, [*rows, *shared])
    slope = torch.cat([g.reshape(-1) for g in torch.autograd.grad(support, rows, create_graph=True)])

    def product(v: Tensor) -> Tensor:
        return flat(list(torch.autograd.grad(slope, rows, v, retain_graph=True))) + DAMPING * v

    v = _conjugate_gradient(product, flat(list(both[:count])))
    mixed = torch.autograd.grad(slope, list(shared), v)
    return [direct - part for direct, part in zip(both[count:], mixed, strict=True)]


def _conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """Return v with A v = b, from zero."""
    v, r, p = torch.zeros_like(b), b, b
    for _ in range(CG_STEPS):
        if r.norm() < CG_TOL:
            break
        along = product(p)
        length = (r @ r) / (p @ along)
        v, before, r = v + length * p, r, r - length * along
        p = r + (r @ r) / (before @ before) * p
    return v


def _leaves(weights: Weights) -> Weights:
    return {name: weight.detach().requires_grad_() for name, weight in weights.items()}
