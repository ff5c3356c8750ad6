"""Memory-reduced meta-learning: against dense matrices and finite differences, its relatives, and its warm start."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from problems import drawn, mlp, regression
from references import Split, central_difference, conjugate_gradient_iterates, implicit, relative, through_every_step
from torch import nn

from adjoint_meta import FOMAML, MAML, Batch, MemoryReduced, MetaLearner, SolverError, TaskBatch
from adjoint_meta.experiments.tensor_bytes import TensorBytes
from adjoint_meta.meta_gradients import aid_bio, itd_bio, stoc_bio
from adjoint_meta.training import Trainer, TrainingPlan

mse, cross_entropy = nn.functional.mse_loss, nn.functional.cross_entropy


def classes(generator: torch.Generator, points: int = 12, tasks: int = 3) -> tuple[nn.Sequential, TaskBatch]:
    """A small backbone with a softmax head of three classes, and tasks that no head separates."""
    model = drawn(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3)), generator)

    def batch() -> Batch:
        y = torch.randint(3, (tasks, points), generator=generator)
        return Batch(torch.randn(tasks, points, 2, generator=generator), y)

    return model, TaskBatch(batch(), batch())


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


def settling(kind: str, generator: torch.Generator):
    """A model whose heads come to rest in 600 steps, its loss, tasks, and the size of the steps.

    ‖H‖ is below 3 for the mean square and 0.5 for the softmax; the least curvature that is not zero is 0.3 and 0.016.
    """
    softmax = kind == "softmax"
    body, head = nn.Linear(2, 2, bias=False), nn.Linear(2, 3 if softmax else 1, bias=False)
    model = nn.Sequential(drawn(body, generator, 2.0), nn.Tanh(), drawn(head, generator))
    if softmax:
        return model, cross_entropy, classes(generator, points=20)[1], 3.0
    return model, mse, regression(generator, points=20), 0.5


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


# Warm starts


def test_heads_go_on_from_where_they_were(generator):
    model, tasks = mlp(generator), regression(generator, points=12)
    warm = MetaLearner(model, mse, MemoryReduced(7, 0.1, cg_steps=60, cg_tol=1e-14, warm_start=3), adapt="2.*")
    for taken in (7, 14, 21):
        cold = MetaLearner(model, mse, MemoryReduced(taken, 0.1, cg_steps=60, cg_tol=1e-14), adapt="2.*")
        found, expected = warm.meta_gradient(tasks), cold.meta_gradient(tasks)
        assert relative(found.loss, expected.loss) < 1e-12
        assert "warm" not in found.stats
        for name in ("0.weight", "0.bias"):
            assert relative(found.grad[name], expected.grad[name]) < 1e-9


def test_aid_bio_goes_on_with_its_linear_systems(generator):
    # While the heads come to rest, two CG steps at a time solve the same systems ever better.
    model, loss, tasks, lr = settling("softmax", generator)
    learner = MetaLearner(model, loss, aid_bio(3, 100, lr, cg_steps=2), adapt="2.*")
    residuals = [float(learner.meta_gradient(tasks).stats["cg_residual"].max()) for _ in range(12)]
    assert residuals[-1] < 1e-3 * residuals[0]
    exact = MetaLearner(model, loss, MemoryReduced(800, lr), adapt="2.*").meta_gradient(tasks)
    assert relative(learner.meta_gradient(tasks).grad["0.weight"], exact.grad["0.weight"]) < 1e-3


def test_heads_and_linear_systems_go_on_by_themselves(generator):
    # Heads at rest after their steps, so that the systems are those of before: two CG steps more each time solve them.
    model, loss, tasks, lr = settling("softmax", generator)
    alone = MetaLearner(model, loss, MemoryReduced(800, lr, cg_steps=2, warm_start=3, warm="v"), adapt="2.*")
    residuals = [float(alone.meta_gradient(tasks).stats["cg_residual"].max()) for _ in range(12)]
    assert residuals[-1] < 1e-3 * residuals[0]
    # Heads of two meta-gradients are those of twice the steps; v of two CG steps knows nothing of what was before.
    heads = MetaLearner(model, loss, MemoryReduced(5, lr, cg_steps=2, warm_start=3, warm="heads"), adapt="2.*")
    cold = MetaLearner(model, loss, MemoryReduced(10, lr, cg_steps=2), adapt="2.*")
    heads.meta_gradient(tasks)
    found, expected = heads.meta_gradient(tasks), cold.meta_gradient(tasks)
    assert relative(found.grad["0.weight"], expected.grad["0.weight"]) < 1e-10
    assert torch.equal(found.stats["cg_iterations"], expected.stats["cg_iterations"])


def test_the_state_repeats_a_run_bit_for_bit(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, aid_bio(3, 5, 0.1, cg_steps=2), adapt="2.*")
    learner.meta_gradient(tasks)
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    other = MetaLearner(mlp(generator), mse, aid_bio(3, 5, 0.1, cg_steps=2), adapt="2.*")
    other.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(learner)
    expected = learner.meta_gradient(tasks)
    for again in (other, copied):
        found = again.meta_gradient(tasks)
        assert all(torch.equal(found.grad[name], value) for name, value in expected.grad.items())
        assert torch.equal(again.warm, learner.warm)


def test_an_interrupted_training_repeats_bit_for_bit(generator):
    tasks = regression(generator)
    start = MetaLearner(mlp(generator), mse, aid_bio(3, 5, 0.1, cg_steps=2), adapt="2.*")

    def trainer(learner: MetaLearner, steps: int) -> Trainer:
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
        return Trainer(learner, optimizer, lambda step: tasks, TrainingPlan(steps))

    whole, half, rest = (copy.deepcopy(start) for _ in range(3))
    trainer(whole, 6).run()
    interrupted = trainer(half, 3)
    interrupted.run()
    continued = trainer(rest, 6)
    continued.load_state_dict(copy.deepcopy(interrupted.state_dict()))
    continued.run()
    state, expected = rest.state_dict(), whole.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)
    assert not torch.equal(expected["warm"], half.warm)


def test_only_meta_gradients_go_on(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, MemoryReduced(5, 0.1, warm_start=3), adapt="2.*")
    cold = MetaLearner(model, mse, MemoryReduced(5, 0.1), adapt="2.*")
    learner.meta_gradient(tasks)
    before = learner.warm.clone()
    assert torch.equal(learner.adapt(tasks.support), cold.adapt(tasks.support))
    assert torch.equal(learner.query_losses(tasks[:2]), cold.query_losses(tasks[:2]))
    assert torch.equal(learner.warm, before)
    assert not hasattr(cold, "warm") and "warm" not in cold.state_dict()
    with pytest.raises(ValueError, match=r"warm_start=3 .* got 2; train on all of them"):
        learner.meta_gradient(tasks[:2])
    broken = TaskBatch(tasks.support, Batch(tasks.query.x, tasks.query.y * float("inf")))
    with pytest.raises((SolverError, ValueError)):
        learner.meta_gradient(broken)
    assert torch.equal(learner.warm, before)


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
        ({"warm": "v", "inverse": "neumann"}, ValueError, "a series without a start; say warm='heads'"),
        ({"inverse": "neuman"}, ValueError, "unknown inverse 'neuman'; did you mean 'neumann'"),
        ({"neumann_scale": 0.1}, ValueError, "has no use with inverse='cg'"),
        ({"neumann_scale": 0.0, "inverse": "neumann"}, ValueError, "neumann_scale must be positive"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        MemoryReduced(**arguments)
