"""Memory-reduced meta-learning and its relatives, against dense matrices and finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from memory_reduced_problems import classes, cross_entropy, mse, settling
from problems import drawn, mlp, regression
from references import Split, central_difference, conjugate_gradient_iterates, implicit, relative, through_every_step
from torch import nn

from adjoint_meta import FOMAML, MAML, Batch, MemoryReduced, MetaLearner, SolverError, TaskBatch
from adjoint_meta.experiments.tensor_bytes import TensorBytes
from adjoint_meta.meta_gradients import itd_bio, stoc_bio


def gradient_steps(steps: int, lr: float):
    def descend(gradient, theta):
        phi = theta.clone()
        for _ in range(steps):
            phi = phi - lr * gradient(phi)
        return phi

    return descend


def reference(model, loss, tasks, steps: int, lr: float, solve):
    """∂_ψL_q − (∂_ψ∇_φL_s)ᵀ v with v = solve(H, c), a task at a time, and zeros for the head."""
    found = implicit(model, loss, tasks, proximal=1.0, descend=gradient_steps(steps, lr), solve=solve, adapt="2.*")
    heads = {name: torch.zeros_like(value) for name, value in found.grad.items() if name.startswith("2.")}
    return found._replace(grad={**found.grad, **heads})


def same(found, expected, tolerance: float) -> None:
    assert relative(found.loss, expected.losses) < tolerance
    assert set(found.grad) == set(expected.grad)
    for name, gradient in expected.grad.items():
        assert torch.allclose(found.grad[name], gradient, rtol=tolerance, atol=tolerance * gradient.norm()), name


def dense(damping: float):
    return lambda h, c: torch.linalg.solve(h + damping * torch.eye(len(c)), c)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_it_is_the_dense_formula(damping, chunk_size, generator):
    model, tasks = mlp(generator), regression(generator, points=12)
    method = MemoryReduced(steps=7, inner_lr=0.1, cg_steps=60, cg_tol=1e-14, damping=damping)
    found = MetaLearner(model, mse, method, adapt="2.*", chunk_size=chunk_size).meta_gradient(tasks)
    same(found, reference(model, mse, tasks, 7, 0.1, dense(damping)), 1e-9)


def test_a_softmax_head_whose_hessian_is_singular(generator):
    # Adding one vector to the weights of all classes changes no loss, so neither gradient has a part along it.
    model, tasks = classes(generator)
    found = MetaLearner(model, cross_entropy, MemoryReduced(cg_steps=60, cg_tol=1e-14), adapt="2.*")
    minimum_norm = reference(model, cross_entropy, tasks, 20, 0.05, lambda h, c: torch.linalg.pinv(h, 1e-10) @ c)
    same(found.meta_gradient(tasks), minimum_norm, 1e-8)


@pytest.mark.parametrize("cg_steps", [1, 3])
def test_truncated_conjugate_gradients(cg_steps, generator):
    model, tasks = mlp(generator), regression(generator, points=12)

    def solve(h, c):
        return torch.from_numpy(conjugate_gradient_iterates(h.numpy(), c.numpy(), cg_steps)[cg_steps])

    learner = MetaLearner(model, mse, MemoryReduced(5, 0.1, cg_steps=cg_steps, cg_tol=0.0), adapt="2.*")
    found = learner.meta_gradient(tasks)
    same(found, reference(model, mse, tasks, 5, 0.1, solve), 1e-11)
    assert found.stats["cg_iterations"].tolist() == [cg_steps] * 3
    assert found.stats["cg_residual"].shape == (3,)
    # One gradient a step and one of the query; the mixed product comes after those of CG.
    assert (found.stats["n_grad"], found.stats["n_hvp"]) == (5 + 1, cg_steps + 1)


def test_without_cg_only_the_direct_gradient_is_left(generator):
    model, tasks = mlp(generator), regression(generator)
    found, first_order = (
        MetaLearner(model, mse, method, adapt="2.*").meta_gradient(tasks)
        for method in (MemoryReduced(4, 0.1, cg_steps=0), FOMAML(4, 0.1))
    )
    for name in ("0.weight", "0.bias"):
        assert relative(found.grad[name], first_order.grad[name]) < 1e-13


def wide(generator: torch.Generator) -> tuple[nn.Sequential, TaskBatch]:
    """Three classes of one support point each, whose features do not span those of the query."""
    model = drawn(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), generator)

    def batch(shots: int) -> Batch:
        return Batch(torch.randn(2, 3 * shots, 4, generator=generator), torch.arange(3).repeat(2, shots))

    return model, TaskBatch(batch(1), batch(5))


def test_a_query_gradient_outside_the_range_of_the_hessian_warns(generator):
    model, tasks = wide(generator)
    with pytest.warns(RuntimeWarning, match=r"2 of 2 tasks with a residual .* times ‖∇_φL_q‖.*damping"):
        found = MetaLearner(model, cross_entropy, MemoryReduced(cg_steps=4), adapt="2.*").meta_gradient(tasks)
    assert bool((found.stats["cg_residual"] > 1).all())
    damped = MetaLearner(model, cross_entropy, MemoryReduced(cg_steps=60, cg_tol=1e-14, damping=0.1), adapt="2.*")
    same(damped.meta_gradient(tasks), reference(model, cross_entropy, tasks, 20, 0.05, dense(0.1)), 1e-9)


# At convergence


@pytest.mark.parametrize("kind", ["mean square", "softmax"])
def test_finite_differences_through_the_heads_at_rest(kind, generator):
    """The reference does not know the formula: Newton's method finds the heads for each value of ψ."""
    model, loss, tasks, lr = settling(kind, generator)
    split = Split(model, "2.*")

    def outer(psi: torch.Tensor) -> float:
        losses = []
        for i in range(len(tasks)):

            def support(phi, i=i):
                return loss(split.predict(phi, psi, tasks.support.x[i]), tasks.support.y[i])

            phi = torch.zeros_like(split.theta)
            for _ in range(10):
                phi = phi - torch.linalg.pinv(torch.func.hessian(support)(phi), 1e-10) @ torch.func.grad(support)(phi)
            assert torch.func.grad(support)(phi).norm() < 1e-14
            losses.append(loss(split.predict(phi, psi, tasks.query.x[i]), tasks.query.y[i]))
        return float(torch.stack(losses).mean())

    found = MetaLearner(model, loss, MemoryReduced(800, lr, cg_steps=40, cg_tol=1e-13), adapt="2.*")
    psi = found.meta_gradient(tasks).grad["0.weight"].reshape(-1)
    # Central differences of step 1e-5: an error of the size h² + ε/h, 1e-10.
    assert relative(psi, central_difference(outer, split.psi)) < 1e-8


