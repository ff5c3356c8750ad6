"""Vector fields, models and tasks with known answers, and recorders that watch a solver at work."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adjoint_meta import Batch, TaskBatch
from adjoint_meta.solvers import VJP

# Vector fields


class TanhField:
    """f(t, y) = tanh(W y + b + t u) − y/2, a nonlinear field with parameters (W, b), whose pullback is autograd's.

    Args:
        time: the scale of u; a field without explicit time reports no cotangent to it.
    """

    def __init__(self, generator: torch.Generator, size: int = 3, time: float = 0.0) -> None:
        self.weight = torch.randn(size, size, generator=generator)
        self.bias = torch.randn(size, generator=generator)
        self.drift = time * torch.randn(size, generator=generator)
        self.timed = time != 0

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.bias

    def __call__(self, t: Tensor | float, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight.T + self.bias + t * self.drift) - y / 2

    def vjp(self, t: Tensor | float, y: Tensor, w: Tensor) -> VJP:
        times = torch.as_tensor(t, dtype=y.dtype).expand(len(y), 1)
        inputs = [tensor.detach().requires_grad_() for tensor in (y, times, *self.parameters)]
        with torch.enable_grad():
            value = torch.tanh(inputs[0] @ inputs[2].T + inputs[3] + inputs[1] * self.drift) - inputs[0] / 2
            state, time, *parameters = torch.autograd.grad(value, inputs, w)
        return VJP(value.detach(), state, tuple(parameters), time[:, 0] if self.timed else None)


class LinearField:
    """f(t, y) = −A (y − b), a row a system; the solution is b + expm(−A t)(y₀ − b)."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a = a
        self.b = b

    def __call__(self, t: Tensor | float, y: Tensor) -> Tensor:
        return -torch.einsum("rij,rj->ri", self.a, y - self.b)

    def vjp(self, t: Tensor | float, y: Tensor, w: Tensor) -> VJP:
        return VJP(self(t, y), -torch.einsum("rji,rj->ri", self.a, w))


class Recorder:
    """Any field, with a record of where it was evaluated, and of how many of the states it saw are still alive."""

    def __init__(self, field: object) -> None:
        self.field = field
        self.calls: list[tuple[float, Tensor]] = []
        self.products = 0
        self.most_alive = 0
        self.watch = False
        self._seen: list[weakref.ref[Tensor]] = []

    def __call__(self, t: Tensor | float, y: Tensor) -> Tensor:
        if self.watch:
            self._count(y)
        else:
            self.calls.append((float(t), y.clone()))
        return self.field(t, y)

    def vjp(self, t: Tensor | float, y: Tensor, w: Tensor) -> VJP:
        self.products += 1
        if self.watch:
            self._count(y)
        return self.field.vjp(t, y, w)

    def _count(self, y: Tensor) -> None:
        self._seen = [ref for ref in self._seen if ref() is not None and ref() is not y] + [weakref.ref(y)]
        self.most_alive = max(self.most_alive, len(self._seen))


# Random matrices


def symmetric(generator: torch.Generator, eigenvalues: Tensor) -> Tensor:
    """Symmetric matrices ``[rows, P, P]`` with these eigenvalues ``[rows, P]`` and random eigenvectors."""
    rows, size = eigenvalues.shape
    basis, _ = torch.linalg.qr(torch.randn(rows, size, size, generator=generator))
    return basis @ (eigenvalues[:, :, None] * basis.mT)


# Quadratic tasks


