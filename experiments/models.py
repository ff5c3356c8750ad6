"""Networks of the experiments by name, initialised from a seed."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adjoint_meta.solvers import checks
from adjoint_meta.tasks import generator

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "softplus": nn.Softplus, "silu": nn.SiLU}

# Keeps the stream of initial weights apart from the streams of tasks, which hash (seed, index).
_INITIALISATION = 2**31


class Network(Protocol):
    """What a ``model`` section of a configuration describes: a network but for its inputs and outputs."""

    def build(self, inputs: Sequence[int], outputs: int, seed: int) -> nn.Module:
        """Return the module for inputs of this shape, such as ``[2]`` or ``[1, 28, 28]``, its weights drawn from seed.

        Raises:
            ValueError: for inputs that it cannot take.
        """


@dataclass(frozen=True)
class MLP:
    """Fully connected: ``width`` × ``depth`` hidden units. Images are flattened.

    Raises:
        ValueError, TypeError: for an argument out of range or an unknown activation.
    """

    width: int = 32
    depth: int = 2
    activation: str = "tanh"

    def __post_init__(self) -> None:
        checks.count("width", self.width)
        checks.count("depth", self.depth, least=0)
        checks.one_of("activation", self.activation, ACTIVATIONS)

    def build(self, inputs: Sequence[int], outputs: int, seed: int) -> nn.Module:
        """Return the network."""
        layers = mlp(math.prod(inputs), self.width, self.depth, outputs, activation=self.activation, seed=seed)
        return layers if len(inputs) == 1 else nn.Sequential(nn.Flatten(), *layers)


@dataclass(frozen=True)
class Imported:
    """A network of the user's own, by import path.

    Args:
        name: ``"package.module:function"``; it is called with the shape of one input, the number of outputs and the
            options, and returns a module. Classes are functions, too.
        options: its further arguments.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, inputs: Sequence[int], outputs: int, seed: int) -> nn.Module:
        """Return the module; while it is made, torch's global generator is seeded."""
        module, _, attribute = self.name.partition(":")
        try:
            make = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"model.name={self.name!r} cannot be imported ({error}); expected package.module:function, with the "
                "package installed or on PYTHONPATH"
            ) from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                model = make(tuple(inputs), outputs, **self.options)
            except TypeError as error:
                raise ValueError(
                    f"model.name={self.name!r} should take (shape of an input, number of outputs, **options), here "
                    f"{tuple(inputs)}, {outputs} and {dict(self.options)}: {error}"
                ) from error
        if not isinstance(model, nn.Module):
            raise ValueError(f"model.name={self.name!r} should return a torch.nn.Module, got {type(model).__name__}")
        return model


def mlp(inputs: int, width: int, depth: int, outputs: int, *, activation: str = "tanh", seed: int = 0) -> nn.Sequential:
    """Return a fully connected network ``inputs → width × depth → outputs``.

    Weights and biases are uniform in ±1/√fan_in, torch's own default for Linear, but drawn from the seed.

    Raises:
        ValueError: for an unknown activation or a non-positive size.
    """
    for what, size in (("inputs", inputs), ("width", width), ("outputs", outputs)):
        checks.count(what, size)
    checks.count("depth", depth, least=0)
    checks.one_of("activation", activation, ACTIVATIONS)
    sizes = [inputs, *[width] * depth, outputs]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
    model = nn.Sequential(*layers[:-1])
    initialise(model, seed)
    return model


def initialise(model: nn.Module, seed: int) -> None:
    """Draw the parameters of linear layers and convolutions from a seed, in the order of the modules.

    Those of linear layers are uniform in ±1/√fan_in; weights of convolutions, which ReLUs follow, in ±√(6/fan_in)
    with biases of zero (He, Zhang, Ren, Sun, ICCV 2015).
    """
    draw = generator(seed, _INITIALISATION)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                for parameter in layer.parameters():
                    _uniform(parameter, 1 / math.sqrt(layer.in_features), draw)
            elif isinstance(layer, nn.Conv2d):
                _uniform(layer.weight, math.sqrt(6 / layer.weight[0].numel()), draw)
                if layer.bias is not None:
                    layer.bias.zero_()


def _uniform(parameter: Tensor, bound: float, draw: torch.Generator) -> None:
    uniform = torch.rand(parameter.shape, generator=draw, dtype=torch.float64)
    parameter.copy_((2 * uniform - 1) * bound)


def head(model: nn.Module) -> list[str]:
    """Return the patterns that name a network's head: the module of that name, else the last one with parameters."""
    names = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    if not names:
        raise ValueError("this model has no parameters, so it has no head that could adapt")
    heads = [name for name in names if name == "head" or name.startswith("head.")]
    return ["head.*"] if heads else [f"{names[-1]}.*"]


class HalfMSELoss(nn.MSELoss):
    """½ · mean((ŷ − y)²), the loss of Li et al. 2023's code: its gradient is the residual, without a factor of two."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        return 0.5 * super().forward(prediction, target)
