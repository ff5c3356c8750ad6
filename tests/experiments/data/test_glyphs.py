"""The drawn set: its counts, and that it is neither trivial nor noise."""

import torch

from adjoint_meta.experiments.data.glyphs import INK, PARTS, RADIUS, _ink, draw_glyphs
from adjoint_meta.experiments.data.image_loading import load_images
from adjoint_meta.experiments.few_shot import Episodes


def test_counts_and_shapes():
    glyphs = load_images("glyphs")
    assert {split: len(classes) for split, classes in glyphs.items()} == {"train": 320, "validation": 80, "test": 100}
    for classes in glyphs.values():
        assert classes.shape == (1, 28, 28) and classes.counts.unique().tolist() == [20]
        ink = (classes.pixels > 0).float().mean((1, 2, 3))
        assert ink.min() > 0.02 and ink.max() < 0.5


def test_they_are_the_same_every_time_whatever_else_is_drawn():
    first = draw_glyphs()["test"].pixels
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(draw_glyphs()["test"].pixels, first)


def test_raw_pixels_do_not_solve_the_tasks_but_say_something():
    """Nearest neighbour of pixels, 5-way 1-shot: near the 0.42 that Vinyals et al. print for Omniglot, not 0.2 or 1."""
    batch = Episodes(draw_glyphs()["test"], 5, 1, 5, seed=0).fixed(200)
    distance = torch.cdist(batch.query.x.flatten(2), batch.support.x.flatten(2))
    accuracy = (distance.argmin(2) == batch.query.y).double().mean()
    assert 0.35 < accuracy < 0.6


def test_the_ink_is_a_sum_of_whole_numbers():
    """In int64 as in float64, so that no rounding can differ between machines."""
    dots = torch.rand(3, 50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.9 - 0.45
    place = ((dots + 0.5) * (28 * PARTS)).round().long()
    pixel = torch.arange(28) * PARTS + PARTS // 2
    near = (RADIUS**2 - (place[..., None] - pixel) ** 2).clamp_min(0)
    ink = (near[:, :, 1, :, None] * near[:, :, 0, None, :]).sum(1)
    assert ink.dtype == torch.int64
    assert torch.equal(_ink(dots)[:, 0].long(), (ink // INK).clamp_max(255))
