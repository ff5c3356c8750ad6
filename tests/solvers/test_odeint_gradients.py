"""The gradients of odeint and odeint_adjoint, held against torchdiffeq's graph, closed forms and finite differences."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torchdiffeq
from references import central_difference, relative
from torch import Tensor, nn

from adjoint_meta.solvers.odeint import odeint, odeint_adjoint

FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]
OPTIONS = {
    "t": {},
    "step size": {"step_size": 0.21},
    "cubic": {"step_size": 0.21, "interp": "cubic"},
    "grid": {"grid_constructor": lambda func, y0, t: torch.cat([t[:1], 0.3 * t[:1] + 0.7 * t[-1:], t[-1:]])},
}
both_solvers = pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
both_ways = pytest.mark.parametrize("direction", ["forward", "backward"])


class Net(nn.Module):
    """A small field that depends on time."""

    def __init__(self, generator: torch.Generator, size: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size + 1, 5), nn.Tanh(), nn.Linear(5, size))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(torch.cat([y, t.expand(*y.shape[:-1], 1)], dim=-1))


class Problem:
    """A net, a start, times and weights of a loss."""

    def __init__(self, generator: torch.Generator, direction: str = "forward") -> None:
        self.net = Net(generator)
        self.y0 = torch.randn(3, 2, generator=generator).requires_grad_()
        t = torch.tensor([0.1, 0.35, 0.9, 1.0, 1.4])
        self.t = (t if direction == "forward" else t.flip(0)).clone().requires_grad_()
        self.weights = torch.randn(5, 3, 2, generator=generator)

    @property
    def inputs(self) -> list[Tensor]:
        return [self.y0, self.t, *self.net.parameters()]

    def loss(self, solve, **arguments) -> Tensor:
        return (self.weights * solve(self.net, self.y0, self.t, **arguments)).sum()

    def gradients(self, solve, **arguments) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.loss(solve, **arguments), self.inputs)


def assert_same(found, expected, rtol: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert relative(ours, theirs) < rtol


@both_solvers
@both_ways
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("method", FIXED)
def test_gradients_of_fixed_steps_are_those_of_torchdiffeqs_graph(solve, method, options, direction, generator):
    """To y0, to t, through the grid that depends on t, and to the parameters: all to rounding."""
    problem = Problem(generator, direction)
    expected = problem.gradients(torchdiffeq.odeint, method=method, options=dict(OPTIONS[options]))
    found = problem.gradients(solve, method=method, options=dict(OPTIONS[options]))
    assert_same(found, expected, 1e-12)


@both_solvers
@both_ways
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "adaptive_heun", "fehlberg2"])
def test_gradients_of_adaptive_steps_are_accurate(solve, method, direction, generator):
    problem = Problem(generator, direction)
    expected = problem.gradients(torchdiffeq.odeint, method="dopri8", rtol=1e-11, atol=1e-11)
    tolerance = {"adaptive_heun": 1e-4, "fehlberg2": 1e-4, "bosh3": 1e-6}.get(method, 1e-8)
    found = problem.gradients(solve, method=method, rtol=tolerance, atol=tolerance)
    assert_same(found, expected, 3000 * tolerance)


@both_solvers
def test_the_adjoint_of_torchdiffeq_agrees(solve, generator):
    problem = Problem(generator)
    expected = problem.gradients(torchdiffeq.odeint_adjoint, rtol=1e-9, atol=1e-9)
    assert_same(problem.gradients(solve, rtol=1e-9, atol=1e-9), expected, 1e-6)


def test_stored_and_checkpointed_gradients_are_the_same(generator):
    problem = Problem(generator)
    for options in ({}, {"snapshots": 1}, {"snapshots": 2}):
        found = problem.gradients(odeint_adjoint, adjoint_options=options)
        assert_same(found, problem.gradients(odeint), 1e-11)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3"])
@both_ways
def test_the_transpose_is_exact_whatever_the_tolerance(method, direction, generator):
    """Large steps with many outputs in each: the gradient is that of the steps taken, as finite differences see it.

    A first step that is never left, all errors being accepted, keeps the steps fixed.
    """
    problem = Problem(generator, direction)
    t = torch.linspace(0.0, 1.4, 12)
    t = t if direction == "forward" else t.flip(0)
    weights = torch.randn(12, 3, 2, generator=generator)
    loose = {"rtol": 1e6, "atol": 1e6, "method": method, "options": {"first_step": 0.45, "ifactor": 1.0}}

    def loss(y0: Tensor) -> float:
        with torch.no_grad():
            return float((weights * odeint(problem.net, y0, t, **loose)).sum())

    found = torch.autograd.grad((weights * odeint(problem.net, problem.y0, t, **loose)).sum(), problem.y0)[0]
    assert relative(found, central_difference(loss, problem.y0.detach(), 1e-6)) < 1e-8


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_gradients_to_inner_times_are_the_slopes_of_the_dense_output(method, generator):
    problem = Problem(generator)
    t = torch.linspace(0.0, 1.4, 8).requires_grad_()
    weights = torch.randn(8, 3, 2, generator=generator)
    loose = {"rtol": 1e6, "atol": 1e6, "method": method, "options": {"first_step": 0.45, "ifactor": 1.0}}

    def loss(t: Tensor) -> float:
        with torch.no_grad():
            return float((weights * odeint(problem.net, problem.y0, t, **loose)).sum())

    found = torch.autograd.grad((weights * odeint(problem.net, problem.y0, t, **loose)).sum(), t)[0]
    expected = central_difference(loss, t.detach(), 1e-6)
    assert relative(found[1:-1], expected[1:-1]) < 1e-7


def test_times_at_which_nothing_is_asked_still_move_the_solution():
    """d/dt0 and d/dT of y(T) = y0 exp(a (T − t0)), at the ends of adaptive solves."""
    t = torch.tensor([0.3, 1.1, 2.0], requires_grad=True)
    y = odeint(lambda t, y: -0.7 * y, torch.ones(1), t, rtol=1e-9, atol=1e-9)[-1, 0]
    (found,) = torch.autograd.grad(y, t)
    expected = 0.7 * y.item() * torch.tensor([1.0, 0.0, -1.0])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@both_solvers
@pytest.mark.parametrize("method", ["dopri5", "midpoint"])
def test_gradients_of_complex_states(solve, method, generator):
    omega = torch.randn(2, generator=generator, dtype=torch.complex128).requires_grad_()
    y0 = torch.randn(2, generator=generator, dtype=torch.complex128).requires_grad_()
    t = torch.tensor([0.0, 0.3, 0.8], requires_grad=True)
    weights = torch.randn(3, 2, generator=generator, dtype=torch.complex128)

    def gradients(solve):
        ys = solve(lambda t, y: omega * y - (1 + 1j) * t * y.conj(), y0, t, method=method, **extra)
        return torch.autograd.grad((weights * ys).sum().abs(), (y0, omega, t))

    extra = {"rtol": 1e-10, "atol": 1e-10} if method == "dopri5" else {}
    found = gradients(solve)
    expected = gradients(torchdiffeq.odeint)
    assert found[0].is_complex()
    assert_same(found, expected, 1e-7 if method == "dopri5" else 1e-12)


@both_solvers
def test_gradients_of_tuples_and_dicts(solve, generator):
    net = Net(generator)
    x, v = (torch.randn(2, generator=generator).requires_grad_() for _ in range(2))
    t = torch.tensor([0.0, 0.5, 1.0])

    def of_tuple(t, y):
        return net(t, y[1]), -y[0] * y[1]

    def of_dict(t, y):
        return dict(zip(("v", "x"), reversed(of_tuple(t, (y["x"], y["v"]))), strict=True))

    def gradients(ys):
        return torch.autograd.grad((ys[0] * ys[1]).sum(), [x, v, *net.parameters()])

    expected = gradients(torchdiffeq.odeint(of_tuple, (x, v), t, method="rk4"))
    assert_same(gradients(solve(of_tuple, (x, v), t, method="rk4")), expected, 1e-12)
    found = solve(of_dict, {"x": x, "v": v}, t, method="rk4")
    assert_same(gradients((found["x"], found["v"])), expected, 1e-12)


@both_solvers
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3"])
def test_gradients_of_rows_are_those_of_each_alone(solve, method, generator):
    rates = torch.tensor([0.5, 15.0, 4.0], requires_grad=True)
    shared = torch.tensor(0.7, requires_grad=True)
    y0 = torch.randn(3, 2, generator=generator).requires_grad_()
    t = torch.linspace(0.0, 1.0, 5).requires_grad_()
    weights = torch.randn(5, 3, 2, generator=generator)
    accuracy = {"method": method, "rtol": 1e-4, "atol": 1e-5}

    def func(t, y):
        return -rates[:, None] * (y - torch.sin(shared * t)) - shared * y**3

    ys = solve(func, y0, t, batched=True, **accuracy)
    found = torch.autograd.grad((weights * ys).sum(), (y0, t, rates, shared))

    def alone(row: int) -> Tensor:
        def func(t, y):
            return -rates[row] * (y - torch.sin(shared * t)) - shared * y**3

        return (weights[:, row] * solve(func, y0[row], t, **accuracy)).sum()

    expected = torch.autograd.grad(sum(alone(row) for row in range(3)), (y0, t, rates, shared))
    assert_same(found, expected, 1e-9)


@both_solvers
def test_float32_gradients_are_float32(solve, generator):
    problem = Problem(generator)
    expected = problem.gradients(solve, method="rk4")
    problem.net.float()
    problem.y0 = problem.y0.detach().float().requires_grad_()
    problem.weights = problem.weights.float()
    found = problem.gradients(solve, method="rk4")
    assert [x.dtype for x in found] == [torch.float32, torch.float64, *[torch.float32] * 4]
    assert_same([x.double() for x in found], expected, 1e-5)


# Where the parameters are


def decay_with(generator):
    """Ways to hold one parameter tensor w [2], each as (parameter, function of t and y)."""
    w = torch.rand(2, generator=generator).add(0.5).requires_grad_()

    class Holder:
        def __init__(self):
            self.w = w

        def method(self, t, y):
            return -self.w * y

        def __call__(self, t, y):
            return -self.w * y

    class Nested:
        def __init__(self):
            self.parts = {"deep": [{"w": (w,)}]}
            self.holder = Holder()

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(w.detach().clone())

        def forward(self, t, y):
            return -self.w * y

    module, nested = Module(), Nested()
    return {
        "closure": (w, lambda t, y: -w * y),
        "default argument": (w, lambda t, y, w=w: -w * y),
        "partial": (w, functools.partial(lambda w, t, y: -w * y, w)),
        "bound method": (w, Holder().method),
        "callable object": (w, Holder()),
        "nested containers": (w, lambda t, y: -nested.parts["deep"][0]["w"][0] * y),
        "object in an object": (w, lambda t, y: nested.holder.method(t, y)),
        "module": (module.w, module),
        "module in closure": (module.w, lambda t, y: module(t, y)),
        "module in a list": (module.w, lambda t, y, modules=(module,): modules[0](t, y)),
        "bound method of a module": (module.w, module.forward),
        "function in closure": (w, (lambda inner: lambda t, y: inner(t, y))(lambda t, y: -w * y)),
        "global": (_GLOBAL, lambda t, y: -_GLOBAL * y),
        "module with a list of tensors": (w, _Listing(w)),
        "out of reach": (w, _hidden(w)),
    }


_GLOBAL = torch.tensor([0.6, 1.1], dtype=torch.float64, requires_grad=True)


class _Listing(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.all = [w]

    def forward(self, t, y):
        return -self.all[0] * y


def _hidden(w):
    """A function that reaches w by a way that no search would find; the graph of its value shows it."""
    storage = {id(w): w}
    iterator = (storage[id(w)] for _ in iter(int, 1))
    return lambda t, y: -next(iterator) * y


HOMES = list(decay_with(torch.Generator().manual_seed(0)))


@both_solvers
@pytest.mark.parametrize("home", HOMES)
def test_parameters_are_found(home, solve, generator):
    w, func = decay_with(generator)[home]
    found = torch.autograd.grad(solve(func, torch.ones(2), torch.tensor([0.0, 2.0]))[-1].sum(), w)[0]
    torch.testing.assert_close(found, -2 * torch.exp(-2 * w.detach()), rtol=1e-5, atol=1e-7)


@both_solvers
@pytest.mark.parametrize("home", ["closure", "module", "bound method"])
def test_parameters_that_only_act_later_are_found(home, solve, generator):
    w, inner = decay_with(generator)[home]
    if home == "module":

        class Later(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = inner

            def forward(self, t, y):
                return self.inner(t, y) if t > 0.5 else -y

        func = Later()
    else:

        def func(t, y):
            return inner(t, y) if t > 0.5 else -y

    t = torch.tensor([0.0, 0.5, 2.0])
    options = {"method": "rk4", "options": {"step_size": 0.05}}
    found = torch.autograd.grad(solve(func, torch.ones(2), t, **options)[-1].sum(), w)[0]
    expected = torch.autograd.grad(torchdiffeq.odeint(func, torch.ones(2), t, **options)[-1].sum(), w)[0]
    assert relative(found, expected) < 1e-12


@both_solvers
def test_a_parameter_out_of_reach_that_only_acts_later_is_an_error(solve, generator):
    w = torch.rand(2, generator=generator).requires_grad_()
    hidden = _hidden(w)

    def func(t, y):
        return hidden(t, y) if t > 0.5 else -y

    y0 = torch.ones(2, requires_grad=True)
    loss = solve(func, y0, torch.tensor([0.0, 2.0])).sum()
    with pytest.raises(ValueError, match=r"depends on a tensor of shape \[2\] that it did not use"):
        loss.backward()


@both_solvers
def test_tensors_that_func_makes_for_itself_are_no_parameters(solve):
    """As in many a Hamiltonian network: y is cut off and given gradients anew, at some times only."""

    def func(t, y):
        if t > 0.5:
            own = y.detach().requires_grad_()
            with torch.enable_grad():
                return -torch.autograd.grad((own**2).sum() / 2, own, create_graph=True)[0] + 0 * y
        return -y

    y0 = torch.ones(2, requires_grad=True)
    found = torch.autograd.grad(solve(func, y0, torch.tensor([0.0, 0.5])).sum(), y0)[0]
    torch.testing.assert_close(found, torch.full((2,), 1 + math.exp(-0.5)), rtol=1e-6, atol=0)
    solve(func, y0, torch.tensor([0.0, 1.0])).sum().backward()


class Hyper:
    """Parameters made by another network from w, so that they lie in the middle of a graph."""

    def __init__(self, generator: torch.Generator) -> None:
        self.w = torch.randn(2, generator=generator).requires_grad_()
        self.passes = 0
        self.made = torch.exp(self.w)
        self.made.grad_fn.register_hook(self._count)

    def _count(self, *_) -> None:
        self.passes += 1


@both_solvers
@pytest.mark.parametrize("case", ["captured", "captured with its origin", "out of reach"])
def test_captured_tensors_with_a_history(case, solve, generator):
    """What lies behind is traversed once, unless one captured tensor lies behind another or cannot be reached."""
    hyper = Hyper(generator)
    w, made = hyper.w, hyper.made
    hidden = iter(lambda: hyper.made, None)
    funcs = {
        "captured": lambda t, y: -made * y,
        "captured with its origin": lambda t, y: -made * y + w,
        "out of reach": lambda t, y: -next(hidden) * y,
    }
    y0, t = torch.ones(2), torch.tensor([0.0, 0.4, 1.0])
    ys = solve(funcs[case], y0, t, method="rk4")
    found = torch.autograd.grad(ys.sum(), w, retain_graph=True)[0]
    assert hyper.passes == (1 if case == "captured" else 8)
    assert torch.equal(torch.autograd.grad(ys.sum(), w)[0], found)
    made = torch.exp(w)
    hidden = iter(lambda: made, None)
    expected = torchdiffeq.odeint(funcs[case], y0, t, method="rk4")
    assert relative(found, torch.autograd.grad(expected.sum(), w)[0]) < 1e-12


def test_a_captured_tensor_that_is_y0_too():
    y0 = torch.tensor([0.5, 2.0], requires_grad=True)
    t = torch.tensor([0.0, 1.0])

    def gradients(solve):
        base = y0 * 2
        return torch.autograd.grad(solve(lambda t, y: -y * base, base, t, method="rk4").sum(), y0)

    assert_same(gradients(odeint), gradients(torchdiffeq.odeint), 1e-12)
    assert_same(gradients(odeint_adjoint), gradients(torchdiffeq.odeint), 1e-12)


def test_unused_parameters_get_none_or_zero_as_torchdiffeq_gives():
    class Func(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))

        def forward(self, t, y):
            return -self.used * y

    t = torch.tensor([0.0, 1.0])
    for ours, theirs in ((odeint, torchdiffeq.odeint), (odeint_adjoint, torchdiffeq.odeint_adjoint)):
        grads = []
        for solve in (ours, theirs):
            func = Func()
            solve(func, torch.ones(2), t, method="rk4").sum().backward()
            grads.append(func.idle.grad)
        assert (grads[0] is None) == (grads[1] is None)
        assert grads[0] is None or torch.equal(*grads)


def test_adjoint_params_restrict_what_gets_gradients(generator):
    net, t = Net(generator), torch.tensor([0.0, 1.0])
    first, *others = net.parameters()
    others[0].requires_grad_(False)
    expected = torch.autograd.grad(torchdiffeq.odeint(net, torch.ones(2), t, method="rk4").sum(), first)[0]
    odeint_adjoint(net, torch.ones(2), t, method="rk4", adjoint_params=(p for p in [first, others[0]])).sum().backward()
    assert relative(first.grad, expected) < 1e-12
    assert all(parameter.grad is None for parameter in others)
    y0 = torch.ones(2, requires_grad=True)
    odeint_adjoint(lambda t, y: net(t, y), y0, t, adjoint_params=()).sum().backward()
    assert y0.grad is not None
    assert all(parameter.grad is None for parameter in others)


def test_adjoint_params_in_front_of_a_graph(generator):
    """Parameters of a network that made what func captured: its graph is traversed at every stage, and outlives it."""
    w = torch.randn(2, generator=generator).requires_grad_()
    made, t = torch.exp(w), torch.tensor([0.0, 0.5, 1.0])

    def func(t, y):
        return -made * y

    found = torch.autograd.grad(odeint_adjoint(func, torch.ones(2), t, method="rk4", adjoint_params=(w,)).sum(), w)[0]
    expected = torch.autograd.grad(torchdiffeq.odeint(func, torch.ones(2), t, method="rk4").sum(), w)[0]
    assert relative(found, expected) < 1e-12


def test_gradients_only_where_wanted(generator):
    problem = Problem(generator)
    expected = problem.gradients(odeint)
    for chosen in ([0], [1], [2], [0, 3], [1, 5]):
        found = torch.autograd.grad(problem.loss(odeint), [problem.inputs[i] for i in chosen])
        assert_same(found, [expected[i] for i in chosen], 1e-13)


def test_without_gradients_nothing_is_recorded(generator):
    net, t = Net(generator), torch.tensor([0.0, 1.0])
    with torch.no_grad():
        assert not odeint(net, torch.ones(2), t).requires_grad
    assert not odeint(lambda t, y: -y, torch.ones(2), t).requires_grad
    net.requires_grad_(False)
    assert not odeint(net, torch.ones(2), t).requires_grad


@both_solvers
def test_a_parameter_changed_before_backward_is_an_error(solve, generator):
    """The way back evaluates func again: with other parameters the gradient would silently be another one."""
    net = Net(generator)
    loss = solve(net, torch.ones(2), torch.tensor([0.0, 1.0])).sum()
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@both_solvers
def test_backward_twice(solve, generator):
    problem = Problem(generator)
    loss = problem.loss(solve)
    first = torch.autograd.grad(loss, problem.inputs, retain_graph=True)
    assert_same(torch.autograd.grad(loss, problem.inputs), first, 1e-15)


def test_outputs_are_freed_with_their_graph(generator):
    import gc
    import weakref

    net = Net(generator)
    gc.disable()
    try:
        ys = odeint(net, torch.ones(2), torch.tensor([0.0, 1.0]))
        output, path = weakref.ref(ys), weakref.ref(ys.grad_fn.next_functions[0][0].path)
        ys.sum().backward()
        del ys
        assert output() is None
        assert path() is None
    finally:
        gc.enable()


# Second derivatives


@both_solvers
@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5"])
@pytest.mark.parametrize("options", ["t", "step size"])
def test_second_derivatives_by_finite_differences(solve, method, options, generator):
    weight = torch.randn(2, 2, generator=generator).requires_grad_()
    y0 = torch.randn(2, generator=generator).requires_grad_()
    t = torch.tensor([0.0, 0.3, 0.7], requires_grad=True)
    if method == "dopri5":
        chosen = {"first_step": 0.25, "ifactor": 1.0}
    else:
        chosen = {"step_size": 0.17} if options == "step size" else {}

    def func(y0: Tensor, weight: Tensor, t: Tensor) -> Tensor:
        return solve(
            lambda t, y: torch.tanh(weight @ y) * torch.cos(t), y0, t, method=method, options=chosen, rtol=1e6, atol=1e6
        )

    if method == "dopri5":
        t = t.detach()  # the ends of adaptive steps are held fixed, which finite differences do not
        assert torch.autograd.gradgradcheck(lambda y0, weight: func(y0, weight, t), (y0, weight))
    else:
        assert torch.autograd.gradcheck(func, (y0, weight, t))
        assert torch.autograd.gradgradcheck(func, (y0, weight, t))


def test_the_replay_gives_the_gradients_of_the_transpose(generator):
    problem = Problem(generator)
    for arguments in (
        {},
        {"method": "tsit5"},
        {"method": "midpoint", "options": {"step_size": 0.2, "interp": "cubic"}},
    ):
        plain = torch.autograd.grad(problem.loss(odeint, **arguments), problem.inputs)
        replayed = torch.autograd.grad(problem.loss(odeint, **arguments), problem.inputs, create_graph=True)
        assert all(gradient.requires_grad for gradient in replayed)
        assert_same([gradient.detach() for gradient in replayed], plain, 1e-12)


def test_second_derivatives_are_torchdiffeqs(generator):
    problem = Problem(generator)

    def penalty(solve):
        gradient = torch.autograd.grad(problem.loss(solve, method="rk4"), problem.inputs, create_graph=True)
        return torch.autograd.grad(sum((part**2).sum() for part in gradient), problem.inputs)

    assert_same(penalty(odeint), penalty(torchdiffeq.odeint), 1e-11)


def test_second_derivatives_of_rows(generator):
    rates = torch.tensor([0.5, 10.0], requires_grad=True)
    y0 = torch.randn(2, 1, generator=generator).requires_grad_()

    def penalty(solve, rows: bool):
        def func(t, y):
            return -rates[:, None] * y - y**3

        t = torch.tensor([0.0, 0.4, 1.0])
        ys = solve(func, y0, t, rtol=1e-8, atol=1e-8, **({"batched": True} if rows else {}))
        gradient = torch.autograd.grad(ys.sum(), (y0, rates), create_graph=True)
        return torch.autograd.grad(sum((part**2).sum() for part in gradient), (y0, rates))

    assert_same(penalty(odeint, True), penalty(torchdiffeq.odeint, False), 1e-5)


def test_second_derivatives_of_a_func_that_differentiates():
    stiffness = torch.tensor(1.5, requires_grad=True)

    def func(t, y):
        energy = (y[1] ** 2 + stiffness * y[0] ** 2).sum() / 2
        (gradient,) = torch.autograd.grad(energy, y, create_graph=True)
        return torch.stack([gradient[1], -gradient[0]])

    x = odeint(func, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), rtol=1e-9, atol=1e-9)[-1, 0]
    (first,) = torch.autograd.grad(x, stiffness, create_graph=True)
    (second,) = torch.autograd.grad(first, stiffness)
    exact = torch.tensor(1.5, requires_grad=True)
    (expected,) = torch.autograd.grad(torch.cos(exact.sqrt()), exact, create_graph=True)
    assert first.item() == pytest.approx(expected.item(), rel=1e-6)
    assert second.item() == pytest.approx(torch.autograd.grad(expected, exact)[0].item(), rel=1e-5)


# Around the solve


def test_autocast_is_the_same_on_the_way_back(generator):
    """bfloat16 inside func; backward outside of the context meets the same numbers."""
    net = Net(generator).float()
    seen = []
    net.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    y0 = torch.randn(3, 2, generator=generator, dtype=torch.float32)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ys = odeint(net, y0, t, method="rk4")
        expected = torchdiffeq.odeint(net, y0, t, method="rk4")
    forward = len(seen)
    assert ys.dtype == torch.float32
    torch.testing.assert_close(ys, expected, rtol=1e-2, atol=1e-2)
    parameters = list(net.parameters())
    found = torch.autograd.grad(ys.sum(), parameters)
    assert len(seen) > forward
    assert set(seen) == {torch.bfloat16}
    assert_same(found, torch.autograd.grad(expected.sum(), parameters), 5e-2)


def test_the_graph_around_is_left_alone(generator):
    """A loss that uses y0, the parameters and the solution together, with an encoder in front."""
    net, encoder = Net(generator), nn.Linear(3, 2)
    x, t = torch.randn(4, 3, generator=generator), torch.tensor([0.0, 1.0])
    inputs = [*net.parameters(), *encoder.parameters()]

    def gradients(solve):
        y0 = encoder(x)
        ys = solve(net, y0, t, method="rk4")
        return torch.autograd.grad((ys[-1] * y0).sum() + sum((p**2).sum() for p in inputs), inputs)

    assert_same(gradients(odeint), gradients(torchdiffeq.odeint), 1e-12)


# A func that is not the same any more


@both_solvers
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_func_that_changed_before_backward_is_an_error(solve, create_graph):
    """A condition set anew before the way back, which would give another gradient without a word."""

    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.ones(2))
            self.condition = torch.tensor([1.0, 2.0])

        def forward(self, t, y):
            return -self.rate * y + self.condition

    func, t = Conditioned(), torch.tensor([0.0, 1.0])
    ys = solve(func, torch.ones(2), t)
    func.condition = torch.tensor([1.0, 2.1])
    with pytest.raises(ValueError, match="func is another one than during the solve"):
        torch.autograd.grad(ys.sum(), func.rate, create_graph=create_graph)
    func.condition = torch.tensor([1.0, 2.0])
    assert torch.autograd.grad(ys.sum(), func.rate, create_graph=create_graph)[0].shape == (2,)


@both_solvers
def test_writing_to_y0_or_t_afterwards_changes_nothing(solve, generator):
    net = Net(generator)
    y0, t = torch.randn(2, generator=generator), torch.tensor([0.0, 0.5, 1.0])
    for kept in (True, False):
        own_y0, own_t = y0.clone(), t.clone()
        ys = solve(net, own_y0, own_t)
        if not kept:
            own_y0.zero_()
            own_t.mul_(3)
        gradients = torch.autograd.grad(ys.sum(), list(net.parameters()))
        if kept:
            expected = gradients
    assert all(torch.equal(*both) for both in zip(gradients, expected, strict=True))


@both_solvers
def test_funcs_that_do_not_depend_on_y(solve, generator):
    w = torch.randn(2, generator=generator).requires_grad_()
    y0 = torch.randn(2, generator=generator).requires_grad_()
    t = torch.tensor([0.0, 1.0, 3.0], requires_grad=True)
    ys = solve(lambda t, y: w, y0, t)
    found = torch.autograd.grad(ys[-1].sum(), (y0, w, t))
    torch.testing.assert_close(found[0], torch.ones(2))
    torch.testing.assert_close(found[1], torch.full((2,), 3.0))
    torch.testing.assert_close(found[2], w.sum().detach() * torch.tensor([-1.0, 0.0, 1.0]))
    constant = torch.ones(2)
    ys = solve(lambda t, y: constant, y0, t)
    assert torch.equal(torch.autograd.grad(ys[-1].sum(), y0)[0], torch.ones(2))
