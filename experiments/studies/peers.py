"""The meta-gradient as users of other packages write it: torch.func, higher, TorchOpt, torchdiffeq."""

from __future__ import annotations

import importlib
import importlib.util

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from adjoint_meta.batched_model import math_attention
from adjoint_meta.parameters import ParameterRows

from .competitors import torchdiffeq_steps
from .subject import Subject
from .workloads import INNER_LR, Placed, flat


def installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def unrolled(placed: Placed, steps: int) -> Tensor:
    """Return the gradient by torch.func and autograd: a vmapped loss, the graph of every step kept."""
    model, loss, tasks = placed.model, placed.loss, placed.tasks
    losses = vmap(lambda weights, x, y: loss(functional_call(model, weights, (x,)), y))
    adapted = ParameterRows(model, placed.adapt).theta.names
    phi = {name: p.expand(len(tasks), *p.shape) for name, p in model.named_parameters() if name in adapted}
    with math_attention():  # the fused kernels have no double backward
        for _ in range(steps):
            total = losses(phi, tasks.support.x, tasks.support.y).sum()
            gradients = torch.autograd.grad(total, list(phi.values()), create_graph=True)
            phi = {name: p - INNER_LR * g for (name, p), g in zip(phi.items(), gradients, strict=True)}
        outer = losses(phi, tasks.query.x, tasks.query.y).mean()
        return flat(list(torch.autograd.grad(outer, placed.parameters)))


def by_higher(placed: Placed, steps: int) -> Tensor:
    """Return the gradient by ``higher.innerloop_ctx``, task by task (Grefenstette et al. 2019)."""
    higher = importlib.import_module("higher")
    optimizer = torch.optim.SGD(placed.parameters, lr=INNER_LR)
    placed.model.zero_grad()
    support, query = placed.tasks.support, placed.tasks.query
    for task in range(len(placed.tasks)):
        with higher.innerloop_ctx(placed.model, optimizer, copy_initial_weights=False) as (adapted, inner):
            for _ in range(steps):
                inner.step(placed.loss(adapted(support.x[task]), support.y[task]))
            (placed.loss(adapted(query.x[task]), query.y[task]) / len(placed.tasks)).backward()
    return _gradients(placed.model)


def by_torchopt(placed: Placed, steps: int) -> Tensor:
    """Return the gradient by ``torchopt.MetaSGD``, task by task (Ren et al. 2023)."""
    torchopt = importlib.import_module("torchopt")
    start = placed.parameters
    inner = torchopt.MetaSGD(placed.model, lr=INNER_LR)
    weights = torchopt.extract_state_dict(placed.model, by="reference")
    state = torchopt.extract_state_dict(inner, by="reference")
    total = [torch.zeros_like(parameter) for parameter in start]
    support, query = placed.tasks.support, placed.tasks.query
    for task in range(len(placed.tasks)):
        for _ in range(steps):
            inner.step(placed.loss(placed.model(support.x[task]), support.y[task]))
        outer = placed.loss(placed.model(query.x[task]), query.y[task]) / len(placed.tasks)
        total = [sum_ + g for sum_, g in zip(total, torch.autograd.grad(outer, start), strict=True)]
        torchopt.recover_state_dict(placed.model, weights)
        torchopt.recover_state_dict(inner, state)
    return flat(total)


def by_torchdiffeq(placed: Placed, steps: int) -> Tensor:
    """Return the flow's gradient by ``odeint_adjoint``: its rk4, forward and backward, on our vector field."""
    subject = Subject(placed.model, placed.loss, placed.tasks)
    return subject.measure(torchdiffeq_steps(INNER_LR * steps, flow_steps(steps))).gradient


def flow_steps(steps: int) -> int:
    """Return how many rk4 steps are taken where gradient descent takes n: one for ten, at least two."""
    return max(2, steps // 10)


def _gradients(model: nn.Module) -> Tensor:
    return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()])
