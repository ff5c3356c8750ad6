"""iMAML: against dense matrices, in closed form, truncated, indefinite, and in the variant that was released."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import Forwards, Linear, case, half_squares, mlp, quadratic, regression, signed_squares
from references import (
    Split,
    central_difference,
    conjugate_gradient_iterates,
    derivatives,
    difference_quotient,
    implicit,
    relative,
    rows_times,
)
from torch import nn

from adjoint_meta import Batch, ImplicitMAML, MetaLearner, SolverError, TaskBatch
from adjoint_meta.solvers import Status

mse = nn.functional.mse_loss


def proximal_descent(steps: int, lr: float, proximal: float):
    """Gradient descent on L_s + ½λ‖φ − θ‖², a task at a time."""

    def descend(gradient, theta):
        phi = theta.clone()
        for _ in range(steps):
            phi = phi - lr * (gradient(phi) + proximal * (phi - theta))
        return phi

    return descend


def exact_solve(proximal: float):
    return lambda h, c: torch.linalg.solve(torch.eye(len(c)) + h / proximal, c)


def truncated_solve(proximal: float, steps: int):
    """The textbook method, stopped after some steps."""

    def solve(h, c):
        matrix = (torch.eye(len(c)) + h / proximal).numpy()
        return torch.from_numpy(conjugate_gradient_iterates(matrix, c.numpy(), steps)[steps])

    return solve


def same(found, expected, tolerance: float) -> None:
    assert relative(found.loss, expected.losses) < tolerance
    assert set(found.grad) == set(expected.grad)
    for name, gradient in expected.grad.items():
        assert relative(found.grad[name], gradient) < tolerance, name


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("adapt", [None, "2.*"])
def test_imaml_is_the_dense_formula(curvature, adapt, generator):
    model, tasks = mlp(generator), regression(generator)
    method = ImplicitMAML(
        proximal=2.0, steps=7, inner_lr=0.1, cg_steps=60, cg_tol=1e-14, curvature=curvature, learn=("proximal",)
    )
    learner = MetaLearner(model, mse, method, adapt=adapt)
    expected = implicit(
        model,
        mse,
        tasks,
        proximal=2.0,
        descend=proximal_descent(7, 0.1, 2.0),
        solve=exact_solve(2.0),
        adapt=adapt,
        gauss_newton=curvature == "ggn",
    )
    found = learner.meta_gradient(tasks)
    same(found, expected, 1e-11)
    assert relative(found.hyper["proximal"], expected.hyper["proximal"]) < 1e-11


@pytest.mark.parametrize("name", ["conv2d", "batch norm", "transformer", "classifier"])
def test_imaml_of_other_modules(name, generator):
    found = case(name, generator)
    tasks = TaskBatch(found.points, case(name, generator, points=6).points)
    expected = implicit(
        found.model,
        found.loss,
        tasks,
        proximal=100.0,  # above the curvature of every one of them, which reaches −25
        descend=proximal_descent(3, 0.005, 100.0),
        solve=exact_solve(100.0),
    )
    method = ImplicitMAML(proximal=100.0, steps=3, inner_lr=0.005, cg_steps=100, cg_tol=1e-13)
    same(MetaLearner(found.model, found.loss, method).meta_gradient(tasks), expected, 1e-10)


@pytest.mark.parametrize("cg_steps", [0, 1, 2, 3])
def test_truncated_conjugate_gradients(cg_steps, generator):
    tasks, proximal = quadratic(generator), 0.5
    expected = implicit(
        tasks.model,
        half_squares,
        tasks.tasks,
        proximal=proximal,
        descend=proximal_descent(9, 0.2, proximal),
        solve=truncated_solve(proximal, cg_steps) if cg_steps else lambda h, c: c,
    )
    method = ImplicitMAML(proximal=proximal, steps=9, inner_lr=0.2, cg_steps=cg_steps, cg_tol=0.0)
    found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks)
    same(found, expected, 1e-11)
    assert found.stats["n_hvp"] == cg_steps
    if cg_steps:
        assert found.stats["cg_iterations"].tolist() == [cg_steps] * 3


def test_closed_form_at_the_proximal_point(generator):
    # λ(A + λI)⁻¹ c, and dJ/dλ = −⟨(A + λI)⁻¹ c, φ* − θ⟩.
    tasks, proximal = quadratic(generator), 0.7
    shifted = tasks.a + proximal * torch.eye(4)
    phi = torch.linalg.solve(shifted, rows_times(tasks.a, tasks.b) + proximal * tasks.theta)
    v = torch.linalg.solve(shifted, tasks.cotangent(phi))
    method = ImplicitMAML(proximal=proximal, steps=400, inner_lr=0.4, cg_steps=10, cg_tol=1e-14, learn=("proximal",))
    found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks)
    assert relative(found.grad["phi"], proximal * v.mean(dim=0)) < 1e-10
    assert relative(found.hyper["proximal"], -(v * (phi - tasks.theta)).sum(dim=1).mean()) < 1e-10


@pytest.fixture
def converged(generator):
    """A learner whose inner solve has converged, so that the implicit derivative is the derivative.

    Every step leaves at most 1 − α λ = 0.7 of the way to go, a hundred of them nothing.
    """
    method = ImplicitMAML(proximal=2.0, steps=100, inner_lr=0.15, cg_steps=60, cg_tol=1e-13, learn=("proximal",))
    return MetaLearner(mlp(generator), mse, method, adapt="2.*"), regression(generator)


def test_every_gradient_against_finite_differences_at_convergence(converged):
    learner, tasks = converged
    learner(tasks).backward()
    parameters = list(learner.parameters())
    assert len(parameters) == 4 + 1
    for parameter, expected in zip(parameters, difference_quotient(learner, tasks, parameters), strict=True):
        # Central differences of step 1e-5: an error of the size h² + ε/h, 1e-10.
        assert relative(parameter.grad, expected) < 1e-7


def test_proximal_against_methods_with_other_values(converged):
    learner, tasks = converged

    def loss(proximal: torch.Tensor) -> float:
        method = ImplicitMAML(proximal=float(proximal), steps=100, inner_lr=0.15)
        with torch.no_grad():
            return float(MetaLearner(learner.model, mse, method, adapt="2.*")(tasks))

    expected = central_difference(loss, torch.tensor([2.0]))
    assert relative(learner.meta_gradient(tasks).hyper["proximal"][None], expected) < 1e-7


def test_the_inner_tolerance_is_met_and_no_more(generator):
    model, tasks, tol = mlp(generator), regression(generator), 1e-4
    method = ImplicitMAML(proximal=2.0, steps=100, inner_lr=0.15, inner_tol=tol)
    learner = MetaLearner(model, mse, method)
    phi, split = learner.adapt(tasks.support), Split(model)
    for i in range(3):
        support = (tasks.support.x[i], tasks.support.y[i])
        start = derivatives(split, mse, split.theta, *support).gradient
        end = derivatives(split, mse, phi[i], *support).gradient + 2.0 * (phi[i] - split.theta)
        # A step shrinks the gradient to 1 − α λ = 0.7 at most, and at best a little.
        assert 0.3 * tol * start.norm() < end.norm() <= tol * start.norm()
    assert learner.meta_gradient(tasks).stats["n_grad"] < 60


def released(steps: int, lr: float, proximal: float):
    """The authors' inner loop: plain steps, and one on the proximal term at the end."""

    def descend(gradient, theta):
        phi = theta.clone()
        for _ in range(steps):
            phi = phi - lr * gradient(phi)
        return phi - lr * proximal * (phi - theta)

    return descend


