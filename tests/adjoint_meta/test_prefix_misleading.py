"""Modules that write in place, leave values behind or change from call to call mislead nothing into being kept."""

from __future__ import annotations

import pytest
import torch
from prefix_agreement import agree, found, mse
from problems import drawn, regression
from torch import Tensor, nn

from adjoint_meta import MAML, MetaLearner
from adjoint_meta.dependence import independent_calls


class Odd(nn.Module):
    """A backbone, an adapted layer and a last layer, and something that could mislead between them."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.seen = what, None
        self.base, self.head, self.out = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.middle = Middle(self)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sin(self.base(x))
        if self.what == "in place":
            z = self.middle(h)
            return self.out(self.head(z) + h)  # h has been changed
        if self.what == "left behind":
            self.middle(h)
            return self.out(self.head(h) * self.seen)
        if self.what == "order":
            return self.out(self.middle(self.head(h)) + self.middle(h))
        if self.what == "passed on":
            return self.out(self.head(self.middle(h)) + h)
        return self.out(torch.tanh(self.head(h)) + self.middle(self.head(h)) + self.middle(h))


class Middle(nn.Module):
    def __init__(self, owner: Odd) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.owner = [owner]

    def forward(self, h: Tensor) -> Tensor:
        what = self.owner[0].what
        if what == "in place":
            return h.mul_(self.weight)
        if what == "passed on":
            return h
        if what == "left behind":
            self.owner[0].seen = h * self.weight
            return torch.sin(self.owner[0].seen)
        if what == "detached":
            return h.detach() * self.weight
        if what == "indices":
            return self.weight[h.argmax(-1)][..., None].expand(h.shape)
        return torch.sin(h * self.weight)


@pytest.mark.parametrize("what", ["in place", "left behind", "order", "detached", "indices", "passed on"])
def test_nothing_misleads(what, in_full, generator):
    model, tasks = drawn(Odd(what), generator), regression(generator)
    if what == "passed on":
        model.middle.weight.requires_grad_(False)
    learners = [make(model, mse, MAML(3, 0.1), adapt="head.*") for make in (in_full, MetaLearner)]
    agree(*learners, tasks)


def test_indices_that_depend_on_what_adapts_are_seen(generator):
    """No gradient would tell: the result of a call depends on φ although it does not require grad."""
    model, x = drawn(Odd("indices"), generator), torch.randn(5, 2, generator=generator)
    calls = independent_calls(model, {name: p for name, p in model.named_parameters() if "head" in name}, x)
    assert set(calls.kept) == {("base", 0), ("middle", 1)}


def test_a_model_whose_calls_change_is_evaluated_in_full(generator):
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.times = 0
            self.base, self.head = nn.Linear(2, 3), nn.Linear(3, 1)
            self.other = drawn(nn.Linear(2, 3), generator).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            self.times += 1
            return self.head((self.other if self.times == 2 else self.base)(x))

    learner = MetaLearner(drawn(Restless(), generator), mse, MAML(1), adapt="head.*")
    tasks = regression(generator)
    learner.meta_gradient(tasks)
    assert found(learner, tasks) == (set(), set())


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("act", [nn.SiLU(inplace=True), nn.LeakyReLU(inplace=True), nn.ReLU(inplace=True)])
def test_features_that_the_rest_changes_in_place_are_not_kept(act, frozen, generator):
    plain = type(act)()
    found = []
    for activation in (act, plain):
        model = nn.Sequential(nn.Linear(2, 4), activation, nn.Linear(4, 1))
        weights = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=weights))
        model[0].requires_grad_(not frozen)
        learner = MetaLearner(model, mse, MAML(4, 0.1), adapt=None if frozen else "2.*", backend="eager")
        tasks = regression(torch.Generator().manual_seed(4))
        found.append((learner.meta_gradient(tasks), learner.query_losses(tasks)))
    (ours, losses), (expected, wanted) = found
    assert torch.allclose(losses, wanted, rtol=1e-12) and torch.allclose(ours.loss, expected.loss, rtol=1e-12)
    for name, value in expected.grad.items():
        assert torch.allclose(ours.grad[name], value, rtol=1e-10)


def test_a_body_that_works_in_place_within_itself_is_kept(generator):
    body = nn.Sequential(nn.Linear(2, 4), nn.SiLU(inplace=True))
    model = nn.Sequential(body, nn.Linear(4, 1))
    learner = MetaLearner(model, mse, MAML(2, 0.1), adapt="1.*", backend="eager")
    tasks = regression(generator)
    learner.meta_gradient(tasks)
    prefix = learner._batched.prefix(tasks.support.x)
    assert prefix is not None and list(prefix.calls.kept) == [("0", 0)]
