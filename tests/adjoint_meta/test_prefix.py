"""What does not depend on the adapted parameters is evaluated once, and changes no number."""

from __future__ import annotations

import copy

import pytest
import torch
from prefix_agreement import agree, found, mse
from problems import case, drawn, mlp, regression
from references import relative, through_every_step
from torch import Tensor, nn

from adjoint_meta import FOMAML, MAML, AdjointMAML, Batch, ImplicitMAML, MetaLearner, Reptile, TaskBatch


class Block(nn.Module):
    """Attention without heads and an MLP, both beside the residual stream."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.norm1, self.mix = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 5), act, nn.Linear(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        at = self.norm1(x)
        x = x + self.mix(at, at, at, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Tied embeddings, a parameter of its own, blocks that share one activation module."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.Tanh()
        self.tokens, self.places = nn.Embedding(5, 4), nn.Embedding(6, 4)
        self.gain = nn.Parameter(torch.ones(4))
        self.blocks = nn.ModuleList(Block(act) for _ in range(3))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.gain * (self.tokens(x) + self.places(torch.arange(x.shape[-1])))
        for block in self.blocks:
            h = block(h)
        return self.head(h).mT


def decoder(generator: torch.Generator) -> tuple[Decoder, TaskBatch]:
    def batch(points: int) -> Batch:
        return Batch(*(torch.randint(5, (3, points, 6), generator=generator) for _ in range(2)))

    return drawn(Decoder(), generator), TaskBatch(batch(2), batch(3))


def deep(generator: torch.Generator) -> nn.Sequential:
    layers = [nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)]
    return drawn(nn.Sequential(*layers), generator)


METHODS = {
    "MAML": MAML(3, 0.1, learn=("inner_lr", "rates")),
    "checkpointed": MAML(4, 0.1, adjoint="checkpointed", snapshots=1),
    "FOMAML": FOMAML(3, 0.1),
    "own steps": AdjointMAML(1.0, "bosh3", rtol=1e-3, proximal=0.2, learn=("proximal",)),
    "stabilised": AdjointMAML(1.0, "rkc", steps=3),
    "implicit steps": AdjointMAML(0.5, "implicit_euler", steps=2),
    "interpolating": AdjointMAML(0.5, "rk4", 3, adjoint="interpolating"),
    "backsolve": AdjointMAML(0.1, "rk4", 3, adjoint="backsolve"),
    "steady": AdjointMAML(float("inf"), "bosh3", proximal=2.0, steady_tol=1e-9),
    "iMAML": ImplicitMAML(2.0, steps=5, inner_lr=0.1, cg_steps=3),
    "Gauss-Newton": ImplicitMAML(2.0, steps=5, inner_lr=0.1, cg_steps=3, curvature="ggn"),
}


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_the_same(name, chunk_size, in_full, generator):
    model, tasks = deep(generator), regression(generator)
    learners = [make(model, mse, METHODS[name], adapt="4.*", chunk_size=chunk_size) for make in (in_full, MetaLearner)]
    # The adaptive steps of both are the same only up to rounding of the estimates.
    agree(*learners, tasks, tolerance=1e-9 if name in ("steady", "implicit steps") else 1e-11)
    assert found(learners[1], tasks) == ({"3"}, {"0", "1", "2"})
    assert relative(learners[1].adapt(tasks.support), learners[0].adapt(tasks.support)) < 1e-11
    assert relative(learners[1].query_losses(tasks), learners[0].query_losses(tasks)) < 1e-11


@pytest.mark.parametrize("mode", ["reverse_over_reverse", "forward_over_reverse"])
@pytest.mark.parametrize(
    ("adapt", "kept"),
    [
        ("blocks.2.mlp.*", {"blocks.1", "blocks.2.mix", "blocks.2.norm2"}),
        ("blocks.*.mlp.2.*", None),
        ("head.*", None),
        ("blocks.1.mix.*", {"blocks.0", "blocks.1.norm1"}),
    ],
)
def test_a_decoder_is_exact_through_tied_and_shared_modules(adapt, kept, mode, generator):
    model, tasks = decoder(generator)
    if adapt == "head.*":  # the tied weight is called after its first name
        adapt = "tokens.*"
    expected = through_every_step(model, nn.functional.cross_entropy, tasks, horizon=0.3, steps=3, adapt=adapt)
    learner = MetaLearner(model, nn.functional.cross_entropy, MAML(3, 0.1), adapt=adapt, mode=mode)
    result = learner.meta_gradient(tasks)
    assert relative(result.loss, expected.losses) < 1e-12
    for name, value in result.grad.items():
        assert relative(value, expected.grad[name]) < 1e-11
    if kept is not None:
        assert found(learner, tasks)[0] == kept


def test_tied_weights_are_read_on_both_sides(generator):
    model, tasks = decoder(generator)
    learner = MetaLearner(model, nn.functional.cross_entropy, MAML(1), adapt="blocks.2.mlp.*")
    learner.meta_gradient(tasks)
    assert learner._batched.prefix(tasks.support.x).layout.names == ("tokens.weight",)


@pytest.mark.parametrize("method", ["MAML", "own steps", "checkpointed", "iMAML"])
def test_programs_read_the_features(method, monkeypatch, generator):
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: graph)  # which would take seconds for each
    model, tasks = deep(generator), regression(generator)
    eager, other = (MetaLearner(model, mse, METHODS[method], adapt="4.*", backend=b) for b in ("eager", "compile"))
    agree(eager, other, tasks)
    again = regression(generator)
    agree(eager, other, again)
    assert other.engine.replayed > 0


class Counting(nn.Linear):
    times = 0

    def forward(self, x: Tensor) -> Tensor:
        self.times += 1
        return super().forward(x)


def test_the_backbone_runs_as_often_for_any_number_of_steps(generator):
    counts = []
    for steps in (1, 10):
        model, tasks = deep(generator), regression(generator)
        model[2] = drawn(Counting(4, 3), generator)
        learner = MetaLearner(model, mse, MAML(steps, 0.1), adapt="6.*")
        learner.meta_gradient(tasks)
        before = model[2].times
        learner.meta_gradient(tasks)
        counts.append(model[2].times - before)
    # Support and query, each once for the features and once for their gradient.
    assert counts == [4, 4]


def test_a_module_with_hooks_is_called_as_ever(in_full, generator):
    model, tasks = deep(generator), regression(generator)
    model[2].register_forward_hook(lambda module, inputs, output: 2 * output)
    model[1].register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],))
    learners = [make(model, mse, MAML(3, 0.1), adapt="4.*") for make in (in_full, MetaLearner)]
    agree(*learners, tasks)
    assert found(learners[1], tasks) == ({"3"}, {"0"})


def test_a_frozen_backbone_needs_no_gradient(in_full, generator):
    model, tasks = deep(generator), regression(generator)
    model[:4].requires_grad_(False)
    learners = [make(model, mse, MAML(3, 0.1)) for make in (in_full, MetaLearner)]
    agree(*learners, tasks, tolerance=1e-13)
    problem = learners[1].support_problem(tasks.support)
    assert problem.psi.numel() == 0 and problem.support.kept.shape == (3, 15)


@pytest.mark.parametrize("name", ["mlp", "conv2d", "transformer", "classifier", "frozen"])
def test_where_all_adapts_from_the_start_nothing_is_kept(name, generator):
    model, loss, points = case(name, generator)
    if name == "frozen":
        model.frozen.requires_grad_(True)
    learner = MetaLearner(model, loss, MAML(2, 0.1))
    learner.meta_gradient(TaskBatch(points, points))
    assert found(learner, TaskBatch(points, points)) == (set(), set())
    assert learner.support_problem(points).support.kept is None


def test_modes_are_looked_at_anew(in_full, generator):
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    layers = [nn.Linear(2, 3, bias=False), norm, nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)]
    model, tasks = drawn(nn.Sequential(*layers), generator), regression(generator)
    learners = [make(model, mse, MAML(3, 0.1), adapt="3.*") for make in (in_full, MetaLearner)]
    for training in (True, False, True):
        model.train(training)
        agree(*learners, tasks)


def test_a_copy_works_on_its_own_model(generator):
    model, tasks = deep(generator), regression(generator)
    learner = MetaLearner(model, mse, MAML(3, 0.1), adapt="4.*")
    expected = learner.meta_gradient(tasks)
    other = copy.deepcopy(learner)
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(other.meta_gradient(tasks).loss, expected.loss)
    assert not torch.equal(learner.meta_gradient(tasks).loss, expected.loss)


def test_features_follow_the_shared_parameters(generator):
    model, tasks = deep(generator), regression(generator)
    learner = MetaLearner(model, mse, MAML(3, 0.1), adapt="4.*")
    learner.meta_gradient(tasks)
    with torch.no_grad():
        model[0].weight.mul_(2)
    expected = through_every_step(model, mse, tasks, horizon=0.3, steps=3, adapt="4.*")
    assert relative(learner.meta_gradient(tasks).grad["0.weight"], expected.grad["0.weight"]) < 1e-12


def test_forward_methods_are_put_back(generator):
    model, tasks = deep(generator), regression(generator)
    before = [dict(vars(module)) for module in model.modules()]
    MetaLearner(model, mse, MAML(2, 0.1), adapt="4.*").meta_gradient(tasks)
    assert [vars(module).keys() for module in model.modules()] == [each.keys() for each in before]
    assert torch.backends.mha.get_fastpath_enabled()


def test_reptile_has_no_shared_parameters_but_may_have_a_backbone(in_full, generator):
    model, tasks = mlp(generator), regression(generator)
    model[0].requires_grad_(False)
    agree(*(make(model, mse, Reptile(2, 0.1)) for make in (in_full, MetaLearner)), tasks)
