from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import Tied, mlp
from torch import nn

from adjoint_meta.parameters import Layout, ParameterRows

shapes = st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=4)


@given(shapes=shapes, tasks=st.integers(1, 3))
def test_flattening_and_its_inverse(shapes, tasks):
    tensors = {f"p{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    layout = Layout(tensors)
    flat = layout.flatten(tensors)
    assert flat.shape == (layout.size,) == (sum(math.prod(shape) for shape in shapes),)
    back = layout.unflatten(flat)
    assert list(back) == list(tensors)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())

    rows = torch.randn(tasks, layout.size)
    by_task = layout.unflatten(rows)
    for task in range(tasks):
        alone = layout.unflatten(rows[task])
        assert all(torch.equal(by_task[name][task], alone[name]) for name in tensors)
        assert torch.equal(layout.flatten(alone), rows[task])


def test_unflattened_rows_are_views(generator):
    rows = torch.randn(2, 6, generator=generator)
    parts = Layout({"a": torch.ones(2, 2), "b": torch.ones(2)}).unflatten(rows)
    rows[1, 5] = 7.0
    assert parts["b"][1, 1] == 7.0


def test_the_order_is_that_of_the_model(generator):
    model = mlp(generator)
    theta, psi = ParameterRows(model).read(model)
    assert torch.equal(theta, torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert psi.shape == (0,) and psi.dtype == theta.dtype
    assert not theta.requires_grad


@pytest.mark.parametrize(
    ("adapt", "adapted"),
    [
        (None, ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("*", ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("2.*", ["2.weight", "2.bias"]),
        (["*.bias"], ["0.bias", "2.bias"]),
        (("2.weight", "0.bias"), ["0.bias", "2.weight"]),
        (["[02].weight", "*.weight"], ["0.weight", "2.weight"]),
    ],
)
def test_patterns_divide_the_parameters(adapt, adapted, generator):
    model = mlp(generator)
    rows = ParameterRows(model, adapt)
    names = [name for name, _ in model.named_parameters()]
    assert list(rows.theta.names) == adapted
    assert list(rows.psi.names) == [name for name in names if name not in adapted]
    theta, psi = rows.read(model)
    named = rows.named(theta, psi)
    assert list(named) == adapted + list(rows.psi.names)
    for name, parameter in model.named_parameters():
        assert torch.equal(named[name], parameter)


def test_reading_follows_the_model(generator):
    model = mlp(generator)
    rows = ParameterRows(model)
    before = rows.read(model)[0]
    with torch.no_grad():
        model[0].bias += 1.0
    after = rows.read(model)[0]
    assert torch.equal((after != before).nonzero().flatten(), torch.arange(8, 12))


def test_frozen_parameters_are_constants(generator):
    model = mlp(generator)
    model[0].requires_grad_(False)
    rows = ParameterRows(model)
    assert rows.theta.names == ("2.weight", "2.bias")
    assert rows.psi.names == ()
    with pytest.raises(ValueError, match=r"'0\.\*' matches no trainable parameter"):
        ParameterRows(model, "0.*")


def test_tied_weights_are_one_parameter():
    rows = ParameterRows(Tied())
    assert rows.theta.names == ("encoder.weight", "decoder.bias")
    assert rows.theta.size == 9 + 3


def test_a_pattern_that_matches_nothing_names_its_neighbours(generator):
    with pytest.raises(
        ValueError, match=r"adapt pattern '2\.wieght' matches no trainable parameter; did you mean"
    ) as e:
        ParameterRows(mlp(generator), "2.wieght")
    assert "'2.weight'" in str(e.value)
    with pytest.raises(ValueError, match="'head' matches no trainable"):
        ParameterRows(mlp(generator), ["2.*", "head"])


def test_nothing_to_adapt(generator):
    with pytest.raises(ValueError, match="leaves nothing to adapt"):
        ParameterRows(mlp(generator), [])
    with pytest.raises(ValueError, match="no parameters that require grad"):
        ParameterRows(nn.Tanh())
    with pytest.raises(ValueError, match="no parameters that require grad"):
        ParameterRows(mlp(generator).requires_grad_(False))


@pytest.mark.parametrize("adapt", [None, "2.*"])
def test_mixed_dtypes_are_refused(adapt, generator):
    # With a pattern the two dtypes lie in different groups; the model can run in neither.
    model = mlp(generator)
    model[2].float()
    with pytest.raises(ValueError, match=r"must share one dtype, got \['torch.float32', 'torch.float64'\].*model.to"):
        ParameterRows(model, adapt)


@pytest.mark.parametrize("adapt", [None, "2.*"])
def test_mixed_devices_are_refused(adapt, generator):
    model = mlp(generator)
    model[2].to("meta")
    with pytest.raises(ValueError, match=r"must share one device, got \['cpu', 'meta'\]"):
        ParameterRows(model, adapt)


def test_parameters_that_are_not_real_are_refused():
    model = nn.Linear(2, 1)
    model.phase = nn.Parameter(torch.ones(1, dtype=torch.complex128))
    with pytest.raises(TypeError, match=r"'phase' must be real floating point, got torch\.complex128"):
        ParameterRows(model)