@pytest.mark.parametrize("cg_steps", [2, 60])
def test_the_released_variant(cg_steps, generator):
    # CG on 2v + Hv/(λ + 10): cg_damping 1 and lam_damping 10, the defaults of the released code.
    model, tasks, proximal = mlp(generator), regression(generator), 2.0

    def solve(h, c):
        matrix = 2 * torch.eye(len(c)) + h / (proximal + 10)
        if cg_steps > 10:
            return torch.linalg.solve(matrix, c)
        return torch.from_numpy(conjugate_gradient_iterates(matrix.numpy(), c.numpy(), cg_steps)[cg_steps])

    expected = implicit(model, mse, tasks, proximal=proximal, descend=released(16, 0.1, proximal), solve=solve)
    method = ImplicitMAML(
        proximal=proximal,
        steps=16,
        inner_lr=0.1,
        cg_steps=cg_steps,
        cg_tol=0.0 if cg_steps == 2 else 1e-14,
        variant="released",
    )
    same(MetaLearner(model, mse, method).meta_gradient(tasks), expected, 1e-11)


# Indefinite tasks


def indefinite():
    """Two tasks in two dimensions: A = diag(1, 2), and A = diag(1, −3) where λ = 1 leaves a negative direction."""
    x = torch.eye(2).repeat(2, 1, 1) * torch.tensor([1.0, 2**0.5])[None, None]
    x[1] = torch.diag(torch.tensor([1.0, 3**0.5]))
    sign = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    y = torch.stack([torch.zeros(2, 2), sign], dim=-1)
    query = torch.stack([torch.tensor([[1.0, 0.5], [1.0, 0.2]]), torch.ones(2, 2)], dim=-1)
    points = torch.eye(2).repeat(2, 1, 1)
    return Linear(torch.tensor([0.3, 0.0])), TaskBatch(Batch(x, y), Batch(points, query))


