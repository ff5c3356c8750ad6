"""Networks with tasks on which meta-gradients are timed: regression, ratings, and few-shot images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from adjoint_meta.batched_model import Loss
from adjoint_meta.tasks import Batch, TaskBatch, generator

from ..conv_nets import Conv4
from ..models import HalfMSELoss, mlp
from ..regression import CosMixture, RegressionTasks
from .decoder_network import Decoder, NextToken, sequence_tasks

# α, of the A-MAML paper; it also sets the length of the flow that n steps stand for.
INNER_LR = 0.01


@dataclass(frozen=True)
class Workload:
    """A network, its loss and its tasks, float32 on the CPU.

    Args:
        title: what it is called.
        detail: what it is, in a few words.
        model: builds the network, the same each time.
        loss: of one task.
        tasks: makes this many tasks, the same each time.
        layer: the product that its largest layer comes to, a task: ``[rows, inner] × [inner, columns]``.
        adapt: patterns of the parameters that adapt; ``None`` means all.
    """

    title: str
    detail: str
    model: Callable[[], nn.Module]
    loss: Callable[[], Loss]
    tasks: Callable[[int], TaskBatch]
    layer: tuple[int, int, int]
    adapt: tuple[str, ...] | None = None


def regression_tasks(count: int, points: int = 100) -> TaskBatch:
    """Return CosMixture tasks with this many support and query points."""
    options = RegressionTasks(CosMixture(), train_tasks=count, test_tasks=1, shots=points, queries=points)
    return options.build()[0].tasks.to(dtype=torch.float32)


def rating_tasks(count: int, items: int = 100, shots: int = 10, queries: int = 15) -> TaskBatch:
    """Return tasks of one-hot items and random standardised ratings: what an evaluation takes, not what is learned."""
    draw = generator(0, 100)

    def points(number: int) -> Batch:
        item = torch.stack([torch.randperm(items, generator=draw)[:number] for _ in range(count)])
        one_hot = torch.zeros(count, number, items).scatter_(2, item[:, :, None], 1.0)
        return Batch(one_hot, torch.randn(count, number, 1, generator=draw))

    return TaskBatch(points(shots), points(queries))


def image_tasks(
    count: int, ways: int = 20, side: int = 28, shots: int = 1, queries: int | None = None, channels: int = 1
) -> TaskBatch:
    """Return tasks of random images ``[tasks, ways × shots, channels, side, side]``.

    Args:
        count: how many.
        ways: classes a task.
        side: of the images, in pixels.
        shots: support images a class.
        queries: query images a class; as many as support images when ``None``.
        channels: of the images.
    """
    draw = generator(0, 101)

    def points(each: int) -> Batch:
        images = torch.rand(count, ways * each, channels, side, side, generator=draw)
        return Batch(images, torch.arange(ways).repeat(count, each))

    return TaskBatch(points(shots), points(shots if queries is None else queries))


def conv_net(filters: int = 64, ways: int = 20, side: int = 28, channels: int = 1) -> nn.Module:
    """Return MAML's Omniglot network: 4 × [3×3 convolution, batch norm of the points at hand, ReLU, max pool], linear.

    Finn, Abbeel, Levine, ICML 2017, section 5.2, with pooling in place of strides, as for MiniImagenet.
    """
    return Conv4(filters, "pool").build([channels, side, side], ways, seed=0)


def strided_net(filters: int = 64, ways: int = 20) -> nn.Module:
    """Return iMAML's Omniglot network: 4 × [3×3 convolution of stride 2, batch norm of the points, ReLU], linear.

    Rajeswaran, Finn, Kakade, Levine, NeurIPS 2019, for images of 28×28.
    """
    return Conv4(filters, "stride").build([1, 28, 28], ways, seed=0)


WORKLOADS = {
    "regression": Workload(
        "regression net",
        "2-32-32-1 tanh, ½MSE, CosMixture, 100 support and 100 query points",
        lambda: mlp(2, 32, 2, 1),
        HalfMSELoss,
        regression_tasks,
        (100, 32, 32),
    ),
    "ratings": Workload(
        "ratings net",
        "100-40-40-1 tanh, ½MSE, one-hot items, 10 support and 15 query ratings",
        lambda: mlp(100, 40, 2, 1),
        HalfMSELoss,
        rating_tasks,
        (10, 100, 40),
    ),
    "omniglot": Workload(
        "Omniglot conv net",
        "4 × [3×3 convolution of 64 filters, batch norm, ReLU, 2×2 max pool], 20-way 1-shot, random 28×28 images",
        conv_net,
        nn.CrossEntropyLoss,
        image_tasks,
        (20 * 14 * 14, 9 * 64, 64),
    ),
    "omniglot-5-shot": Workload(
        "Omniglot conv net of stride 2",
        "4 × [3×3 convolution of 64 filters and stride 2, batch norm, ReLU], 20-way 5-shot, random 28×28 images",
        strided_net,
        nn.CrossEntropyLoss,
        lambda count: image_tasks(count, shots=5),
        (100 * 7 * 7, 9 * 64, 64),
    ),
}


def _decoder(blocks: int, width: int, sequences: int, tokens: int, vocabulary: int) -> Workload:
    last = range(blocks - blocks // 4, blocks)
    return Workload(
        f"decoder of {blocks} blocks",
        f"width {width}, {tokens} tokens of {vocabulary}, {sequences} random sequences each for support and query, "
        f"next-token loss; the MLPs of the last {len(last)} adapt, the rest is shared",
        lambda: Decoder(blocks, width, tokens, vocabulary),
        NextToken,
        lambda count: sequence_tasks(count, sequences, tokens, vocabulary),
        (tokens, width, 4 * width),
        tuple(f"blocks.{block}.mlp.*" for block in last),
    )


# Apart from the others, which adapt all of their parameters.
DECODERS = {"decoder": _decoder(8, 256, 2, 256, 256), "tiny decoder": _decoder(4, 8, 2, 6, 5)}


def _five_way(
    title: str, pooled: bool, layer: tuple[int, int, int], *, side: int = 28, queries: int = 15, channels: int = 1
) -> Workload:
    net = partial(conv_net, 32, 5, side, channels) if pooled else partial(strided_net, ways=5)
    block = (
        "of 32 filters, batch norm, ReLU, 2×2 max pool" if pooled else "of 64 filters and stride 2, batch norm, ReLU"
    )
    return Workload(
        title,
        f"4 × [3×3 convolution {block}], 5-way 5-shot, {queries} query images a class, random {side}×{side} images",
        net,
        nn.CrossEntropyLoss,
        lambda count: image_tasks(count, ways=5, side=side, shots=5, queries=queries, channels=channels),
        layer,
    )


# What contestants adapt of these is their own affair: the whole network, or its head.
FIVE_WAY = {
    "five-way": _five_way("Conv4, 28×28", False, (25 * 7 * 7, 9 * 64, 64)),
    "five-way-halves": _five_way("Conv4, 28×28, support and query alike", False, (25 * 7 * 7, 9 * 64, 64), queries=5),
    "five-way-84": _five_way("Conv4, 84×84", True, (25 * 42 * 42, 9 * 32, 32), side=84, channels=3),
}


def workload(name: str) -> Workload:
    """Return the workload of that name, of `WORKLOADS`, `DECODERS` or `FIVE_WAY`."""
    return {**WORKLOADS, **DECODERS, **FIVE_WAY}[name]


def details(names: Iterable[str]) -> list[str]:
    """Return a line a workload, each once."""
    return [f"{workload(name).title}: {workload(name).detail}" for name in dict.fromkeys(names)]


@dataclass(frozen=True)
class Placed:
    """A workload on a device, in a dtype: what a contestant gets."""

    model: nn.Module
    loss: Loss
    tasks: TaskBatch
    adapt: tuple[str, ...] | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All of the model's, in its order, which is that of every gradient here."""
        return list(self.model.parameters())


def place(name: str, tasks: int, device: torch.device, dtype: torch.dtype) -> Placed:
    """Return the workload of that name with this many tasks."""
    chosen = workload(name)
    return Placed(chosen.model().to(device, dtype), chosen.loss(), chosen.tasks(tasks).to(device, dtype), chosen.adapt)


def flat(gradients: list[Tensor]) -> Tensor:
    """Return gradients, one a parameter, as one vector ``[P]``."""
    return torch.cat([gradient.detach().reshape(-1) for gradient in gradients])
