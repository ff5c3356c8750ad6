"""Picture of a few-shot episode: what was shown, and what is told of each query image before and after adaptation."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from adjoint_meta.tasks import TaskBatch

from .plots import BLUE, RED, figure
from .prepare import Prepared

# Query images of a class that are drawn.
MOST = 5


def episode(prepared: Prepared, tasks: TaskBatch, *, title: str) -> Figure:
    """Draw the first episode of ``tasks``: a row a class, its first support image, then query images.

    A query image is framed blue where it is told right after adaptation, red where it is taken for another class; the
    heading says how many are right before and after.
    """
    learner, one = prepared.learner, prepared.place(tasks[:1])
    phi = learner.adapt(one.support)
    with torch.no_grad():
        told = [learner.predict(rows, one.query.x)[0].argmax(dim=1).cpu() for rows in (learner.initial(1), phi)]
    support, query = (_by_class(batch.x[0], batch.y[0]) for batch in (tasks.support, tasks.query))
    labels = tasks.query.y[0].cpu()
    before, after = ((each == labels).double().mean().item() for each in told)
    guesses = _by_class(told[1], labels)
    columns = 1 + min(MOST, min(len(images) for images in query))
    made, axes = figure(columns, rows=len(support), width=1.0, height=1.05)
    for way, (shown, asked, guess) in enumerate(zip(support, query, guesses, strict=True)):
        row = axes[way * columns : (way + 1) * columns]
        _image(row[0], shown[0], "black")
        row[0].set_ylabel(f"class {way + 1}", fontsize=8)
        for place, image, found in zip(row[1:], asked, guess.tolist(), strict=False):
            _image(place, image, BLUE if found == way else RED)
            if found != way:
                place.set_xlabel(f"taken for {found + 1}", fontsize=7, color=RED, labelpad=2)
    axes[0].set_title("support", fontsize=8)
    axes[1].set_title("query", fontsize=8)
    made.suptitle(f"A test episode, {before:.0%} right before and {after:.0%} after\n{title}", fontsize=8, wrap=True)
    return made


def _by_class(values: Tensor, labels: Tensor) -> list[Tensor]:
    return [values[labels == way] for way in range(int(labels.max()) + 1)]


def _image(axes: Axes, image: Tensor, colour: str) -> None:
    """Draw an image ``[channels, height, width]`` over its own range: normalised pixels are negative, too."""
    pixels = image.double().cpu()
    low, high = pixels.min(), pixels.max()
    scaled = ((pixels - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()
    axes.imshow(scaled.squeeze(2) if scaled.shape[2] == 1 else scaled, cmap="gray_r", vmin=0, vmax=1)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.8)
