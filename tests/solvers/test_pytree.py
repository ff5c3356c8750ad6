"""States to rows and back."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch

from adjoint_meta.solvers.pytree import Layout

Pair = namedtuple("Pair", ["x", "v"])


def states(generator):
    def real(*shape):
        return torch.randn(shape, generator=generator)

    def imaginary(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.complex128)

    return {
        "scalar": real(),
        "tensor": real(3, 2),
        "complex": imaginary(3, 2),
        "transposed": real(3, 2).T,
        "conjugate": imaginary(3).conj(),
        "tuple": (real(3), real(3, 2, 2)),
        "list": [real(3), imaginary(3)],
        "named tuple": Pair(real(3), real(3, 1)),
        "dict": {"b": real(3, 4), "a": imaginary(3)},
        "odd before complex": (real(3, 1), imaginary(3, 2), real(3, 1)),
        "nested": {"a": (real(3), [real(3, 2), {"z": imaginary(3)}])},
        "empty": real(3, 0),
    }


NAMES = list(states(torch.Generator()))


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    if isinstance(tree, (tuple, list)):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree]


def assert_equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
    for ours, theirs in zip(leaves(found), leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name, batched, generator):
    state = states(generator)[name]
    if batched and name in ("scalar", "transposed"):
        pytest.skip("not rows of three")
    layout = Layout(state, batched)
    rows = layout.start(state)
    assert rows.shape == (3 if batched else 1, layout.size)
    assert rows.dtype == torch.float64
    assert_equal(layout.unflatten(rows), state)
    assert torch.equal(layout.flatten(state, "it"), rows)
    stacked = layout.unflatten(torch.stack([rows, 2 * rows]))
    for ours, theirs in zip(leaves(stacked), leaves(state), strict=True):
        assert torch.equal(ours, torch.stack([theirs, 2 * theirs]))
    sizes = sum(leaf.numel() * (1 + leaf.is_complex()) for leaf in leaves(state))
    assert rows.numel() == sizes


@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass_through(name, generator):
    state = states(generator)[name]
    layout = Layout(state)
    rows = layout.start(state).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: layout.flatten(layout.unflatten(rows), "it"), rows)
    assert torch.autograd.gradcheck(lambda rows: leaves(layout.unflatten(rows))[-1], rows)


def test_some_rows(generator):
    state = {"a": torch.randn(3, 2, generator=generator), "b": torch.randn(3, generator=generator)}
    layout = Layout(state, batched=True)
    some = layout.unflatten(layout.start(state)[[2, 0]])
    assert torch.equal(some["a"], state["a"][[2, 0]])
    assert torch.equal(some["b"], state["b"][[2, 0]])


def test_modulus_and_root_mean_square(generator):
    real = torch.randn(2, 3, generator=generator)
    wave = torch.randn(2, 4, generator=generator, dtype=torch.complex128)
    layout = Layout((real, wave), batched=True)
    rows = layout.start((real, wave))
    expected = torch.cat([real.abs(), wave.abs().repeat_interleave(2, dim=1)], dim=1)
    torch.testing.assert_close(layout.modulus(rows), expected)
    each = torch.stack([part.abs().pow(2).mean(dim=1).sqrt() for part in (real, wave)])
    torch.testing.assert_close(layout.root_mean_square(rows), each.amax(dim=0))
    alone = Layout(wave, batched=True)
    torch.testing.assert_close(alone.root_mean_square(alone.start(wave)), each[1])


def test_elements_of_tolerances():
    layout = Layout((torch.zeros(2), torch.zeros(2, 1, dtype=torch.complex128)))
    assert layout.elements("rtol", (1.0, 2.0)).tolist() == [1, 1, 2, 2, 2, 2]
    assert layout.elements("rtol", torch.tensor([1.0, 2.0])).tolist() == [1, 1, 2, 2, 2, 2]
    assert layout.elements("rtol", (torch.tensor([1.0, 2.0]), 3.0)).tolist() == [1, 2, 3, 3, 3, 3]
    named = Layout({"a": torch.zeros(1), "b": torch.zeros(2)})
    assert named.elements("rtol", {"b": 2.0, "a": 1.0}).tolist() == [1, 2, 2]
    with pytest.raises(ValueError, match=r"rtol\[0\] must broadcast to shape \[2\], got \[3\]"):
        layout.elements("rtol", (torch.ones(3), 1.0))


def test_rows_are_copies():
    for state in (torch.zeros(2), torch.zeros(2, dtype=torch.complex128), {"x": torch.zeros(2), "y": torch.zeros(1)}):
        layout = Layout(state)
        rows = [layout.start(state), layout.flatten(state, "it")]
        for leaf in leaves(state):
            leaf.fill_(1.0)
        assert not any(bool(row.any()) for row in rows)


def test_nothing_of_y0s_graph_is_kept():
    y0 = torch.ones(2, requires_grad=True) * 2
    layout = Layout({"x": y0})
    assert all(not leaf.requires_grad for leaf in [*layout._models, *leaves(layout._tree)])
    assert layout.start({"x": y0}).requires_grad


def test_cast_converts_precision_only():
    layout = Layout(torch.zeros(2))
    assert layout.flatten(torch.ones(2, dtype=torch.bfloat16), "it", cast=True).dtype == torch.float64
    with pytest.raises(ValueError, match="it must have shape"):
        layout.flatten(torch.ones(3, dtype=torch.bfloat16), "it", cast=True)
