"""Whole meta-gradients as graphs: on a GPU, and on a CPU by a tape that knows operations and no Python, as they do."""

import copy

import pytest
import torch
from engine_pairs import agree, pair
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from adjoint_meta import FOMAML, MAML, AdjointMAML, Batch, ImplicitMAML, MetaLearner, Reptile, SolverError, TaskBatch
from adjoint_meta import graphs as module
from adjoint_meta.cuda_graphs import ForbidReading, ReadsBack
from adjoint_meta.meta_gradients import ANIL, meta_gradient
from adjoint_meta.meta_gradients.base import check, unchecked
from adjoint_meta.problem import Problem


class Tape:
    """What `CudaGraph` does, with the operations of a trace as kernels, on buffers that stay where they are."""

    made = 0

    def __init__(self, run, tensors):
        Tape.made += 1
        self.inputs = [tensor.clone() for tensor in tensors]
        self.tape = make_fx(lambda *inputs: list(run(*inputs)))(*self.inputs)

    def __call__(self, *tensors):
        torch._foreach_copy_(self.inputs, list(tensors))
        return [output.clone() for output in self.tape(*self.inputs)]


@pytest.fixture
def taped(monkeypatch, interpreted):
    del interpreted
    Tape.made = 0
    monkeypatch.setattr(module, "CudaGraph", Tape)
    monkeypatch.setattr(module, "capturable", lambda tensors: True)


@pytest.fixture
def draw(generator):
    def batch(points):
        return Batch(torch.randn(3, points, 2, generator=generator), torch.randn(3, points, 1, generator=generator))

    return lambda: TaskBatch(batch(4), batch(5))


@pytest.fixture
def model(generator):
    made = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


FIXED = {
    "maml": (MAML(3, 0.1), {}),
    "checkpointed": (MAML(6, 0.1, adjoint="checkpointed", snapshots=2), {}),
    "shared": (ANIL(3, 0.1), {"adapt": "2.*"}),
    "flow": (AdjointMAML(0.5, "rk4", 3), {}),
    "learned": (AdjointMAML(0.2, "heun", 2, proximal=0.3, learn=("horizon", "proximal", "rates")), {}),
    "first order": (FOMAML(3, 0.1), {"adapt": "2.*"}),
    "reptile": (Reptile(3, 0.1), {}),
}


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.usefixtures("taped")
def test_one_graph_is_the_whole_meta_gradient(model, draw, name):
    method, options = FIXED[name]
    eager, other = pair(model, method, "cudagraph", **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        agree(eager, other, draw())
        eager(draw()).backward()
        optimizer.step()  # in place: the graph reads what the parameters hold then
    assert Tape.made == 1


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("backend", ["eager", "compile"])
@pytest.mark.usefixtures("interpreted")
def test_a_solve_of_fixed_length_reads_nothing_back(monkeypatch, model, draw, name, backend):
    """The one wait is for the checks when everything is over; lists, which a CPU makes without an operation, too."""
    method, options = FIXED[name]
    learner = MetaLearner(model, nn.MSELoss(), method, backend=backend, **options)
    learner.meta_gradient(draw())
    tasks = draw()
    given = learner._ready(tasks.support, tasks.query)
    listed, plain = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: listed.append(tensor) or plain(tensor))
    with ForbidReading():
        problem = Problem.of(learner._curvature, given.psi, tasks.support, tasks.query, None, unread=True)
        found = unchecked(method, problem, given.theta, learner.hyper)
    assert not listed
    check(method, found)
    with pytest.raises(ReadsBack), ForbidReading():
        check(method, found)


@pytest.mark.parametrize(
    "method",
    [ImplicitMAML(2.0, steps=5, inner_lr=0.1, cg_steps=3), AdjointMAML(1.0, "bosh3", rtol=1e-2)],
    ids=["conjugate gradients", "adaptive"],
)
@pytest.mark.usefixtures("taped")
def test_what_asks_when_to_stop_is_captured_piece_by_piece(model, draw, method):
    eager, other = pair(model, method, "cudagraph")
    for _ in range(2):
        agree(eager, other, draw())
    assert Tape.made > 1


