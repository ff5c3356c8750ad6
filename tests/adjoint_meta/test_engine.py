"""Compiled programs against the eager functions that they were traced from."""

import copy
import pickle

import pytest
import torch
from engine_pairs import agree, pair
from torch import nn

from adjoint_meta import FOMAML, MAML, AdjointMAML, Batch, ImplicitMAML, MetaLearner, TaskBatch


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