class Linear(nn.Module):
    """Predictions x φ for inputs x ``[points, P]``: with `half_squares` the loss is ½(φ − b)ᵀ A (φ − b)."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.phi = nn.Parameter(start.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.phi


def half_squares(prediction: Tensor, y: Tensor) -> Tensor:
    return 0.5 * ((prediction - y) ** 2).sum()


class Quadratic(NamedTuple):
    """Tasks with L_s = ½(φ − b)ᵀ A (φ − b) and a query loss of the same kind; matrices ``[tasks, P, P]``."""

    theta: Tensor
    a: Tensor
    b: Tensor
    query_a: Tensor
    query_b: Tensor

    @property
    def model(self) -> Linear:
        return Linear(self.theta)

    @property
    def tasks(self) -> TaskBatch:
        return TaskBatch(_as_points(self.a, self.b), _as_points(self.query_a, self.query_b))

    def cotangent(self, phi: Tensor) -> Tensor:
        """∇L_q at φ ``[tasks, P]``."""
        return torch.einsum("tij,tj->ti", self.query_a, phi - self.query_b)


def _as_points(a: Tensor, b: Tensor) -> Batch:
    """Inputs x = A^{1/2} and targets x b, so that ½‖xφ − xb‖² is the quadratic."""
    eigenvalues, basis = torch.linalg.eigh(a)
    x = eigenvalues.clamp(min=0).sqrt()[:, :, None] * basis.mT
    return Batch(x, torch.einsum("tij,tj->ti", x, b))


def quadratic(generator: torch.Generator, tasks: int = 3, size: int = 4, low: float = 0.2, high: float = 2.0):
    """Random quadratic tasks with the eigenvalues of A between ``low`` and ``high``."""

    def matrices() -> Tensor:
        return symmetric(generator, low + (high - low) * torch.rand(tasks, size, generator=generator))

    def points() -> Tensor:
        return torch.randn(tasks, size, generator=generator)

    return Quadratic(torch.randn(size, generator=generator), matrices(), points(), matrices(), points())


def signed_squares(prediction: Tensor, y: Tensor) -> Tensor:
    """½ Σ s (prediction − target)² for y = (target, s): a sign of −1 makes a direction of negative curvature."""
    return 0.5 * (y[..., 1] * (prediction - y[..., 0]) ** 2).sum()


# Networks


def drawn(model: nn.Module, generator: torch.Generator, scale: float = 0.5) -> nn.Module:
    """The module with every parameter drawn from the generator."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def mlp(generator: torch.Generator, inputs: int = 2, hidden: int = 4, outputs: int = 1) -> nn.Sequential:
    return drawn(nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)), generator)


class Tied(nn.Module):
    """Encoder and decoder share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3, bias=False)
        self.decoder = nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


def regression(
    generator: torch.Generator, tasks: int = 3, points: int = 5, inputs: int = 2, outputs: int = 1
) -> TaskBatch:
    def batch() -> Batch:
        x = torch.randn(tasks, points, inputs, generator=generator)
        return Batch(x, torch.randn(tasks, points, outputs, generator=generator))

    return TaskBatch(batch(), batch())


class Forwards:
    """Counts the calls of a module's forward."""

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        model.register_forward_hook(self._seen)

    def _seen(self, *_: object) -> None:
        self.count += 1

    def during(self, action: Callable[[], object]) -> int:
        before = self.count
        action()
        return self.count - before


# Modules of every kind that the engine must differentiate twice: each a model, a loss and the points of some tasks


class Case(NamedTuple):
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    points: Batch


class Attention(nn.Module):
    """Self-attention over the points of a task, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.attention(x[None], x[None], x[None], need_weights=False)
        return self.head(attended[0])


class Scaled(nn.Module):
    """A frozen layer, a buffer, and a scalar parameter beside the trained layers."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(2, 3)
        self.register_buffer("offset", torch.tensor([0.5, -1.0, 2.0]))
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.gain * self.frozen(x) + self.offset))


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=3, dropout=0.0, batch_first=True, activation="gelu")
    return nn.Sequential(layer, nn.Linear(4, 1))


def _frozen() -> nn.Module:
    model = Scaled()
    model.frozen.requires_grad_(False)
    return model


_MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(2, 1), (2,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), (2,)),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(32, 1)),
        (1, 4, 4),
    ),
    "layer norm": (lambda: nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)), (2,)),
    "group norm": (lambda: nn.Sequential(nn.Linear(2, 6), nn.GroupNorm(2, 6), nn.Tanh(), nn.Linear(6, 1)), (2,)),
    # Without a bias before the normalisation, whose gradient would be nothing but rounding.
    "batch norm": (
        lambda: nn.Sequential(
            nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3, track_running_stats=False), nn.Tanh(), nn.Linear(3, 1)
        ),
        (2,),
    ),
    "attention": (Attention, (4,)),
    "transformer": (_encoder, (4,)),
    "frozen": (_frozen, (2,)),
}

CASES = (*_MODULES, "classifier", "embedding")


def case(name: str, generator: torch.Generator, tasks: int = 3, points: int = 4) -> Case:
    """The case of that name; classification with integer targets, and integer inputs, are among them."""
    if name == "classifier":
        model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))
        x = torch.randn(tasks, points, 2, generator=generator)
        y = torch.randint(3, (tasks, points), generator=generator)
        return Case(drawn(model, generator), nn.functional.cross_entropy, Batch(x, y))
    if name == "embedding":
        model = nn.Sequential(nn.Embedding(5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 1))
        x = torch.randint(5, (tasks, points, 2), generator=generator)
    else:
        build, shape = _MODULES[name]
        model = build()
        x = torch.randn(tasks, points, *shape, generator=generator)
    y = torch.randn(tasks, points, 1, generator=generator)
    return Case(drawn(model, generator), nn.functional.mse_loss, Batch(x, y))