def test_an_indefinite_task_warns_and_leaves_the_others_alone():
    model, tasks = indefinite()
    method = ImplicitMAML(proximal=1.0, steps=1, inner_lr=0.1, cg_steps=5, cg_tol=1e-12)
    learner = MetaLearner(model, signed_squares, method)
    with pytest.warns(RuntimeWarning, match="stopped early in 1 of 2 tasks.*negative curvature.*proximal"):
        found = learner.meta_gradient(tasks)
    status = found.stats["cg_status"].tolist()
    assert status == [Status.SUCCESS.code, Status.NEGATIVE_CURVATURE.code]
    alone = MetaLearner(model, signed_squares, method).meta_gradient(tasks[:1])
    phi = torch.tensor([0.3 * (1 - 0.1), 0.0])
    c = phi - torch.tensor([1.0, 0.5])
    assert relative(alone.grad["phi"], c / torch.tensor([2.0, 3.0])) < 1e-12
    # The second task contributes the truncated iterate.
    cotangent = phi - torch.tensor([1.0, 0.2])
    matrix = np.diag([2.0, -2.0])
    steps = int(found.stats["cg_iterations"][1])
    assert steps == 1
    iterate = torch.from_numpy(conjugate_gradient_iterates(matrix, cotangent.numpy(), 1)[1])
    assert relative(found.grad["phi"], (alone.grad["phi"] + iterate) / 2) < 1e-12


def test_a_task_whose_first_direction_fails_is_first_order():
    model, tasks = indefinite()
    query = tasks.query.y.clone()
    query[1, 0, 0] = 0.27  # the cotangent of the second task points along its negative direction
    tasks = TaskBatch(tasks.support, Batch(tasks.query.x, query))
    method = ImplicitMAML(proximal=1.0, steps=1, inner_lr=0.1, cg_steps=5, cg_tol=1e-12)
    with pytest.warns(RuntimeWarning, match="first-order"):
        found = MetaLearner(model, signed_squares, method).meta_gradient(tasks[1:])
    assert found.stats["cg_iterations"].tolist() == [0]
    assert relative(found.grad["phi"], torch.tensor([0.0, -0.2])) < 1e-12


def test_statistics(generator):
    learner = MetaLearner(mlp(generator), mse, ImplicitMAML(proximal=2.0, steps=7, inner_lr=0.1, cg_steps=4))
    stats = learner.meta_gradient(regression(generator)).stats
    assert (stats["n_grad"], stats["n_hvp"]) == (7 + 1, int(stats["cg_iterations"].max()))
    assert stats["cg_residual"].shape == stats["cg_iterations"].shape == (3,)
    assert torch.all((stats["cg_residual"] >= 0) & (stats["cg_residual"] < 1))


@pytest.mark.parametrize("options", [{"cg_steps": 0}, {"cg_steps": 2, "cg_tol": 0.0, "curvature": "ggn"}])
def test_nothing_is_evaluated_that_is_not_counted(options, generator):
    # Neither needs the gradient's graph at φ, a forward and a backward pass.
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, ImplicitMAML(proximal=5.0, steps=3, **options))
    stats = learner.meta_gradient(tasks).stats
    assert Forwards(model).during(lambda: learner.meta_gradient(tasks)) == stats["n_grad"] + stats["n_hvp"]


def test_one_product_more_when_parameters_are_shared(generator):
    method = ImplicitMAML(proximal=2.0, steps=7, inner_lr=0.1, cg_steps=2, cg_tol=0.0)
    learner = MetaLearner(mlp(generator), mse, method, adapt="2.*")
    assert learner.meta_gradient(regression(generator)).stats["n_hvp"] == 3


def test_a_diverging_inner_solve_says_so(generator):
    learner = MetaLearner(mlp(generator), mse, ImplicitMAML(proximal=1e200, steps=50, inner_lr=1.0))
    with pytest.raises(SolverError, match=r"the inner solve failed in 3 of 3 rows.*smaller learning rate"):
        learner.meta_gradient(regression(generator))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"proximal": 0.0}, ValueError, "proximal must be positive"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"inner_lr": -1.0}, ValueError, "inner_lr must be positive"),
        ({"inner_tol": -1.0}, ValueError, "inner_tol must be finite and at least 0"),
        ({"cg_steps": -1}, ValueError, "cg_steps must be at least 0"),
        ({"cg_steps": 2.0}, TypeError, "cg_steps must be a whole number"),
        ({"cg_tol": -1.0}, ValueError, "cg_tol must be finite and at least 0"),
        ({"inner": "sgd"}, ValueError, "unknown inner 'sgd'; did you mean 'gd'"),
        ({"curvature": "hesian"}, ValueError, "unknown curvature 'hesian'; did you mean 'hessian'"),
        ({"variant": "release"}, ValueError, "unknown variant 'release'; did you mean 'released'"),
        ({"learn": ("inner_lr",)}, ValueError, "unknown learnable hyperparameter 'inner_lr'"),
        ({"learn": "proximal"}, TypeError, "learn must be a tuple"),
        ({"learn": ("proximal",), "variant": "released"}, ValueError, "no exact gradient for λ"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ImplicitMAML(**arguments)
