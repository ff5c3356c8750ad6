"""An eager learner beside another one, and whether both find the same."""

import torch
from torch import nn

from adjoint_meta import MetaLearner

COUNTS = ("n_grad", "n_hvp")


def pair(model, method, backend="compile", **options):
    return [MetaLearner(model, nn.MSELoss(), method, backend=name, **options) for name in ("eager", backend)]


def agree(eager, other, tasks, tolerance=1e-12):
    """Both have the same losses, gradients and counts."""
    expected, found = eager.meta_gradient(tasks), other.meta_gradient(tasks)
    assert torch.allclose(found.loss, expected.loss, rtol=tolerance, atol=0)
    for name, value in {**expected.grad, **expected.hyper}.items():
        got = {**found.grad, **found.hyper}[name]
        assert got.dtype == value.dtype and (got - value).norm() <= tolerance * value.norm()
    assert {name: found.stats[name] for name in COUNTS} == {name: expected.stats[name] for name in COUNTS}
    return found
