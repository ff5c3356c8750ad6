"""Activations that are computed again change no number, and are not kept."""

from __future__ import annotations

import pytest
import torch
from problems import drawn, regression
from references import relative, through_every_step
from torch import Tensor, nn

from adjoint_meta import MAML, AdjointMAML, Batch, ImplicitMAML, MetaLearner, TaskBatch
from adjoint_meta.batched_model import BatchedModel, twice_differentiable
from adjoint_meta.curvature import Curvature
from adjoint_meta.linearisation import MODES
from adjoint_meta.parameters import ParameterRows
from adjoint_meta.rematerialisation import Rematerialisation

every_mode = pytest.mark.parametrize("mode", MODES)


class Block(nn.Module):
    """Takes two tensors, one of integers, by name and by place; returns a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4))
        self.places = nn.Embedding(6, 4)

    def forward(self, x: Tensor, *, where: Tensor) -> tuple[Tensor, str]:
        x = x + self.places(where)
        at = self.norm(x)
        x = x + self.mix(at, at, at, need_weights=False)[0]
        return x + self.mlp(x), "beside"


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        for block in self.blocks:
            h, word = block(h, where=torch.arange(x.shape[-1]))
            assert word == "beside"
        return self.head(h).mT


@pytest.fixture
def tasks(generator):
    def batch(points: int) -> Batch:
        return Batch(*(torch.randint(5, (3, points, 6), generator=generator) for _ in range(2)))

    return TaskBatch(batch(2), batch(3))


@every_mode
@pytest.mark.parametrize("adapt", [None, "blocks.*.mlp.*", "blocks.[12].*", "blocks.2.mlp.*", "head.*"])
def test_meta_gradients_are_exact(adapt, mode, tasks, generator):
    model = drawn(Decoder(), generator)
    expected = through_every_step(model, nn.functional.cross_entropy, tasks, horizon=0.3, steps=3, adapt=adapt)
    learner = MetaLearner(
        model, nn.functional.cross_entropy, MAML(3, 0.1), adapt=adapt, mode=mode, remat="blocks.*", chunk_size=2
    )
    found = learner.meta_gradient(tasks)
    assert relative(found.loss, expected.losses) < 1e-12
    for name, value in found.grad.items():
        assert relative(value, expected.grad[name]) < 1e-11


@pytest.mark.parametrize(
    "method",
    [
        AdjointMAML(0.5, "bosh3", rtol=1e-2),
        AdjointMAML(0.5, "implicit_euler", steps=2),
        ImplicitMAML(2.0, steps=5, inner_lr=0.1, cg_steps=3),
        ImplicitMAML(2.0, steps=5, inner_lr=0.1, cg_steps=3, curvature="ggn"),
    ],
    ids=["own steps", "implicit steps", "iMAML", "Gauss-Newton"],
)
def test_every_way_to_use_products(method, generator):
    model = drawn(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), generator)
    tasks = regression(generator)
    plain, remat = (
        MetaLearner(
            model, nn.functional.mse_loss, method, backend="eager", remat=names, mode="forward_over_reverse"
        ).meta_gradient(tasks)
        for names in ((), "[01]")
    )
    assert remat.stats["n_hvp"] == plain.stats["n_hvp"]
    for name, value in plain.grad.items():
        assert relative(remat.grad[name], value) < 1e-9  # Newton's method stops by a tolerance


class Counting(nn.Tanh):
    times = 0

    def forward(self, x: Tensor) -> Tensor:
        self.times += 1
        return super().forward(x)


@every_mode
def test_a_module_is_evaluated_again_in_the_backward_pass(mode, generator):
    points, act = regression(generator).support, Counting()
    model = drawn(nn.Sequential(nn.Linear(2, 4), act, nn.Linear(4, 1)), generator)
    rows = ParameterRows(model)
    curvature = Curvature(BatchedModel(model, nn.functional.mse_loss, rows, "1"), mode)
    phi = rows.read(model)[0].repeat(3, 1)
    with twice_differentiable():
        curvature.gradients(phi, torch.zeros(0), points)
        assert act.times == 2
        curvature.losses(phi, torch.zeros(0), points)  # has no backward pass
        assert act.times == 3


def test_what_is_kept_does_not_grow_with_the_layers_within_a_block(generator):
    """Counted by what autograd saves of the size of an activation."""

    def saved(remat: str | tuple[str, ...]) -> int:
        block = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(3, 3), nn.Tanh())))
        model = drawn(nn.Sequential(nn.Linear(2, 3), block, nn.Linear(3, 1)), generator)
        rows, points = ParameterRows(model), regression(generator, points=50).support
        batched, phi = BatchedModel(model, nn.functional.mse_loss, rows, remat), rows.read(model)[0].repeat(3, 1)
        addresses = set()

        def pack(tensor: Tensor) -> Tensor:
            if tensor.numel() == 3 * 50 * 3:
                addresses.add(tensor.data_ptr())
            return tensor

        with twice_differentiable(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = batched.losses(phi.requires_grad_(), torch.zeros(0), points)
        assert loss.requires_grad
        return len(addresses)

    assert saved("1") <= 2 < 6 <= saved(())


def test_the_outermost_of_nested_modules_counts():
    assert Rematerialisation(Decoder(), "blocks.*").names == ["blocks.0", "blocks.1", "blocks.2"]
    assert Rematerialisation(Decoder(), ["blocks.1.mlp", "blocks.1", "head"]).names == ["blocks.1", "head"]
    assert Rematerialisation(Decoder()).names == []


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"remat pattern 'block\.\*' matches no module"):
        MetaLearner(Decoder(), nn.functional.cross_entropy, MAML(), remat="block.*")
    with pytest.raises(ValueError, match="remat works on the eager backend only, got backend='compile'"):
        MetaLearner(Decoder(), nn.functional.cross_entropy, MAML(), remat="blocks.*", backend="compile")


def test_operations_without_a_forward_rule_say_what_to_do(generator):
    model = drawn(nn.Sequential(nn.Linear(2, 6), nn.GroupNorm(2, 6), nn.Tanh(), nn.Linear(6, 1)), generator)
    tasks = regression(generator)
    learner = MetaLearner(model, nn.functional.mse_loss, MAML(1), remat="1", mode="forward_over_reverse")
    with pytest.raises(ValueError, match="mode='reverse_over_reverse'"):
        learner.meta_gradient(tasks)
    MetaLearner(model, nn.functional.mse_loss, MAML(1), remat="1").meta_gradient(tasks)
