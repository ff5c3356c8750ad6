"""What `AdjointMAML` takes and what it refuses: each refusal says what was got, what was expected, what to do."""

from __future__ import annotations

import math
import pickle

import pytest

from adjoint_meta import AdjointMAML
from adjoint_meta.inner_solvers import ADAPTIVE, IMPLICIT, SOLVERS

INF = math.inf


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"horizon": 0.0}, ValueError, "horizon must be positive"),
        ({"horizon": -1.0}, ValueError, "horizon must be positive"),
        ({"horizon": -INF}, ValueError, "horizon must be positive"),
        ({"horizon": math.nan}, ValueError, "horizon must be positive"),
        ({"horizon": None}, TypeError, "horizon must be a number"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"steps": 2.0}, TypeError, "steps must be a whole number"),
        ({"proximal": -0.1}, ValueError, "proximal must be finite and at least 0"),
        ({"proximal": INF}, ValueError, "proximal must be finite"),
        # Names
        ({"solver": "rk5"}, ValueError, "unknown solver 'rk5'; did you mean 'rkc' or 'rk4'"),
        ({"solver": "RK45"}, ValueError, "unknown solver 'RK45'"),
        ({"solver": "dopri"}, ValueError, "unknown solver 'dopri'; did you mean 'dopri5'"),
        ({"solver": "implicit"}, ValueError, "did you mean 'implicit_euler'"),
        ({"solver": "sdirk"}, ValueError, "did you mean 'sdirk2'"),
        ({"solver": "Auto"}, ValueError, "did you mean 'auto'"),
        ({"solver": "zzz"}, ValueError, "expected one of auto, bosh3, dopri5, euler, heun, implicit_euler, midpoint"),
        ({"solver": None}, ValueError, "unknown solver None"),
        ({"adjoint": "checkpoint"}, ValueError, "did you mean 'checkpointed'"),
        ({"adjoint": "interpolate"}, ValueError, "did you mean 'interpolating'"),
        # Steps or a tolerance
        ({"solver": "dopri5", "steps": 3, "rtol": 1e-3}, ValueError, "give steps or rtol, not both; got steps=3"),
        ({"rtol": 1e-3}, ValueError, "solver='rk4' takes steps, .* adaptive solvers are heun, bosh3, dopri5"),
        ({"solver": "implicit_euler", "rtol": 1e-3}, ValueError, "solver='implicit_euler' takes steps"),
        ({"solver": "sdirk2", "rtol": 1e-3}, ValueError, "solver='sdirk2' takes steps"),
        ({"solver": "dopri5", "rtol": 0.0}, ValueError, "rtol must be positive"),
        ({"solver": "dopri5", "rtol": -1e-3}, ValueError, "rtol must be positive"),
        ({"solver": "dopri5", "rtol": math.nan}, ValueError, "rtol must be positive and finite"),
        ({"solver": "dopri5", "rtol": True}, TypeError, "rtol must be a number"),
        ({"solver": "dopri5", "rtol": "small"}, TypeError, "rtol must be a number"),
        ({"atol": 1e-3}, ValueError, "atol=0.001 has no use here: it belongs to rtol"),
        ({"solver": "heun", "atol": 1e-3}, ValueError, "atol=0.001 has no use here"),
        ({"solver": "dopri5", "steps": 3, "atol": 1e-3}, ValueError, "atol=0.001 has no use here"),
        ({"solver": "implicit_euler", "atol": 1e-3}, ValueError, "atol=0.001 has no use here"),
        ({"solver": "auto", "rtol": 1e-2, "atol": 1e-4}, ValueError, "atol=0.0001 has no use here"),
        ({"solver": "dopri5", "rtol": 1e-3, "atol": -1e-3}, ValueError, "atol must be finite and at least 0"),
        ({"solver": "auto", "steps": 3}, ValueError, "solver='auto' chooses its steps by rtol; got steps=3"),
        # No end
        ({"horizon": INF}, ValueError, r"an infinite horizon needs an adaptive solver \(heun, .*rkc\) without steps"),
        ({"horizon": INF, "solver": "rkc", "steps": 3}, ValueError, "without steps"),
        ({"horizon": INF, "solver": "heun"}, ValueError, "without steps"),
        ({"horizon": INF, "solver": "auto"}, ValueError, "an infinite horizon needs an adaptive solver"),
        ({"horizon": INF, "solver": "implicit_euler"}, ValueError, "an infinite horizon needs an adaptive solver"),
        ({"horizon": INF, "solver": "rkc", "adjoint": "checkpointed"}, ValueError, "leave adjoint at 'discrete'"),
        ({"horizon": INF, "solver": "rkc", "adjoint": "backsolve"}, ValueError, "leave adjoint at 'discrete'"),
        ({"horizon": INF, "solver": "rkc", "learn": ("horizon",)}, ValueError, "horizon.* must be positive and finite"),
        ({"steady_tol": 0.0}, ValueError, "steady_tol must be positive"),
        ({"steady_tol": None}, TypeError, "steady_tol must be a number"),
        # Snapshots
        ({"snapshots": 3}, ValueError, "snapshots=3 has no use with adjoint='discrete'; say adjoint='checkpointed'"),
        ({"snapshots": 3, "adjoint": "interpolating"}, ValueError, "snapshots=3 has no use"),
        ({"snapshots": 0, "adjoint": "checkpointed"}, ValueError, "snapshots must be at least 1"),
        # What is learned
        ({"learn": "horizon"}, TypeError, "learn must be a tuple of names"),
        ({"learn": None}, TypeError, "learn must be a tuple of names"),
        ({"learn": ("horison",)}, ValueError, "did you mean 'horizon'"),
        ({"learn": ("proximal",)}, ValueError, "proximal, when it is learned on a log scale, must be positive"),
        ({"learn": ("rates",), "solver": "implicit_euler"}, ValueError, "unsymmetric"),
        ({"learn": ("rates",), "solver": "sdirk2"}, ValueError, "use an explicit solver"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        AdjointMAML(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        *({"solver": solver} for solver in SOLVERS),
        *({"solver": solver, "steps": 7} for solver in SOLVERS if solver != "auto"),
        *({"solver": solver, "rtol": 1e-2, "atol": 0.0} for solver in ADAPTIVE),
        {"solver": "dopri5", "atol": 1e-8},
        {"solver": "auto", "rtol": 1e-3, "learn": ("horizon", "rates"), "adjoint": "checkpointed"},
        {"solver": "implicit_euler", "learn": ["horizon", "proximal"], "proximal": 1.0},
        {"horizon": INF, "solver": "rkc", "learn": ("proximal",), "proximal": 1.0},
        {"horizon": INF, "solver": "heun", "rtol": 1e-3},
        {"adjoint": "backsolve", "snapshots": 3},
        {"adjoint": "checkpointed", "snapshots": 3},
    ],
    ids=str,
)
def test_methods_print_compare_and_pickle(arguments):
    method = AdjointMAML(**arguments)
    assert eval(repr(method), {"AdjointMAML": AdjointMAML, "inf": INF}) == method
    assert pickle.loads(pickle.dumps(method)) == method
    assert len({method, AdjointMAML(**vars(method))}) == 1


def test_which_solvers_choose_their_own_steps():
    adaptive = {solver for solver in SOLVERS if AdjointMAML(solver=solver).adaptive}
    assert adaptive == {"bosh3", "dopri5", "tsit5", "rkc", "auto"}
    assert {solver for solver in ADAPTIVE if AdjointMAML(solver=solver, rtol=1e-3).adaptive} == set(ADAPTIVE)
    assert not any(AdjointMAML(solver=solver, steps=5).adaptive for solver in SOLVERS if solver != "auto")
    # Those that estimate ‖H‖: the adaptive ones, and rkc, whose stages depend on it.
    watching = {solver for solver in SOLVERS if solver != "auto" and AdjointMAML(solver=solver, steps=5).watches}
    assert watching <= {"rkc"}
    assert all(AdjointMAML(solver=solver, rtol=1e-3).watches for solver in (*ADAPTIVE, "auto"))
    assert not any(AdjointMAML(solver=solver).watches for solver in IMPLICIT)
