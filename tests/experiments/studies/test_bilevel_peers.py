"""What is measured is the same number: the plain meta-gradients equal ours, on a small network with batch norm."""

import pytest
import torch
from torch.func import functional_call

from adjoint_meta.experiments.studies.bilevel_peers import DAMPING
from adjoint_meta.experiments.studies.contestants import FEW_SHOT
from adjoint_meta.experiments.studies.workloads import FIVE_WAY, INNER_LR, Placed, conv_net, image_tasks, place

PAIRS = {
    "memory-reduced": "plain Algorithm 1",
    "memory-reduced, all tasks at once": "plain Algorithm 1",
    "ANIL and ITD-BiO": "plain ANIL",
    "MAML, task by task": "plain MAML",
}


@pytest.fixture
def small():
    """Two tasks of three ways, 4 support and 2 query images a class, 3 features, float64."""
    tasks = image_tasks(2, ways=3, side=16, shots=4, queries=2, channels=2).to(dtype=torch.float64)
    net = conv_net(filters=3, ways=3, side=16, channels=2)
    return Placed(net.double(), torch.nn.CrossEntropyLoss(), tasks)


def gradient(name, placed, steps):
    return FEW_SHOT[name].prepare(placed, steps, "eager")()


def largest_difference(found, expected):
    return float((found - expected).norm().detach() / expected.norm().detach())


@pytest.mark.parametrize("ours", PAIRS)
def test_ours_and_the_plain_one_are_one_number(small, ours):
    found, plain = (gradient(name, small, 6) for name in (ours, PAIRS[ours]))
    assert largest_difference(found, plain) < 1e-9


def test_features_in_every_step_change_no_number(small):
    assert largest_difference(gradient("plain ITD-BiO", small, 6), gradient("plain ANIL", small, 6)) < 1e-12


def test_algorithm_1_is_the_dense_formula(small):
    """With the Hessian and the mixed derivatives as matrices, a task at a time."""
    model, steps = small.model, 5
    names, heads = [n for n, _ in model.named_parameters() if n.startswith("features.")], ("head.weight", "head.bias")
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    psi = torch.cat([parameters[name].flatten() for name in names])
    expected = torch.zeros_like(psi)

    def weights(phi, psi):
        pieces = torch.cat([psi, phi]).split([parameters[name].numel() for name in (*names, *heads)])
        return {n: part.view_as(parameters[n]) for n, part in zip((*names, *heads), pieces, strict=True)}

    for task in range(2):

        def loss(batch, phi, psi, task=task):
            return small.loss(functional_call(model, weights(phi, psi), (batch.x[task],)), batch.y[task])

        support, query = small.tasks.support, small.tasks.query
        phi = torch.cat([parameters[name].flatten() for name in heads])
        for _ in range(steps):
            phi = phi - INNER_LR * torch.func.grad(loss, 1)(support, phi, psi)
        hessian = torch.func.hessian(loss, 1)(support, phi, psi) + DAMPING * torch.eye(len(phi), dtype=phi.dtype)
        v = torch.linalg.solve(hessian, torch.func.grad(loss, 1)(query, phi, psi))
        mixed = torch.func.jacrev(torch.func.grad(loss, 2), 1)(support, phi, psi)
        expected += (torch.func.grad(loss, 2)(query, phi, psi) - mixed @ v) / 2
    for name in ("plain Algorithm 1", "memory-reduced"):
        found = gradient(name, small, steps)
        assert largest_difference(found[: len(psi)], expected) < 1e-8, name
        assert not found[len(psi) :].any(), "the head's start gets no gradient"


def test_the_model_is_left_as_it_was(small):
    before = [p.clone() for p in small.parameters]
    for name in FEW_SHOT:
        gradient(name, small, 2)
    assert all(torch.equal(was, p) and p.grad is None for was, p in zip(before, small.parameters, strict=True))


@pytest.mark.parametrize("name", FIVE_WAY)
def test_tasks_are_five_ways_of_five_shots(name):
    placed = place(name, 1, torch.device("cpu"), torch.float32)
    queries = 25 if name == "five-way-halves" else 75
    assert placed.tasks.support.x.shape[:2] == (1, 25) and placed.tasks.query.x.shape[:2] == (1, queries)
    assert placed.model(placed.tasks.support.x[0]).shape == (25, 5)
    assert placed.tasks.support.y.unique().tolist() == [0, 1, 2, 3, 4]