@pytest.mark.usefixtures("taped")
def test_a_failure_within_a_graph_is_said(model, draw):
    tasks = draw()
    learner = MetaLearner(model, nn.MSELoss(), MAML(3, 0.1), backend="cudagraph")
    learner.meta_gradient(tasks)
    y = tasks.support.y.clone()
    y[1] = 1e200
    with pytest.raises(SolverError, match=r"the inner solve failed in 1 of 3 rows \(row 1\)"):
        learner.meta_gradient(TaskBatch(Batch(tasks.support.x, y), tasks.query))
    learner.meta_gradient(tasks)
    wild = MetaLearner(model, nn.MSELoss(), AdjointMAML(20.0, "euler", 2), backend="cudagraph")
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="left the stability interval in 3 of 3 tasks"):
            wild.meta_gradient(tasks)


@pytest.mark.usefixtures("taped")
def test_other_shapes_and_other_methods_have_graphs_of_their_own(model, draw):
    eager, other = pair(model, MAML(2, 0.1), "cudagraph")
    tasks = draw()
    for batch in (tasks, tasks[:2], tasks, tasks[:2]):
        agree(eager, other, batch)
    assert Tape.made == 2
    parts = MetaLearner(model, nn.MSELoss(), MAML(2, 0.1), backend="cudagraph", chunk_size=2)
    found, expected = parts.meta_gradient(tasks), eager.meta_gradient(tasks)
    assert torch.allclose(found.loss, expected.loss, rtol=1e-12)


@pytest.mark.usefixtures("taped")
def test_a_graph_that_cannot_be_made_leaves_everything_as_it_is(monkeypatch, model, draw):
    def broken(run, tensors):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(module, "CudaGraph", broken)
    eager, other = pair(model, MAML(2, 0.1), "cudagraph")
    with pytest.warns(RuntimeWarning, match="operation not permitted") as warned:
        agree(eager, other, draw())
    said = {str(each.message).split(" could not")[0] for each in warned}
    assert said == {"a whole meta-gradient", "a compiled function"} and len(warned) == 2
    agree(eager, other, draw())