# The relatives


def test_itd_bio_is_autograd_through_the_steps(generator):
    model, tasks = classes(generator)
    found = MetaLearner(model, cross_entropy, itd_bio(6, 0.2), adapt="2.*").meta_gradient(tasks)
    expected = through_every_step(model, cross_entropy, tasks, horizon=1.2, steps=6, adapt="2.*")
    for name, gradient in expected.grad.items():
        assert relative(found.grad[name], gradient) < 1e-11


def test_stoc_bio_is_the_truncated_neumann_series(generator):
    model, tasks = classes(generator)

    def series(h, c):
        steps = torch.eye(len(c)) - 0.4 * h
        return 0.4 * sum(torch.linalg.matrix_power(steps, q) @ c for q in range(6))

    learner = MetaLearner(model, cross_entropy, stoc_bio(6, 0.2, products=5, scale=0.4), adapt="2.*")
    found = learner.meta_gradient(tasks)
    assert found.stats["n_hvp"] == 5 + 1 and found.stats["neumann_residual"].shape == (3,)
    same(found, reference(model, cross_entropy, tasks, 6, 0.2, series), 1e-11)


def test_a_neumann_series_that_diverges_says_so(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, stoc_bio(3, 0.05, products=8, scale=50.0), adapt="2.*")
    with pytest.raises(SolverError, match=r"the Neumann series failed.*decrease the scale"):
        learner.meta_gradient(tasks)


