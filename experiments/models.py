"""Networks of the experiments, initialised from a seed."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from adjoint_meta.solvers import checks
from adjoint_meta.tasks import generator

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "softplus": nn.Softplus, "silu": nn.SiLU}


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
    _initialise(model, generator(seed, _INITIALISATION))
    return model


# Keeps the stream of initial weights apart from the streams of tasks, which hash (seed, index).
_INITIALISATION = 2**31


def _initialise(model: nn.Sequential, draw: torch.Generator) -> None:
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                for parameter in layer.parameters():
                    uniform = torch.rand(parameter.shape, generator=draw, dtype=torch.float64)
                    parameter.copy_((2 * uniform - 1) * bound)


class HalfMSELoss(nn.MSELoss):
    """½ · mean((ŷ − y)²), the loss of Li et al. 2023's code: its gradient is the residual, without a factor of two."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        return 0.5 * super().forward(prediction, target)
