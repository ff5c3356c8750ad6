"""Pictures of a run: its learning curve, and a task before and after adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from torch import Tensor

from adjoint_meta.evaluation import Evaluation

from .experiment import Experiment
from .prepare import Prepared
from .regression import Scene

# Okabe and Ito's palette, told apart by every kind of colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
BASELINE_STYLES = (":", "--")


def figure(columns: int, *, rows: int = 1, width: float = 5.4, height: float = 3.9) -> tuple[Figure, list[Axes]]:
    """Return a figure with its axes, row by row, in the one style of all our pictures."""
    made = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=150)
    FigureCanvasAgg(made)
    axes = [made.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(True, color="#e6e6e6", linewidth=0.8)
        each.set_axisbelow(True)
    return made, axes


def save(made: Figure, path: Path) -> None:
    """Write the figure so that a reader never sees a part of it."""
    partial = path.with_name(path.name + ".partial")
    made.savefig(partial, format=path.suffix[1:])
    partial.replace(path)


def curves(
    records: Sequence[dict[str, Any]],
    experiment: Experiment,
    result: Evaluation,
    adam: Sequence[tuple[int, Tensor]],
    *,
    title: str,
) -> Figure:
    """Draw the query loss over meta-steps, and what adaptation does to the test tasks."""
    made, (left, right) = figure(2)
    made.suptitle(title, fontsize=11, wrap=True)
    _learning_curve(left, records)
    if adam:
        _adam_curve(right, adam, result, experiment.metric)
    else:
        _before_after(right, result, experiment)
    return made


def _learning_curve(axes: Axes, records: Sequence[dict[str, Any]]) -> None:
    steps = np.array([r["step"] for r in records if r["loss"] is not None])
    losses = np.array([r["loss"] for r in records if r["loss"] is not None])
    window = max(1, len(losses) // 40)
    smoothed = window > 1
    axes.plot(steps, losses, color=BLUE, alpha=0.25 if smoothed else 1, linewidth=0.8 if smoothed else 1.5,
              label="each meta-step")  # fmt: skip
    if smoothed:
        smooth = np.array([np.median(losses[max(0, i + 1 - window) : i + 1]) for i in range(len(losses))])
        axes.plot(steps, smooth, color=BLUE, linewidth=2, label=f"median of {window}")
    validated = [(r["step"], r["validation"]) for r in records if r.get("validation") is not None]
    if validated:
        twin = axes.twinx()
        twin.plot(*zip(*validated, strict=True), color=ORANGE, marker="o", markersize=3, linewidth=1.5)
        twin.set_ylabel("validation metric after adaptation", color=ORANGE)
        twin.spines["top"].set_visible(False)
    if len(losses) and losses.min() > 0:
        axes.set_yscale("log")
        for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            ticks(_Plain(minor_thresholds=(1.5, 0.5)))
    axes.set_xlabel("meta-step")
    axes.set_ylabel("query loss after adaptation")
    axes.set_title("Meta-training", fontsize=10)
    axes.legend(frameon=False, fontsize=9)


class _Plain(LogFormatter):
    """0.05 and 0.1 instead of 5e-02 and 1e-1."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _adam_curve(axes: Axes, adam: Sequence[tuple[int, Tensor]], result: Evaluation, metric: str) -> None:
    epochs = np.array([epoch for epoch, _ in adam])
    values = torch.stack([value for _, value in adam]).double().cpu()
    tasks = values.shape[1]
    spread = 1.96 * values.std(dim=1, correction=1 if tasks > 1 else 0).numpy() / tasks**0.5
    mean = values.mean(dim=1).numpy()
    axes.fill_between(epochs, mean - spread, mean + spread, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(epochs, mean, color=BLUE, linewidth=2, label="Adam from θ, 1e-3")
    own = float(result.after.mean())
    axes.axhline(own, color=RED, linewidth=1.5, linestyle="--", label=f"own inner solve: {own:.3f}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epochs of Adam on the support")
    axes.set_ylabel(f"{metric} on the query")
    axes.set_title(f"{len(result.after)} test tasks, mean and 95 % interval", fontsize=10)
    axes.legend(frameon=False, fontsize=9)


def _before_after(axes: Axes, result: Evaluation, experiment: Experiment) -> None:
    (unit, factor), *_ = [*experiment.units.items(), (experiment.metric, 1.0)]
    label = f"RMSE ({unit})" if experiment.units else experiment.metric
    before, after = (values.double().cpu().numpy() * factor for values in (result.before, result.after))
    faint = min(0.18, 18 / len(before))
    for low, high in zip(before, after, strict=True):
        better = high > low if experiment.larger_is_better else high < low
        axes.plot([0, 1], [low, high], color=GREEN if better else RED, alpha=faint, linewidth=0.8)
    means = [before.mean(), after.mean()]
    interval = [1.96 * v.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in (before, after)]
    axes.errorbar([0, 1], means, yerr=interval, color="black", marker="o", linewidth=2, capsize=4, zorder=3)
    for place, mean, align in ((0, means[0], "right"), (1, means[1], "left")):
        axes.annotate(f"{mean:.3f}", (place, mean), (-9 if place == 0 else 9, 0), textcoords="offset points",
                      ha=align, va="center", fontsize=10,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
    for style, (name, values) in zip(BASELINE_STYLES, experiment.baselines.items(), strict=False):
        level = float(values.mean()) * factor
        axes.axhline(level, color=GREY, linestyle=style, linewidth=1.5, label=f"{name.replace('_', ' ')}: {level:.3f}")
    axes.set_xticks([0, 1], ["before", "after"])
    axes.set_xlabel("adaptation by the method's own inner solve")
    axes.set_xlim(-0.45, 1.45)
    low, high = np.quantile(np.concatenate([before, after]), [0.02, 0.98])
    axes.set_ylim((0, 1.02) if experiment.metric == "accuracy" else (0.9 * low, 1.05 * high))
    axes.set_ylabel(label)
    axes.set_title(f"{len(after)} test tasks: each, mean and 95 % interval", fontsize=10)
    if experiment.baselines:
        axes.legend(fontsize=9, loc="upper right", edgecolor="none", framealpha=0.9)


def adaptation(prepared: Prepared, scene: Scene, *, title: str) -> Figure:
    """Draw the scene's function, and what the model makes of it before and after adaptation."""
    learner = prepared.learner
    support = scene.support.to(prepared.device, prepared.dtype)
    x = scene.x[None].to(prepared.device, prepared.dtype)
    phi = learner.adapt(support)
    with torch.no_grad():
        before, after = (learner.predict(rows, x)[0, :, 0].double().cpu() for rows in (learner.initial(1), phi))
    panels = {"truth": scene.y, "before": before, "after": after}
    made = _lines(scene, panels) if len(scene.axes) == 1 else _maps(scene, panels)
    made.suptitle(f"A test task · {title}", fontsize=11, wrap=True)
    return made


def _lines(scene: Scene, panels: dict[str, Tensor]) -> Figure:
    made, (axes,) = figure(1, width=7)
    x = scene.axes[0].numpy()
    axes.plot(x, panels["truth"], color="black", linewidth=1.5, label="the task")
    axes.plot(x, panels["before"], color=ORANGE, linewidth=2, linestyle="--", label="before adaptation")
    axes.plot(x, panels["after"], color=BLUE, linewidth=2, label="after adaptation")
    axes.plot(scene.support_x[:, 0], scene.support.y[0, :, 0], "o", color=RED, markersize=6, label="support points")
    axes.set_xlabel("x")
    axes.set_ylabel("y, standardised")
    axes.legend(frameon=False, fontsize=9)
    return made


def _maps(scene: Scene, panels: dict[str, Tensor]) -> Figure:
    made, axes = figure(3, width=4.1, height=4.0)
    (x, y), shape = (axis.numpy() for axis in scene.axes), [len(axis) for axis in scene.axes]
    low, high = float(scene.y.min()), float(scene.y.max())
    names = {"truth": "the task", "before": "before adaptation", "after": "after adaptation"}
    shown = None
    for each, (name, values) in zip(axes, panels.items(), strict=True):
        each.grid(False)
        shown = each.pcolormesh(
            x, y, values.reshape(shape).T.numpy(), vmin=low, vmax=high, cmap="viridis", shading="gouraud"
        )
        each.plot(*scene.support_x.T, "o", color="white", markeredgecolor="black", markersize=3.5, markeredgewidth=0.6)
        error = (values - scene.y).square().mean().sqrt()
        each.set_title(names[name] + (f" · RMSE {error:.3f}" if name != "truth" else " · support points"), fontsize=10)
        each.set_aspect("equal")
        each.set_xlabel("x₁")
    axes[0].set_ylabel("x₂")
    if shown is not None:
        made.colorbar(shown, ax=axes, label="y, standardised", shrink=0.85)
    return made