class Scaled(nn.Module):
    """A network with a buffer and a frozen layer, both before and after what adapts."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(2, 3), nn.Linear(3, 1)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        return self.scale * self.head(self.frozen(torch.tanh(self.scale * self.first(x))))


@pytest.mark.parametrize("adapt", [None, "head.*"])
@pytest.mark.usefixtures("taped")
def test_buffers_and_frozen_parameters_are_those_of_now(draw, adapt):
    model = Scaled()
    eager, other = pair(model, MAML(2, 0.05), "cudagraph", adapt=adapt)
    agree(eager, other, draw())
    model.scale.mul_(0.5)  # in place, and then by other tensors
    agree(eager, other, draw())
    assert Tape.made == 1
    model.scale = torch.tensor(3.0)
    agree(eager, other, draw())
    for part in (model.frozen, model.first):
        part.load_state_dict({name: 2 * value for name, value in part.state_dict().items()}, assign=True)
        agree(eager, other, draw())
    assert Tape.made == 4


@pytest.mark.usefixtures("taped")
def test_only_the_last_graphs_hold_memory(model, generator):
    eager, other = pair(model, MAML(2, 0.1), "cudagraph")
    for points in (*range(2, 9), 8):
        x, y = (torch.randn(3, points, size, generator=generator) for size in (2, 1))
        agree(eager, other, TaskBatch(Batch(x, y), Batch(x, y)))
    assert Tape.made == 7 and len(other.engine.graphs._whole) == 4
    attempts = []

    def attempt():
        attempts.append(len(other.engine.graphs._whole))
        if len(attempts) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(RuntimeWarning, match="memory ran out with 3 tasks"):
        other._curvature.fit(attempt, Batch(x, y))
    assert attempts == [4, 0]


@pytest.mark.usefixtures("taped")
def test_a_failed_solve_of_a_method_that_reads_is_its_own_error(model, draw):
    """And no word of graphs, for which there is no reason."""
    tasks = draw()
    wild = TaskBatch(Batch(tasks.support.x, tasks.support.y * 1e300), tasks.query)
    learner = MetaLearner(model, nn.MSELoss(), ImplicitMAML(2.0, steps=5, inner_lr=0.1), backend="cudagraph")
    with pytest.raises(SolverError):
        learner.meta_gradient(wild)
    learner.meta_gradient(tasks)
    assert Tape.made > 1 and learner.engine.compile_seconds > 0


@pytest.mark.usefixtures("taped")
def test_what_the_compiler_refuses_is_said_once_with_graphs_too(monkeypatch, model, draw):
    def broken(graph, inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    eager, other = pair(model, MAML(2, 0.1), "cudagraph")
    with pytest.warns(RuntimeWarning, match="could not be compiled .*no compiler") as warned:
        agree(eager, other, draw())
        agree(eager, other, draw())
    assert len(warned) == 1


@pytest.mark.usefixtures("taped")
def test_shapes_without_end_are_not_captured_for_ever(monkeypatch, model, generator):
    monkeypatch.setattr(module, "_CAPTURES", 2)
    eager, other = pair(model, MAML(2, 0.1), "cudagraph")

    def of(points):
        x, y = (torch.randn(3, points, size, generator=generator) for size in (2, 1))
        return TaskBatch(Batch(x, y), Batch(x, y))

    agree(eager, other, of(2))
    with pytest.warns(RuntimeWarning, match="2 whole meta-gradients were captured"):
        agree(eager, other, of(3))
    agree(eager, other, of(4))
    agree(eager, other, of(2))
    assert other.engine.graphs._captures == 2


@pytest.mark.usefixtures("taped")
def test_a_copy_captures_its_own(model, draw):
    eager, other = pair(model, MAML(2, 0.1), "cudagraph")
    agree(eager, other, draw())
    agree(eager, copy.deepcopy(other), draw())
    assert Tape.made == 2


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1.0, 2.0]) + x,
        lambda x: torch.linalg.cholesky(x.outer(x) + torch.eye(2)),
        lambda x: x.index_put_((x > 0,), x[0]),
    ],
    ids=["a number", "a mask", "places", "numbers of Python", "a factor", "places to write"],
)
def test_what_waits_for_the_device_is_noticed(read):
    with pytest.raises(ReadsBack), ForbidReading():
        read(torch.ones(2))


def test_a_solve_by_itself_is_judged_at_once(model, draw):
    tasks, method = draw(), AdjointMAML(20.0, "euler", 2)
    learner = MetaLearner(model, nn.MSELoss(), method, backend="eager")
    problem, theta = learner._problem(tasks.support, tasks.query)
    adapted = method.solve(problem, theta.repeat(3, 1), {})
    with pytest.warns(RuntimeWarning, match="left the stability interval in 3 of 3 tasks"):
        adapted.pullback(torch.ones_like(adapted.phi))
    found = meta_gradient(AdjointMAML(0.1, "euler", 2), problem, theta, {})
    assert (found.stats["n_grad"], found.stats["n_hvp"]) == (3, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", FIXED)
def test_a_gpu_replays_the_eager_meta_gradient(model, draw, name):
    method, options = FIXED[name]
    eager, other = pair(model.cuda(), method, "cudagraph", **options)
    for _ in range(3):
        agree(eager, other, draw().to("cuda"), tolerance=1e-10)
    assert len(other.engine.graphs._whole) == 1 and not other.engine.graphs._unfit
