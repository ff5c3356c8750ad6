"""A decoder whose last MLPs adapt to the text at hand, as test-time training does, with sequences to predict."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adjoint_meta.tasks import Batch, TaskBatch, generator

_HEADS = 4


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed stream ``[sequences, tokens, width]``."""
        q, k, v = (part.unflatten(-1, (_HEADS, -1)).transpose(-2, -3) for part in self.mix(x).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        found: Tensor = self.out(mixed.transpose(-2, -3).flatten(-2))
        return found


class Block(nn.Module):
    """Attention and an MLP of four times the width, each after a layer norm, added to the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream ``[sequences, tokens, width]`` after the block."""
        x = x + self.attention(self.norm1(x))
        found: Tensor = x + self.mlp(self.norm2(x))
        return found


class Decoder(nn.Module):
    """Tokens ``[sequences, tokens]`` to the logits of the next one ``[sequences, tokens, vocabulary]``.

    Args:
        blocks, width, tokens, vocabulary: its sizes; weights are drawn from a seed.
    """

    def __init__(self, blocks: int, width: int, tokens: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(vocabulary, width), nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        draw = generator(0, 103)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    parameter.copy_(torch.randn(parameter.shape, generator=draw) / parameter.shape[1] ** 0.5)
                elif name.endswith("bias"):
                    parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        places = self.places(torch.arange(x.shape[-1], device=x.device))
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(x) + places)))
        return logits


class NextToken(nn.CrossEntropyLoss):
    """The mean cross entropy of the tokens that follow."""

    def forward(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        return super().forward(logits.flatten(0, -2), tokens.flatten())


def sequence_tasks(count: int, sequences: int, tokens: int, vocabulary: int) -> TaskBatch:
    """Return tasks of random sequences for support and query: what an evaluation takes, not what is learned."""
    draw = generator(0, 104)

    def points() -> Batch:
        text = torch.randint(vocabulary, (count, sequences, tokens + 1), generator=draw)
        return Batch(text[..., :-1], text[..., 1:])

    return TaskBatch(points(), points())
