"""The options of odeint control its steps as torchdiffeq's do, and batched rows keep their own pace."""

from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq
from odeint_problems import START, Counted, both_ways, pair, pendulum
from torch import Tensor

from adjoint_meta.solvers.odeint import odeint

# Options


def test_norm_sees_the_state_and_is_what_is_controlled():
    t, y0 = torch.tensor([0.0, 3.0]), torch.tensor([[1.0, 0.0]])

    def func(t, y):
        return torch.stack([y[:, 1], -y[:, 0] - 10 * (y[:, 1] - torch.cos(5 * t))], dim=1)

    counts = {}
    for name, norm in {
        "default": None,
        "rms": lambda x: x.pow(2).mean().sqrt(),
        "max": lambda x: x.abs().max(),
        "first": lambda x: (x.shape == (1, 2)) * x[0, 0].abs().item(),
    }.items():
        counted = Counted(func)
        options = {} if norm is None else {"norm": norm}
        odeint(counted, y0, t, rtol=1e-5, atol=1e-5, options=options)
        counts[name] = counted.count
    assert counts["default"] == counts["rms"]
    assert counts["max"] > counts["default"] > counts["first"]


def test_the_norm_of_a_tuple_is_the_largest_of_its_tensors():
    """Padding one tensor with idle entries changes nothing, as it would in a mean over all entries."""
    counts = []
    for idle in (1, 1000):
        y0 = (torch.tensor([1.0, 2.0]), torch.tensor([0.5, -0.5]), torch.zeros(idle))
        counted = Counted(lambda t, y: (*pair(t, y[:2]), torch.zeros_like(y[2])))
        odeint(counted, y0, torch.tensor([0.0, 10.0]))
        counts.append(counted.count)
    assert counts[0] == counts[1]
    seen = []

    def norm(state):
        seen.append(state)
        return max(part.abs().max() for part in state)

    odeint(pair, (torch.ones(2), torch.ones(2)), torch.tensor([0.0, 1.0]), options={"norm": norm})
    assert all(isinstance(state, tuple) and [part.shape for part in state] == [(2,), (2,)] for state in seen)
    assert seen


@pytest.mark.parametrize("form", ["element", "part"])
def test_tolerances_an_element_or_a_part(form):
    """A component without tolerance to speak of costs nothing; torchdiffeq takes the same."""
    y0 = (torch.ones(1), torch.ones(2))

    def func(t, y):
        return -y[0], torch.stack([torch.cos(30 * t), torch.sin(30 * t)])

    t = torch.tensor([0.0, 4.0])
    if form == "part":
        loose, args = {"rtol": (1e-6, 1e3), "atol": (1e-6, 1e3)}, (func, y0)
    else:
        loose = {"rtol": torch.tensor([1e-6, 1e3, 1e3]), "atol": torch.tensor([1e-6, 1e3, 1e3])}
        args = (lambda t, y: torch.cat(func(t, (y[:1], y[1:]))), torch.cat(y0))
    ours, theirs, tight = Counted(args[0]), Counted(args[0]), Counted(args[0])
    found = odeint(ours, args[1], t, **loose)
    torchdiffeq.odeint(theirs, args[1], t, **loose)
    odeint(tight, args[1], t, rtol=1e-6, atol=1e-6)
    assert ours.count < tight.count / 3
    assert ours.count <= 1.2 * theirs.count
    first = found[0][-1] if form == "part" else found[-1][:1]
    torch.testing.assert_close(first, torch.exp(-t[1:]), rtol=0, atol=1e-5)


def test_first_step_is_taken():
    func = Counted(lambda t, y: -y)
    odeint(func, torch.ones(1), torch.tensor([1.0, 0.0]), options={"first_step": 0.25})
    assert (func.seen[0][0], func.seen[1][0]) == (1.0, 1.0 - 0.25 / 5)


def test_safety_and_factors_set_the_steps():
    counts = []
    for options in ({}, {"safety": 0.5}, {"ifactor": 1.01, "first_step": 0.01}):
        func = Counted(pendulum)
        odeint(func, START, torch.tensor([0.0, 10.0]), options=options)
        counts.append(func.count)
    assert counts[1] > 1.3 * counts[0]
    assert counts[2] > 2 * counts[0]


# Rows at their own pace


def rates(t: Tensor, y: Tensor) -> Tensor:
    """Rows [4, 2] of different stiffness, with data a row in the closure."""
    assert y.shape == (4, 2)
    assert t.shape == (4, 1)
    return -RATES[:, None] * (y - torch.cos(t)) - y**3


RATES = torch.tensor([0.5, 40.0, 3.0, 200.0], dtype=torch.float64)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3"])
@both_ways
def test_batched_rows_are_solved_as_if_alone(method, direction, generator):
    y0 = torch.randn(4, 2, generator=generator)
    t = torch.linspace(0, 1, 6) if direction == "forward" else torch.linspace(0.01, 0, 4)
    found = odeint(rates, y0, t, method=method, rtol=1e-6, atol=1e-8, batched=True)
    for row in range(4):

        def alone(t: Tensor, y: Tensor, row: int = row) -> Tensor:
            return -RATES[row] * (y - torch.cos(t)) - y**3

        expected = odeint(alone, y0[row], t, method=method, rtol=1e-6, atol=1e-8)
        # The same steps; sums over columns may round differently.
        torch.testing.assert_close(found[:, row], expected, rtol=1e-10, atol=1e-12)


def test_batched_takes_tuples_and_norms_a_row():
    y0 = (torch.ones(3, 2), torch.ones(3))

    def func(t, y):
        assert t.shape == (3, 1)
        return -y[0] * t, -y[1] * t[:, 0]

    def norm(state):
        return torch.stack([state[0].abs().amax(dim=1), state[1].abs()]).amax(dim=0)

    found = odeint(func, y0, torch.tensor([0.0, 2.0]), batched=True, options={"norm": norm})
    assert [part.shape for part in found] == [(2, 3, 2), (2, 3)]
    torch.testing.assert_close(found[1][-1], torch.full((3,), math.exp(-2)), rtol=1e-6, atol=1e-8)
