"""What the RKC stepper says of itself, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from chebyshev_references import DAMPING, Diagonal

from adjoint_meta.solvers.chebyshev import Chebyshev


def test_it_prints_itself_and_says_what_it_is():
    method = Chebyshev()
    assert repr(method) == f"Chebyshev(damping={DAMPING}, max_stages=200, default_stages=10)"
    assert method == Chebyshev(DAMPING) and hash(method) == hash(Chebyshev(DAMPING))
    assert (method.name, method.order, method.estimate_order) == ("rkc", 2, 2)
    assert len(Chebyshev(max_stages=4).step(Diagonal(torch.ones(1, 1)), 0.0, 1.0, torch.ones(1, 1)).states) == 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"damping": -0.1}, ValueError, "damping must be finite and at least 0"),
        ({"damping": math.nan}, ValueError, "damping must be finite"),
        ({"damping": 21.0}, ValueError, "damping must be at most 20, got 21.0"),
        ({"damping": "strong"}, TypeError, "damping must be a number"),
        ({"max_stages": 1}, ValueError, "max_stages must be at least 2, got 1"),
        ({"max_stages": 10.0}, TypeError, "max_stages must be a whole number"),
        ({"default_stages": 1}, ValueError, "default_stages must be at least 2"),
        ({"default_stages": None}, TypeError, "default_stages must be a whole number"),
    ],
)
def test_wrong_settings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Chebyshev(**arguments)


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        (torch.tensor([2, 3, 4]), ValueError, r"stages must have shape \[rows\] = \[4\], got \[3\]"),
        (torch.tensor([[2], [3], [4], [5]]), ValueError, r"got \[4, 1\]"),
        (torch.tensor([2, 3, 1, 4]), ValueError, r"stages must lie in \[2, max_stages = 20\], got 1 to 4"),
        (torch.tensor([2, 3, 21, 4]), ValueError, "got 2 to 21"),
        (torch.tensor([2.0, 3.0, 4.0, 5.0]), TypeError, "tensor of integers, got torch.float"),
        (5, TypeError, "tensor of integers, got int"),
    ],
)
def test_wrong_stages_are_refused(stages, error, message):
    method, field, y = Chebyshev(max_stages=20), Diagonal(torch.ones(4, 1)), torch.ones(4, 1)
    with pytest.raises(error, match=message):
        method.step(field, 0.0, 1.0, y, stages=stages)
    with pytest.raises(error, match=message):
        method.transpose(field, 0.0, 1.0, [y] * 30, y, stages=stages)


@pytest.mark.parametrize("stages", [torch.tensor([2, 1]), torch.tensor([-1]), torch.tensor([201])], ids=str)
def test_no_interval_for_stages_that_there_are_not(stages):
    with pytest.raises(ValueError, match="stages must lie in"):
        Chebyshev().stability(stages)


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (3.0, TypeError, "z must be a floating-point tensor .* got float"),
        (torch.tensor([3]), TypeError, "got torch.int64"),
        (torch.tensor(3.0), ValueError, r"z must have shape \[rows\], got \[\]"),
        (torch.ones(2, 1), ValueError, r"got \[2, 1\]"),
    ],
)
def test_wrong_z_is_refused(z, error, message):
    with pytest.raises(error, match=message):
        Chebyshev().stages(z)


def test_too_few_states_are_refused():
    y = torch.ones(2, 1)
    with pytest.raises(ValueError, match="one state for each of 5 stages, got 4"):
        Chebyshev().transpose(Diagonal(y), 0.0, 1.0, [y] * 4, y, stages=torch.tensor([5, 2]))
