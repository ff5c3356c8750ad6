"""The engine counts calls: "auto" compiles what is called often, and a replay counts what its trace counted."""

import pytest
import torch
from engine_pairs import agree
from torch import nn

from adjoint_meta import MAML, Batch, MetaLearner, TaskBatch
from adjoint_meta import engine as module
from adjoint_meta.engine import Engine
from adjoint_meta.evaluations import Evaluations


@pytest.mark.usefixtures("interpreted")
def test_auto_compiles_what_is_called_often(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 6)
    x, calls = torch.linspace(0, 1, 4), []

    def double(value):
        calls.append(1)
        return [2 * value, None]

    engine = Engine("auto", Evaluations())
    for count in range(1, 12):
        found, none = engine("double", double, x)
        assert torch.equal(found, 2 * x) and none is None
        assert len(calls) == min(count, 7)  # the seventh call traces, the others replay
    assert engine.compile_seconds > 0


@pytest.mark.usefixtures("interpreted")
def test_auto_leaves_convolutions_eager_on_a_cpu(monkeypatch, generator):
    """They take minutes to compile, into calls of the kernels that eager functions call; the head's steps do not."""
    monkeypatch.setattr(module, "_PATIENCE", 1)
    convolving = []

    def compiled(graph, inputs):
        convolving.append(any("convolution" in str(node.target) for node in graph.graph.nodes))
        return graph

    monkeypatch.setattr(torch._inductor, "compile", compiled)
    images = Batch(torch.randn(2, 3, 1, 6, 6, generator=generator), torch.tensor([[0, 1, 0]] * 2))
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    for adapt in (None, "3.*"):
        eager, auto = (
            MetaLearner(net, nn.CrossEntropyLoss(), MAML(2, 0.1), backend=name, adapt=adapt)
            for name in ("eager", "auto")
        )
        for _ in range(3):
            agree(eager, auto, TaskBatch(images, images))
        assert (auto.engine.replayed > 0) == (adapt is not None)
    assert convolving and not any(convolving)
    whole = MetaLearner(net, nn.CrossEntropyLoss(), MAML(2, 0.1), backend="compile")
    whole.meta_gradient(TaskBatch(images, images))
    assert any(convolving)


@pytest.mark.parametrize("before", [0, 2, 6, 9])
def test_auto_goes_on_counting_after_a_reload(monkeypatch, before):
    monkeypatch.setattr(module, "_PATIENCE", 6)
    x, first, calls = torch.ones(2), Engine("auto", Evaluations()), []

    def double(value):
        calls.append(1)
        return 2 * value

    for _ in range(before):
        first("double", double, x)
    # A state that was loaded and not used yet is handed on.
    middle, last = Engine("auto", Evaluations()), Engine("auto", Evaluations())
    middle.load(first.state())
    last.load(middle.state())
    calls.clear()
    for _ in range(10):
        last("double", double, x)
    assert len(calls) == max(6 - before, 0) + 1  # the eager calls that were left, and the trace
    assert last.replayed == 1


@pytest.mark.usefixtures("interpreted")
def test_what_is_called_within_a_function_does_not_wait_by_itself(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 2)
    engine = Engine("auto", Evaluations())

    def outer(value):
        return engine("inner", lambda value: value + 1, value) * 2

    for _ in range(4):
        assert torch.equal(engine("outer", outer, torch.ones(2)), torch.full((2,), 4.0))
    assert engine.replayed == 1 and ["outer" in key for key in engine.state()] == [True]


@pytest.mark.usefixtures("interpreted")
def test_a_replay_counts_what_the_trace_counted():
    evaluations = Evaluations()
    engine = Engine("compile", evaluations)

    def counted(value):
        evaluations.n_grad += 2
        evaluations.n_hvp += 3
        return value + 1

    for _ in range(3):
        engine("counted", counted, torch.ones(2))
    assert evaluations == Evaluations(0, 6, 9)
