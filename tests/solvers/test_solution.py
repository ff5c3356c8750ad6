from __future__ import annotations

import pytest
import torch

from adjoint_meta.solvers import SolverError, Status
from adjoint_meta.solvers.solution import finite_codes, raise_if_failed, statuses


def test_every_status_has_a_code_of_its_own_and_a_sentence():
    codes = torch.tensor([status.code for status in Status])
    assert len(set(codes.tolist())) == len(Status)
    assert statuses(codes) == list(Status)
    assert all(status.value.endswith(".") for status in Status)


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.SUCCESS])
def test_a_failure_says_what_to_change(status):
    # Advice comes after a colon, or as a sentence in the imperative.
    codes = torch.tensor([Status.SUCCESS.code, status.code])
    with pytest.raises(SolverError) as caught:
        raise_if_failed("the solve", codes)
    assert str(caught.value) == f"the solve failed in 1 of 2 rows (row 1): {status.value}"
    advice = ("allow more", "decrease", "raise the", "take more", "Add damping", "Loosen")
    assert any(words in status.value for words in advice)


def test_success_and_what_is_acceptable_raise_nothing():
    raise_if_failed("the solve", torch.tensor([Status.SUCCESS.code] * 3))
    codes = torch.tensor([Status.SUCCESS.code, Status.MAX_STEPS.code])
    raise_if_failed("the solve", codes, acceptable=(Status.SUCCESS, Status.MAX_STEPS))
    with pytest.raises(SolverError):
        raise_if_failed("the solve", codes, acceptable=(Status.SUCCESS, Status.BREAKDOWN))


def test_many_rows_are_counted_but_not_all_listed():
    with pytest.raises(SolverError, match=r"failed in 20 of 20 rows \(row 0, 1, 2, 3, 4, 5, 6, 7, …\)"):
        raise_if_failed("the solve", torch.full((20,), Status.DIVERGED.code))


def test_a_solver_error_is_a_runtime_error():
    assert issubclass(SolverError, RuntimeError)


def test_rows_that_are_not_finite():
    y = torch.tensor([[1.0, 2.0], [float("nan"), 0.0], [0.0, float("-inf")]])
    assert statuses(finite_codes(y)) == [Status.SUCCESS, Status.NON_FINITE, Status.NON_FINITE]
