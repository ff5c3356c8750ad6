"""solve_ivp, held against closed forms and scipy."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import solve_ivp as scipys
from torch import Tensor

from adjoint_meta.solvers.ivp import solve_ivp
from adjoint_meta.solvers.solution import SolverError, Status

METHODS = ["tsit5", "dopri5", "bosh3", "adaptive_heun", "fehlberg2"]
ORDERS = {"tsit5": 4, "dopri5": 4, "bosh3": 3, "adaptive_heun": 2, "fehlberg2": 2}


def rotation(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"x": y["v"], "v": -y["x"]}


def start() -> dict[str, Tensor]:
    return {"x": torch.tensor([0.0]), "v": torch.tensor(1.0)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("end", [6.0, -6.0])
def test_steps_dense_output_and_counts(method, end):
    calls = []

    def func(t, y):
        calls.append(t)
        return {"x": y["v"][None], "v": -y["x"][0]}

    tolerance = 1e-4 if method in ("adaptive_heun", "fehlberg2") else 1e-7
    found = solve_ivp(func, (0.0, end), start(), method=method, rtol=tolerance, atol=tolerance)
    assert found.status is Status.SUCCESS
    assert found.success
    found.raise_if_failed()
    assert found.reached == end
    assert found.evaluations == len(calls)
    assert found.ts.shape == (found.accepted + 1,)
    assert found.ts[0] == 0
    assert found.ts[-1] == end
    assert bool((found.ts.diff() * math.copysign(1, end) > 0).all())
    assert found.ys["x"].shape == (found.accepted + 1, 1)
    assert found.ys["v"].shape == (found.accepted + 1,)
    torch.testing.assert_close(found.ys["x"][:, 0], torch.sin(found.ts), rtol=0, atol=1000 * tolerance)
    # Between the steps it is as accurate as at their ends, at which it passes through them.
    torch.testing.assert_close(found.sol(found.ts)["x"], found.ys["x"], rtol=0, atol=1e-13)
    t = torch.linspace(0, end, 301)
    torch.testing.assert_close(found.sol(t)["v"], torch.cos(t), rtol=0, atol=1000 * tolerance)
    assert found.sol(t)["x"].shape == (301, 1)
    assert found.sol(1.5 if end > 0 else -1.5)["v"].shape == ()
    assert found.sol(torch.tensor(end / 2))["v"].item() == pytest.approx(math.cos(3), abs=1000 * tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_the_dense_output(method):
    """One step of h: the error inside shrinks like h^(q+1), and its slope is continuous where steps meet."""
    errors = []
    for h in (0.2, 0.1):
        found = solve_ivp(
            lambda t, y: y * torch.cos(t), (0.0, 2 * h), torch.ones(1), method=method, rtol=1e6, atol=1e6, first_step=h
        )
        assert found.accepted <= 2
        t = torch.linspace(0, found.ts[1].item(), 23)
        errors.append((found.sol(t)[:, 0] - torch.exp(torch.sin(t))).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[method] + 1, abs=0.45)


@pytest.mark.parametrize("method", ["tsit5", "dopri5", "bosh3"])
def test_dense_output_is_smooth_across_steps(method):
    found = solve_ivp(lambda t, y: y * torch.cos(t), (0.0, 5.0), torch.ones(1), method=method)
    inner, small = found.ts[1:-1], 1e-6
    left = (found.sol(inner) - found.sol(inner - small)) / small
    right = (found.sol(inner + small) - found.sol(inner)) / small
    torch.testing.assert_close(left, right, rtol=0, atol=1e-4)


def test_t_eval_is_what_is_returned():
    t = torch.tensor([0.5, 0.1, 3.0, 3.0, 0.0])
    found = solve_ivp(lambda t, y: -y, (0, 3), torch.ones(2), t_eval=t, rtol=1e-8, atol=1e-10)
    assert torch.equal(found.ts, t)
    torch.testing.assert_close(found.ys, torch.exp(-t)[:, None].expand(5, 2), rtol=1e-6, atol=0)
    assert torch.equal(found.ys[-1], torch.ones(2))


def test_scipy_agrees_on_the_default_tolerances():
    def func(t, y):
        return torch.stack([y[1], 2 * (1 - y[0] ** 2) * y[1] - y[0]])

    found = solve_ivp(func, (0.0, 10.0), torch.tensor([2.0, 0.0]), method="dopri5")
    theirs = scipys(lambda t, y: func(t, torch.as_tensor(y)).numpy(), (0, 10), [2.0, 0.0], "RK45")
    exact = scipys(
        lambda t, y: func(t, torch.as_tensor(y)).numpy(), (0, 10), [2.0, 0.0], "DOP853", rtol=1e-11, atol=1e-11
    )
    error = (found.ys[-1] - torch.as_tensor(exact.y[:, -1])).abs().max()
    assert error <= 2 * abs(theirs.y[:, -1] - exact.y[:, -1]).max()
    assert found.evaluations <= 1.3 * theirs.nfev


# Rows


RATES = torch.tensor([1.0, 100.0, 5.0], dtype=torch.float64)


def relax(t: Tensor, y: Tensor) -> Tensor:
    return -RATES[:, None] * (y - torch.cos(t))


def test_rows_take_their_own_steps():
    y0 = torch.zeros(3, 2)
    found = solve_ivp(relax, (0.0, 2.0), y0, batched=True, rtol=1e-6, atol=1e-8)
    assert found.status == [Status.SUCCESS] * 3
    assert found.accepted.shape == (3,)
    assert found.accepted[1] > 3 * found.accepted[0]
    assert found.ts.shape == (int(found.accepted.max()) + 1, 3)
    assert found.ys.shape == (*found.ts.shape, 2)
    assert torch.equal(found.ts[-1], torch.full((3,), 2.0))
    for row in range(3):
        alone = solve_ivp(
            lambda t, y, row=row: -RATES[row] * (y - torch.cos(t)), (0.0, 2.0), y0[row], rtol=1e-6, atol=1e-8
        )
        assert (alone.accepted, alone.rejected) == (found.accepted[row], found.rejected[row])
        assert alone.evaluations == found.evaluations[row]
        steps = alone.accepted + 1
        torch.testing.assert_close(found.ts[:steps, row], alone.ts, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.ys[:steps, row], alone.ys, rtol=1e-9, atol=1e-11)
        assert bool((found.ts[steps:, row] == 2.0).all())
        torch.testing.assert_close(found.ys[steps:, row], alone.ys[-1:].expand(len(found.ts) - steps, 2))
        t = torch.linspace(0, 2, 50)
        torch.testing.assert_close(found.sol(t)[:, row], alone.sol(t), rtol=1e-8, atol=1e-10)


def test_times_a_row():
    found = solve_ivp(relax, (0.0, 2.0), torch.zeros(3, 2), batched=True)
    t = torch.tensor([[0.1, 0.2, 0.3], [2.0, 1.0, 0.0]])
    values = found.sol(t)
    assert values.shape == (2, 3, 2)
    for i in range(2):
        for row in range(3):
            assert torch.equal(values[i, row], found.sol(t[i, row])[row])


def test_rows_that_fail_leave_the_others_alone():
    y0 = torch.tensor([[0.1], [1.0], [torch.inf]])[:2]
    found = solve_ivp(lambda t, y: y**2, (0.0, 2.0), y0, batched=True, t_eval=torch.tensor([0.0, 0.5, 1.5, 2.0]))
    assert found.status == [Status.SUCCESS, Status.UNDERFLOW]
    assert not found.success
    assert found.reached[0] == 2.0
    assert found.reached[1].item() == pytest.approx(1.0, abs=1e-3)
    torch.testing.assert_close(found.ys[:, 0, 0], 0.1 / (1 - 0.1 * found.ts), rtol=1e-3, atol=0)
    assert torch.isnan(found.ys[2:, 1]).all()
    assert torch.isfinite(found.ys[:2, 1]).all()
    with pytest.raises(SolverError, match=r"solve_ivp failed in 1 of 2 rows \(row 1\)"):
        found.raise_if_failed()
    with pytest.raises(ValueError, match="the solution is known from t = 0 to 1"):
        found.sol(1.5)


# Failures and arguments


def test_a_solve_that_fails_says_so_and_raises_nothing():
    few = solve_ivp(lambda t, y: -y, (0.0, 100.0), torch.ones(1), max_steps=5)
    assert few.status is Status.STEP_LIMIT
    assert 0 < few.reached < 100
    assert few.ts[-1] == few.reached
    torch.testing.assert_close(few.ys[:, 0], torch.exp(-few.ts), rtol=0, atol=1e-3)
    never = solve_ivp(lambda t, y: y * torch.nan, (0.0, 1.0), torch.ones(1), t_eval=torch.tensor([0.0, 1.0]))
    assert never.status is Status.NON_FINITE
    assert (never.accepted, never.reached) == (0, 0.0)
    assert never.ys[0] == 1
    assert torch.isnan(never.ys[1])
    assert solve_ivp(lambda t, y: y * torch.nan, (0.0, 1.0), torch.ones(1)).ts.tolist() == [0.0]


def test_nothing_carries_a_graph():
    y0 = torch.ones(2, requires_grad=True)
    found = solve_ivp(lambda t, y: -y0 * y, (0.0, 1.0), y0)
    assert not found.ys.requires_grad
    assert not found.sol(0.5).requires_grad


def test_float32_stays_float32():
    seen = set()

    def func(t, y):
        seen.update((t.dtype, y.dtype))
        return -y

    found = solve_ivp(func, torch.tensor([0.0, 1.0]), torch.ones(2, dtype=torch.float32))
    assert seen == {found.ts.dtype, found.ys.dtype, found.sol(0.3).dtype} == {torch.float32}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "rk4"}, ValueError, "unknown method 'rk4'"),
        ({"t_span": (0.0, 0.0)}, ValueError, "two different finite times"),
        ({"t_span": (0.0, math.nan)}, ValueError, "two different finite times"),
        ({"t_span": (0.0, 1.0, 2.0)}, ValueError, "start and the end"),
        ({"t_span": 5.0}, TypeError, "t_span must be two numbers or a tensor of them, start and end, got 5.0"),
        ({"t_span": ("a", 1)}, TypeError, r"start and end, got \('a', 1\)"),
        ({"t_span": (0.0, torch.ones(2))}, TypeError, "t_span must be two numbers"),
        ({"t_eval": torch.tensor([0.0, 1.5])}, ValueError, "t_eval must lie between 0 and 1, got times from 0 to 1.5"),
        ({"t_eval": torch.tensor([])}, ValueError, "at least one time"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1"),
        ({"rtol": -1.0}, ValueError, "rtol must be finite and at least 0"),
        ({"first_step": 0.0}, ValueError, "first_step must be positive"),
        ({"y0": torch.ones(2, dtype=torch.int)}, TypeError, "floating point or complex, got torch.int32"),
    ],
)
def test_arguments(arguments, error, message):
    arguments = {"t_span": (0.0, 1.0), "y0": torch.ones(2), **arguments}
    with pytest.raises(error, match=message):
        solve_ivp(lambda t, y: -y, **arguments)


def test_times_of_the_wrong_shape():
    found = solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(2))
    with pytest.raises(ValueError, match=r"t must have shape \[\] or \[count\], got \[1, 2\]"):
        found.sol(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="known from t = 0 to 1, got times from -1 to -1"):
        found.sol(-1.0)
