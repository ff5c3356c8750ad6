"""The drawn set: its counts, and that it is neither trivial nor noise."""

import torch

from adjoint_meta.experiments.data.glyphs import draw_glyphs
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
