"""Eight tasks and a learner as tests of meta-training take them, learners without kept features, no compiler."""

import pytest
import torch
from torch import nn

from adjoint_meta import MAML, Batch, MetaLearner, StackedTasks, TaskBatch


@pytest.fixture
def source(generator):
    """Eight tasks of six support and six query points."""

    def batch():
        x = torch.randn(8, 6, 2, generator=generator)
        return Batch(x, torch.sin(x.sum(-1, keepdim=True)) + torch.randn(8, 1, 1, generator=generator))

    return StackedTasks(TaskBatch(batch(), batch()))


@pytest.fixture
def learner(generator):
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return MetaLearner(model, nn.MSELoss(), MAML(steps=2, inner_lr=0.05))


@pytest.fixture
def in_full(monkeypatch):
    """Makes learners that evaluate all of the model each time."""

    def make(*arguments, **options):
        learner = MetaLearner(*arguments, **options)
        monkeypatch.setattr(learner._batched, "look_for_prefix", lambda x: None)
        return learner

    return make


@pytest.fixture
def interpreted(monkeypatch):
    """Traces are replayed without a compiler, which would take seconds for each."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: graph)
