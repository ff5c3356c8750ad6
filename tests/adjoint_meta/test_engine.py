"""Compiled programs against the eager functions that they were traced from."""

import copy
import pickle

import pytest
import torch
from torch import nn

from adjoint_meta import FOMAML, MAML, AdjointMAML, Batch, ImplicitMAML, MetaLearner, TaskBatch
from adjoint_meta import engine as module
from adjoint_meta.engine import Engine
from adjoint_meta.evaluations import Evaluations

COUNTS = ("n_grad", "n_hvp")


@pytest.fixture
def tasks(generator):
    def batch(points):
        return Batch(torch.randn(3, points, 2, generator=generator), torch.randn(3, points, 1, generator=generator))

    return TaskBatch(batch(4), batch(5))


@pytest.fixture
def model(generator):
    made = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


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


@pytest.fixture
def interpreted(monkeypatch):
    """Traces are replayed without a compiler, which would take seconds for each."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: graph)


METHODS = {
    "shared parameters": (MAML(3, 0.1), {"adapt": "2.*"}),
    "checkpointed": (MAML(4, 0.1, adjoint="checkpointed", snapshots=1), {}),
    "learned": (AdjointMAML(0.5, "heun", 2, proximal=0.3, learn=("horizon", "proximal", "rates")), {}),
    "adaptive": (AdjointMAML(1.0, "bosh3", rtol=1e-2), {}),
    "implicit": (ImplicitMAML(2.0, steps=5, inner_lr=0.1, cg_steps=3), {}),
    "implicit, learned": (ImplicitMAML(2.0, 5, 0.1, cg_steps=7, cg_tol=0.0, learn=("proximal",)), {}),
    "implicit, shared parameters": (ImplicitMAML(2.0, steps=5, inner_lr=0.1, cg_steps=2), {"adapt": "2.*"}),
    "implicit, Gauss-Newton": (ImplicitMAML(2.0, steps=5, inner_lr=0.1, cg_steps=3, curvature="ggn"), {}),
    "implicit, released": (ImplicitMAML(2.0, steps=5, inner_lr=0.1, cg_steps=3, variant="released"), {}),
    "first order": (FOMAML(3, 0.1), {}),
    "chunks": (MAML(2, 0.1), {"chunk_size": 2}),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.usefixtures("interpreted")
def test_traced_meta_gradients_are_those_of_the_eager_engine(model, tasks, name):
    method, options = METHODS[name]
    eager, compiled = pair(model, method, **options)
    agree(eager, compiled, tasks)
    assert compiled.engine.compile_seconds > 0 and eager.engine.compile_seconds == 0
    spent = compiled.engine.compile_seconds
    other = TaskBatch(*(Batch(batch.x.flip(0) + 0.1, batch.y * 2) for batch in (tasks.support, tasks.query)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    agree(eager, compiled, other)
    assert compiled.engine.compile_seconds == spent  # replayed, with other weights, hyperparameters and points


def test_the_compiler_keeps_float32_and_takes_inputs_of_any_stride(model, tasks):
    eager, compiled = pair(model.float(), MAML(1, 0.1))
    single = tasks.to(dtype=torch.float32)
    strided = TaskBatch(*(Batch(b.x.mT.contiguous().mT, b.y) for b in (single.support, single.query)))
    assert not strided.support.x.is_contiguous()
    found = agree(eager, compiled, strided, 1e-5)
    assert found.loss.dtype == torch.float32


class Buffered(nn.Module):
    """A linear model with a frozen weight, a buffer, and a mode."""

    def __init__(self, generator):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.frozen = nn.Parameter(torch.randn(1, generator=generator), requires_grad=False)
        self.register_buffer("shift", torch.randn(1, generator=generator))

    def forward(self, x):
        value = torch.tanh(self.linear(x) + self.shift) * self.frozen
        return value if self.training else value**2


@pytest.mark.usefixtures("interpreted")
def test_a_replay_reads_what_the_model_holds_now(tasks, generator):
    model = Buffered(generator)
    eager, compiled = pair(model, MAML(2, 0.1))
    first = agree(eager, compiled, tasks)
    model.shift.add_(1.0)
    model.frozen.mul_(2.0)
    assert not torch.equal(agree(eager, compiled, tasks).loss, first.loss)
    model.shift = model.shift - 1.0  # another tensor, not the old one changed
    model.eval()
    agree(eager, compiled, tasks)


def refused():
    return pytest.warns(RuntimeWarning, match=r"could not be compiled .*stays eager.*backend='eager'")


class Branching(Buffered):
    """A model whose graph depends on numbers that may change."""

    def forward(self, x):
        return super().forward(x) * (2.0 if float(self.shift) > 0 else 1.0)


def test_a_graph_that_depends_on_numbers_stays_eager(tasks, generator):
    model = Branching(generator)
    eager, compiled = pair(model, MAML(2, 0.1))
    with refused():
        agree(eager, compiled, tasks, 0.0)
    model.shift.neg_()
    agree(eager, compiled, tasks, 0.0)


def test_what_the_compiler_does_not_take_stays_eager_and_is_said_once(model, tasks, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no C++ compiler\nand a long story")

    eager, compiled = pair(model, MAML(2, 0.1))
    monkeypatch.setattr(torch._inductor, "compile", broken)
    with refused() as caught:
        agree(eager, compiled, tasks, 0.0)
    assert len(caught) == 1 and "RuntimeError: no C++ compiler)" in str(caught[0].message)
    agree(eager, compiled, tasks, 0.0)


def test_a_backend_that_does_not_exist_is_refused(model):
    with pytest.raises(ValueError, match=r"unknown backend 'jit'"):
        MetaLearner(model, nn.MSELoss(), MAML(1, 0.1), backend="jit")


# "auto"


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


@pytest.mark.usefixtures("interpreted")
def test_a_copy_compiles_its_own(model, tasks):
    eager, compiled = pair(model, FOMAML(1, 0.1))
    agree(eager, compiled, tasks)
    for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert other.engine.state() == {} and other.engine.evaluations is other.evaluations


# Memory


def scarce(curvature, most):
    """Let the curvature run out of memory with more tasks than ``most`` at a time."""
    real = curvature.programs.gradients

    def gradients(phi, *others):
        if len(phi) > most:
            raise torch.OutOfMemoryError("out of memory")
        return real(phi, *others)

    curvature.programs.gradients = gradients


def test_chunks_are_halved_until_they_fit(model, tasks):
    whole, learner = (MetaLearner(model, nn.MSELoss(), MAML(2, 0.1), backend="eager") for _ in range(2))
    scarce(learner._curvature, 2)
    with pytest.warns(RuntimeWarning, match="memory ran out with 3 tasks at a time; going on with chunk_size=2"):
        found = learner.meta_gradient(tasks)
    for name, value in whole.meta_gradient(tasks).grad.items():
        assert (found.grad[name] - value).norm() <= 1e-14 * value.norm()
    learner.adapt(tasks.support)  # without another warning
    scarce(learner._curvature, 0)
    with pytest.warns() as said, pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        learner.adapt(tasks.support)
    assert [str(warning.message).split()[-1] for warning in said] == [
        "chunk_size=1",
        "point_chunk=2",
        "point_chunk=1",
    ]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 1)
        self.scale = 1.0

    def forward(self, x):
        return self.scale * self.inner(x)


@pytest.mark.usefixtures("interpreted")
def test_a_plain_attribute_that_changes_is_seen(tasks):
    model = Scaled()
    eager, compiled = pair(model, MAML(2, 0.1))
    agree(eager, compiled, tasks)
    model.scale = 3.0
    agree(eager, compiled, tasks)


@pytest.mark.usefixtures("interpreted")
def test_a_tensor_of_the_loss_that_is_replaced_is_seen(tasks):
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.tensor(1.0)

        def forward(self, prediction, target):
            return self.weight * (prediction - target).square().mean()

    model, loss = nn.Linear(2, 1), Weighted()
    eager, compiled = (MetaLearner(model, loss, MAML(2, 0.1), backend=name) for name in ("eager", "compile"))
    agree(eager, compiled, tasks)
    loss.weight = torch.tensor(2.0)
    agree(eager, compiled, tasks)


@pytest.mark.usefixtures("interpreted")
def test_attributes_that_keep_changing_end_compiling_with_a_word(tasks):
    model = Scaled()
    eager, compiled = pair(model, MAML(1, 0.1))
    with pytest.warns(RuntimeWarning, match=r"model\.scale keep changing"):
        for step in range(10):
            model.scale = 1.0 + step
            agree(eager, compiled, tasks)
    assert compiled.engine.eager
