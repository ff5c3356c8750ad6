"""Figure 2 on the points that Adam fits: how A-MAML's error there falls, beside that on held-out points."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from adjoint_meta.evaluation import adam_curve
from adjoint_meta.tasks import TaskBatch

from ..comparison import Comparison
from ..crew import Finished
from ..report import Table
from ..run import fit
from ..run_directory import RunDirectory
from ..statistics import Values, interval
from .published_curves import EPOCHS_2, FIGURE_2
from .study import Setting

METHOD = "A-MAML"
# Epochs → nRMSE [seeds, tasks].
Curve = Mapping[int, Values]


def fitted_curves(setting: Setting, found: Mapping[str, Comparison]) -> dict[str, Curve]:
    """Return A-MAML's error on each test task's own support points by epochs of Adam, for each panel.

    Raises:
        Interrupted: if the study is to stop.
    """
    curves: dict[str, Curve] = {}
    for number, (panel, comparison) in enumerate(found.items()):
        (finished,) = comparison.runs[METHOD]
        setting.step(number, len(found), f"{panel}: errors on the points that Adam fits")
        kept = setting.cell(f"fitted-{panel}", partial(_curve, finished))
        curves[panel] = {int(epoch): np.array([values]) for epoch, values in kept.items()}
    return curves


def _curve(finished: Finished) -> dict[str, list[float]]:
    prepared = fit(finished.job.config, RunDirectory(finished.job.path), resume=True).prepared
    support = prepared.place(prepared.experiment.test[:]).support
    epochs = prepared.config.test.adam_epochs
    curve = adam_curve(prepared.learner, TaskBatch(support, support), prepared.experiment.measure, epochs=epochs)
    return {str(epoch): values.tolist() for epoch, values in curve}


def findings(experiment: str, found: Mapping[str, Comparison], fitted: Mapping[str, Curve], last: int) -> list[str]:
    """Return whether the paper's curve is nearer to errors on fitted or on held-out points, and what its own say."""
    lines = []
    for panel, curve in fitted.items():
        held = interval(found[panel].adam(METHOD)[last]).mean
        lines.append(
            f"{panel}: after {last} epochs {METHOD}'s error is {held:.3f} on held-out points, and "
            f"{interval(curve[last]).mean:.3f} on the points that Adam fits; the paper prints "
            f"{_printed(experiment, panel, last):.3f}."
        )
    few, many = (FIGURE_2[experiment, shots] for shots in (50, 100))
    less = [name for name in few if (few[name][-1] or np.inf) < (many[name][-1] or np.inf)]
    lines.append(
        f"Of the paper's {len(few)} methods {len(less)} end with a smaller error on 50 points than on 100, after "
        f"{EPOCHS_2[-1]} epochs: errors on fitted points behave so, errors on held-out points should not."
    )
    return lines


def table(experiment: str, panel: str, held: Curve, fitted: Curve, shown: tuple[int, ...]) -> Table:
    """Return A-MAML's errors on held-out and on fitted points, and the paper's."""
    epochs = [epoch for epoch in shown if epoch in fitted]
    rows = [
        ["held-out points", *(str(interval(held[epoch])) for epoch in epochs)],
        ["the points that Adam fits", *(str(interval(fitted[epoch])) for epoch in epochs)],
        ["the paper's curve", *(f"{_printed(experiment, panel, epoch):.3f}" for epoch in epochs)],
    ]
    columns = ["", *(f"{epoch} epochs" for epoch in epochs)]
    return Table(f"{panel}: {METHOD}'s nRMSE where it is fitted, and where it is not", columns, rows)


def _printed(experiment: str, panel: str, epoch: int) -> float:
    return FIGURE_2[experiment, int(panel.partition("shot")[0])][METHOD][EPOCHS_2.index(epoch)] or float("nan")
