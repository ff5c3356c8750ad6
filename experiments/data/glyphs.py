"""`glyphs`: made-up characters drawn by a program, so that few-shot experiments run with nothing at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from adjoint_meta.tasks import generator

from .image_classes import ImageClasses

SIZE = 28
DRAWINGS = 20
CLASSES = {"train": 320, "validation": 80, "test": 100}
STROKES, DOTS = 3, 24
# A character fills this part of the image's side; in the same unit, how far one drawing strays from its character:
# each control point, the linear map of the whole, and its place, which keep raw pixels from telling characters apart.
EXTENT, POINT_JITTER, MAP_JITTER, PLACE_JITTER = 0.6, 0.05, 0.25, 0.1
# Parts of a pixel to which dots are rounded, and the pen's radius in them. All that follows is a sum of products of
# whole numbers below 2⁵³, which float64 adds up exactly in any order: the same pixels on any machine.
PARTS, RADIUS = 64, 84
INK = RADIUS**4 // 160  # of 255 parts: two dots side by side make full ink
TOGETHER = 20  # characters, so that what is computed stays in the processor's cache


def draw_glyphs() -> dict[str, ImageClasses]:
    """Return the splits "train", "validation" and "test", 20 drawings a class, 1 × 28 × 28, ink 255 on 0.

    A character is three strokes, quadratic Bézier curves whose ends and middle are uniform in the middle of the image;
    a drawing of it moves these nine points, then the whole by a random linear map and a shift.
    """
    return {
        split: ImageClasses(
            f"glyphs ({split})",
            tuple(f"{split}{each:03d}" for each in range(count)),
            _draw(count, generator(2024, stream)),
            torch.arange(count + 1) * DRAWINGS,
        )
        for stream, (split, count) in enumerate(CLASSES.items())
    }


def _draw(classes: int, draw: torch.Generator) -> Tensor:
    """Return drawings of new characters, uint8 ``[classes · drawings, 1, size, size]``."""

    def uniform(*shape: int, spread: float) -> Tensor:
        return (torch.rand(*shape, generator=draw, dtype=torch.float64) * 2 - 1) * spread

    points = uniform(classes, 1, STROKES * 3, 2, spread=1.0)
    low, high = points.amin(2, keepdim=True), points.amax(2, keepdim=True)
    points = (points - (low + high) / 2) / (high - low).amax(3, keepdim=True) * EXTENT
    points = points + uniform(classes, DRAWINGS, STROKES * 3, 2, spread=POINT_JITTER)
    change = torch.eye(2, dtype=torch.float64) + uniform(classes, DRAWINGS, 2, 2, spread=MAP_JITTER)
    points = points @ change + uniform(classes, DRAWINGS, 1, 2, spread=PLACE_JITTER)
    return torch.cat([_ink(_curves(each).flatten(0, 1)) for each in points.split(TOGETHER)])


def _curves(points: Tensor) -> Tensor:
    """Return dots along strokes, ``[..., strokes · dots, 2]``, from their control points ``[..., strokes · 3, 2]``."""
    begin, middle, end = points.unflatten(-2, (STROKES, 1, 3)).unbind(-2)
    time = torch.arange(DOTS, dtype=torch.float64)[:, None] / (DOTS - 1)
    curves: Tensor = ((1 - time) ** 2 * begin + 2 * time * (1 - time) * middle + time**2 * end).flatten(-3, -2)
    return curves


def _ink(dots: Tensor) -> Tensor:
    """Return images uint8 ``[images, 1, size, size]`` of dots ``[images, dots, 2]`` in −0.5…0.5: each adds a bump."""
    place = ((dots + 0.5) * (SIZE * PARTS)).round()
    pixel = torch.arange(SIZE, dtype=torch.float64) * PARTS + PARTS // 2
    bump = (RADIUS**2 - (place[..., None] - pixel) ** 2).clamp_min(0.0)  # [images, dots, 2, size]
    ink = bump[:, :, 1].transpose(1, 2) @ bump[:, :, 0]
    return (ink // INK).clamp_max(255.0).to(torch.uint8)[:, None]