# What the learner makes of it


def test_the_start_of_the_heads_stays_what_it_is(generator):
    model, tasks = classes(generator)
    learner = MetaLearner(model, cross_entropy, MemoryReduced(), adapt="2.*")
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        learner(tasks).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("2.")


def test_without_shared_parameters_there_is_nothing_to_learn(generator):
    with pytest.raises(ValueError, match=r"learns what tasks share, and all parameters adapt; .*adapt='head\.\*'"):
        MetaLearner(mlp(generator), mse, MemoryReduced())


def test_programs_find_the_same(monkeypatch, generator):
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: graph)  # which would take seconds for each
    model, tasks = classes(generator)
    method = MemoryReduced(4, 0.1, cg_steps=4, cg_tol=0.0, damping=0.1)
    eager, other = (MetaLearner(model, cross_entropy, method, adapt="2.*", backend=b) for b in ("eager", "compile"))
    for _ in range(2):
        expected, found = eager.meta_gradient(tasks), other.meta_gradient(tasks)
        for name in ("0.weight", "0.bias"):
            assert relative(found.grad[name], expected.grad[name]) < 1e-11
    assert other.engine.replayed > 0


def test_float32_stays_float32_and_asks_no_more_of_cg(generator):
    model, tasks = classes(generator)
    exact = MetaLearner(copy.deepcopy(model), cross_entropy, MemoryReduced(cg_steps=60), adapt="2.*")
    learner = MetaLearner(model.float(), cross_entropy, MemoryReduced(cg_steps=60), adapt="2.*")
    expected, found = exact.meta_gradient(tasks), learner.meta_gradient(tasks.to(dtype=torch.float32))
    assert all(gradient.dtype == torch.float32 for gradient in found.grad.values())
    assert relative(found.grad["0.weight"].double(), expected.grad["0.weight"]) < 1e-4
    assert bool((found.stats["cg_iterations"] < 20).all())


def peak(learner: MetaLearner, tasks: TaskBatch) -> int:
    learner.meta_gradient(tasks)
    with TensorBytes() as found:
        learner.meta_gradient(tasks)
    return found.peak


def test_memory_is_flat_in_the_number_of_steps(generator):
    model, tasks = classes(generator, points=6)

    def of(method):
        return peak(MetaLearner(model, cross_entropy, method, adapt="2.*"), tasks)

    assert of(MemoryReduced(steps=60)) == of(MemoryReduced(steps=3))
    assert of(MAML(60, 0.05)) > of(MAML(3, 0.05)) + 50 * 3 * 9 * 8  # its iterates, of 9 numbers a task


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"inner_lr": 0.0}, ValueError, "inner_lr must be positive"),
        ({"cg_steps": -1}, ValueError, "cg_steps must be at least 0"),
        ({"cg_tol": -1.0}, ValueError, "cg_tol must be finite and at least 0"),
        ({"damping": -1.0}, ValueError, "damping must be finite and at least 0"),
        ({"warm_start": True}, TypeError, "warm_start must be a whole number"),
        ({"warm": "all"}, ValueError, "unknown warm 'all'"),
        ({"warm": "v"}, ValueError, "warm='v' has no use with warm_start=0; say how many"),
        (
            {"warm": "v", "inverse": "neumann", "warm_start": 2},
            ValueError,
            "without a start; say warm='heads'",
        ),
        ({"inverse": "neuman"}, ValueError, "unknown inverse 'neuman'; did you mean 'neumann'"),
        ({"neumann_scale": 0.1}, ValueError, "has no use with inverse='cg'"),
        ({"neumann_scale": 0.0, "inverse": "neumann"}, ValueError, "neumann_scale must be positive"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        MemoryReduced(**arguments)
