"""Whether two learners agree, and what a learner keeps and skips of its model."""

from __future__ import annotations

from references import relative
from torch import nn

from adjoint_meta import MetaLearner, TaskBatch

mse = nn.functional.mse_loss


def agree(expected: MetaLearner, learner: MetaLearner, tasks: TaskBatch, tolerance: float = 1e-12) -> None:
    """Both find the same losses and gradients, by as many evaluations."""
    one, other = expected.meta_gradient(tasks), learner.meta_gradient(tasks)
    assert relative(other.loss, one.loss) < tolerance
    for name, value in {**one.grad, **one.hyper}.items():
        assert relative({**other.grad, **other.hyper}[name], value) < tolerance
    assert [other.stats[name] for name in ("n_grad", "n_hvp")] == [one.stats[name] for name in ("n_grad", "n_hvp")]


def found(learner: MetaLearner, tasks: TaskBatch):
    """What is kept and skipped of a support task."""
    prefix = learner._batched.prefix(tasks.support.x)
    return (
        (set(), set()) if prefix is None else ({n for n, _ in prefix.calls.kept}, {n for n, _ in prefix.calls.skipped})
    )
