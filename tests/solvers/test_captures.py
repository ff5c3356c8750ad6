"""What the search and the graph find; `test_odeint_parameters.py` tests what solves make of it."""

from __future__ import annotations

import functools

import torch
from torch import nn

from adjoint_meta.solvers.captures import entangled, leaves_behind, reachable, shown


def ids(tensors):
    return {id(tensor) for tensor in tensors}


def leaf(*shape):
    return torch.ones(shape, requires_grad=True)


def test_only_what_requires_gradients_is_found_and_each_once():
    w, frozen = leaf(2), torch.ones(2)

    def func(t, y, other=w):
        return w * other * frozen * y

    assert ids(reachable(func)) == ids([w])


def test_all_parameters_of_a_module_even_if_idle():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    module[1].bias.requires_grad_(False)
    expected = ids([module[0].weight, module[0].bias, module[1].weight])
    assert ids(reachable(module)) == expected
    assert ids(reachable(functools.partial(lambda m, t, y: m(y), module))) == expected
    compiled = torch.compile(module, backend="eager")
    assert ids(reachable(compiled)) == expected


def test_globals_that_the_code_mentions():
    names = {"torch": torch}
    exec(
        "a = torch.ones(1, requires_grad=True)\nb = torch.ones(1, requires_grad=True)\n"
        "c = torch.ones(1, requires_grad=True)\n"
        "def helper(y): return [(lambda: b * x)() for x in y]\n"
        "def func(t, y): return a * helper(y)[0]\n",
        names,
    )
    assert ids(reachable(names["func"])) == ids([names["a"], names["b"]])


def test_circles_end():
    class Node:
        def __call__(self, t, y):
            return y

    node = Node()
    node.self, node.list = node, []
    node.list.append(node.list)
    node.w = leaf(1)
    assert ids(reachable(node)) == ids([node.w])


def test_data_is_not_looked_through():
    w, data = leaf(1), [leaf(1) for _ in range(2000)]
    assert ids(reachable(lambda t, y: w * data[0] * y)) == ids([w])


def test_unbound_names_are_skipped():
    def func(t, y):
        return later * y

    assert reachable(func) == []
    later = leaf(1)
    assert ids(reachable(func)) == ids([later])


def test_shown_stops_at_what_is_known():
    w, v = leaf(2), leaf(2)
    made = w.exp()
    value = made * v
    assert ids(shown(value, [])) == ids([w, v])
    assert ids(shown(value, [v])) == ids([w])
    assert ids(shown(value, [made])) == ids([v])
    assert shown(value, [made, v]) == []
    assert shown(value, [value]) == []
    assert ids(shown(w, [])) == ids([w])
    assert shown(w, [w]) == []
    assert shown(torch.ones(1), []) == []


def test_shown_tells_outputs_of_one_node_apart():
    w = leaf(2, 2)
    first, second = w.exp().unbind()
    assert shown(first * 2, [first]) == []
    assert ids(shown(second * 2, [first])) == ids([w])


def test_entangled():
    w, v = leaf(2), leaf(2)
    made = w.exp()
    again = made.sin()
    assert not entangled([w, v])
    assert not entangled([made, v])
    assert entangled([made, w])
    assert entangled([made, again])
    assert not entangled([made.sin(), made.cos()])


def test_leaves_behind():
    w, v = leaf(2), leaf(2)
    assert ids(leaves_behind([w, w.exp() * v])) == ids([w, v])
