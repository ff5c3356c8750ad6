"""Convolutional networks of the few-shot papers: features, and a linear head that is called so.

Batch norm uses the statistics of the points at hand, of a support or of a query (transductive), as in the papers' code.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from adjoint_meta.solvers import checks

from .models import initialise


@dataclass(frozen=True)
class Conv4:
    """Four blocks of a 3×3 convolution, batch norm and ReLU, each halving the image, then a linear head.

    Finn, Abbeel, Levine, ICML 2017, section 5.2: strided convolutions of 64 filters for Omniglot; 32 filters and 2×2
    max pooling, which rounds down where strides round up, for mini-ImageNet.

    Args:
        filters: channels of every block.
        downsample: ``"stride"`` or ``"pool"``.

    Raises:
        ValueError, TypeError: for an argument out of range or an unknown name.
    """

    filters: int = 64
    downsample: str = "stride"

    def __post_init__(self) -> None:
        checks.count("filters", self.filters)
        checks.one_of("downsample", self.downsample, ("stride", "pool"))

    def build(self, inputs: Sequence[int], outputs: int, seed: int) -> nn.Module:
        """Return the network for images of at least 16×16 pixels when they are pooled."""
        channels, *sides = _image(inputs)
        strided = self.downsample == "stride"
        least = 1 if strided else 16
        if min(sides) < least:
            raise ValueError(f"four blocks with max pooling need images of 16×16 or more, got {sides}; use stride")
        features = nn.Sequential(
            *(self._block(channels if block == 0 else self.filters) for block in range(4)), nn.Flatten()
        )
        for _ in range(4):
            sides = [(side + 1) // 2 if strided else side // 2 for side in sides]
        return _with_head(features, self.filters * sides[0] * sides[1], outputs, seed)

    def _block(self, channels: int) -> nn.Sequential:
        strided = self.downsample == "stride"
        convolution = nn.Conv2d(channels, self.filters, 3, stride=2 if strided else 1, padding=1)
        norm = nn.BatchNorm2d(self.filters, track_running_stats=False)
        return nn.Sequential(convolution, norm, nn.ReLU(), *([] if strided else [nn.MaxPool2d(2)]))


@dataclass(frozen=True)
class ResNet12:
    """Four residual blocks of three 3×3 convolutions, each followed by 2×2 max pooling, average pooling, a linear head.

    Oreshkin, Rodríguez López, Lacoste, NeurIPS 2018 (TADAM), without its dropout: masks drawn in an inner solve would
    make its gradients those of another function.

    Args:
        widths: channels of the blocks; 64, 160, 320 and 640 are those of Lee et al., CVPR 2019 (MetaOptNet).

    Raises:
        ValueError, TypeError: if there is no block, or a width is not a positive whole number.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)

    def __post_init__(self) -> None:
        checks.count("the number of widths", len(self.widths))
        for width in self.widths:
            checks.count("a width", width)

    def build(self, inputs: Sequence[int], outputs: int, seed: int) -> nn.Module:
        """Return the network for images of at least 2×2 pixels a block."""
        channels, *sides = _image(inputs)
        if min(sides) < 2 ** len(self.widths):
            raise ValueError(f"{len(self.widths)} blocks need images of {2 ** len(self.widths)} or more, got {sides}")
        before = (channels, *self.widths)
        blocks = (_Residual(*pair) for pair in zip(before, self.widths, strict=False))
        return _with_head(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), self.widths[-1], outputs, seed)


class _Residual(nn.Module):
    """x ↦ pool(σ(convolutions(x) + shortcut(x))), σ a leaky ReLU of slope 0.1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()

        def layer(channels: int, size: int) -> list[nn.Module]:
            convolution = nn.Conv2d(channels, outputs, size, padding=size // 2, bias=False)
            return [convolution, nn.BatchNorm2d(outputs, track_running_stats=False)]

        self.layers = nn.Sequential(
            *layer(inputs, 3), nn.LeakyReLU(0.1), *layer(outputs, 3), nn.LeakyReLU(0.1), *layer(outputs, 3)
        )
        self.shortcut = nn.Sequential(*layer(inputs, 1))
        self.last = nn.Sequential(nn.LeakyReLU(0.1), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[points, outputs, height / 2, width / 2]``."""
        y: Tensor = self.last(self.layers(x) + self.shortcut(x))
        return y


def _image(inputs: Sequence[int]) -> tuple[int, int, int]:
    if len(inputs) != 3:
        raise ValueError(
            f"a convolutional network needs images [channels, height, width], got inputs of shape {list(inputs)}; "
            "set model.name=mlp"
        )
    channels, height, width = inputs
    return channels, height, width


def _with_head(features: nn.Module, size: int, outputs: int, seed: int) -> nn.Sequential:
    checks.count("outputs", outputs)
    model = nn.Sequential(OrderedDict(features=features, head=nn.Linear(size, outputs)))
    initialise(model, seed)
    return model
