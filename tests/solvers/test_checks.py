from __future__ import annotations

import numpy as np
import pytest
import torch

from adjoint_meta.solvers import checks


def test_a_name_is_returned_or_its_neighbours_are_named():
    options = ("reverse_over_reverse", "forward_over_reverse", "discrete")
    assert checks.one_of("mode", "discrete", options) == "discrete"
    with pytest.raises(ValueError, match=r"^unknown mode 'discret'; did you mean 'discrete'\?$"):
        checks.one_of("mode", "discret", options)
    with pytest.raises(ValueError, match="expected one of discrete, forward_over_reverse, reverse_over_reverse"):
        checks.one_of("mode", "xyz", options)


@pytest.mark.parametrize("name", [None, 3, ["discrete"]])
def test_a_name_that_is_no_string_is_refused(name):
    with pytest.raises(ValueError, match="unknown mode"):
        checks.one_of("mode", name, ("discrete",))


def test_options_may_be_an_iterator():
    with pytest.raises(ValueError, match="did you mean 'rk4'"):
        checks.one_of("solver", "rk5", iter(["rk4", "euler"]))


@pytest.mark.parametrize("value", [1, 0.5, 1e-300, np.float64(2.0)])
def test_positive_numbers_pass(value):
    checks.positive("x", value)


@pytest.mark.parametrize("value", [0, -1, 0.0, -0.5, float("nan"), float("inf")])
def test_numbers_that_are_not_positive_and_finite(value):
    with pytest.raises(ValueError, match="x must be positive and finite, got"):
        checks.positive("x", value)


@pytest.mark.parametrize("check", [checks.positive, lambda what, value: checks.at_least(what, value, 0.0)])
@pytest.mark.parametrize("value", [True, "1", None, torch.tensor(1.0), 1j])
def test_what_is_no_number(check, value):
    with pytest.raises(TypeError, match="x must be a number, got"):
        check("x", value)


@pytest.mark.parametrize(("value", "passes"), [(0, True), (0.5, True), (-1e-9, False), (float("nan"), False)])
def test_at_least(value, passes):
    if passes:
        checks.at_least("x", value, 0.0)
    else:
        with pytest.raises(ValueError, match=r"x must be finite and at least 0\.0, got"):
            checks.at_least("x", value, 0.0)
    with pytest.raises(ValueError, match="finite"):
        checks.at_least("x", float("inf"), 0.0)


def test_counts():
    checks.count("steps", 1)
    checks.count("steps", 0, least=0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        checks.count("steps", 0)
    with pytest.raises(ValueError, match="steps must be at least 3, got 2"):
        checks.count("steps", 2, least=3)


@pytest.mark.parametrize("value", [1.0, True, "1", None])
def test_what_is_no_whole_number(value):
    with pytest.raises(TypeError, match="steps must be a whole number, got"):
        checks.count("steps", value)


@pytest.mark.parametrize("value", [np.int64(3), np.int32(3)])
def test_numpys_whole_numbers_are_whole_numbers(value):
    # They come out of np.arange, and out of any table of settings.
    checks.count("steps", value)
    checks.positive("x", np.float32(0.5))


def test_rows():
    checks.rows("b", torch.ones(1, 0))
    for value in (torch.ones(3), torch.ones(1, 2, 3), torch.ones(0, 3)):
        with pytest.raises(ValueError, match=r"b must have shape \[rows, P\] with at least one row, got \["):
            checks.rows("b", value)
    with pytest.raises(TypeError, match=r"b must be floating point, got torch\.int64; convert it"):
        checks.rows("b", torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(TypeError, match="got list"):
        checks.rows("b", [[1.0]])


def test_like():
    checks.like("v", torch.ones(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"v must have shape \[3\], got \[2\]"):
        checks.like("v", torch.ones(2), torch.zeros(3))
    with pytest.raises(TypeError, match=r"v must be torch\.float64, got torch\.float32"):
        checks.like("v", torch.ones(2, dtype=torch.float32), torch.zeros(2))
    with pytest.raises(ValueError, match="v must be on meta, got cpu"):
        checks.like("v", torch.ones(2), torch.zeros(2, device="meta"))
