"""iMAML with Newton-CG as its inner solver: closed forms, gradient descent run to its end, and finite differences."""

from __future__ import annotations

import pytest
import torch
from problems import Forwards, case, half_squares, mlp, quadratic, regression
from references import Split, central_difference, derivatives, difference_quotient, relative, rows_times
from torch import nn

from adjoint_meta import Batch, ImplicitMAML, MetaLearner, SolverError, TaskBatch

mse, cross_entropy = nn.functional.mse_loss, nn.functional.cross_entropy


def hessian_free(proximal: float = 2.0, steps: int = 100, cg_steps: int = 60, cg_tol: float = 1e-13, **options):
    return ImplicitMAML(proximal, steps, cg_steps=cg_steps, cg_tol=cg_tol, inner="newton-cg", **options)


def objective(model, loss, support: Batch, phi, proximal: float, adapt: str | None = None):
    """G, ∇G and ∇²G of each task, by dense derivatives."""
    split = Split(model, adapt)
    found = []
    for x, y, row in zip(support.x, support.y, phi, strict=True):
        d, moved = derivatives(split, loss, row, x, y), row - split.theta
        shifted = d.hessian + proximal * torch.eye(len(row))
        found.append((d.loss + proximal / 2 * moved @ moved, d.gradient + proximal * moved, shifted))
    return [torch.stack(part) for part in zip(*found, strict=True)]


def test_a_quadratic_takes_one_step(generator):
    tasks, proximal = quadratic(generator), 0.7
    method = hessian_free(proximal, steps=1, cg_steps=4, cg_tol=0.0, learn=("proximal",))
    found = MetaLearner(tasks.model, half_squares, method).meta_gradient(tasks.tasks)
    shifted = tasks.a + proximal * torch.eye(4)
    phi = torch.linalg.solve(shifted, rows_times(tasks.a, tasks.b) + proximal * tasks.theta)
    v = torch.linalg.solve(shifted, tasks.cotangent(phi))
    assert found.stats["inner_steps"].tolist() == [1] * 3
    assert found.stats["inner_cg_iterations"].tolist() == [4] * 3
    assert relative(MetaLearner(tasks.model, half_squares, method).adapt(tasks.tasks.support), phi) < 1e-12
    assert relative(found.grad["phi"], proximal * v.mean(dim=0)) < 1e-11
    assert relative(found.hyper["proximal"], -(v * (phi - tasks.theta)).sum(dim=1).mean()) < 1e-11


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("adapt", [None, "2.*"])
def test_it_ends_where_gradient_descent_ends(curvature, adapt, generator):
    model, tasks = mlp(generator), regression(generator)
    slow = ImplicitMAML(2.0, steps=400, inner_lr=0.15, cg_steps=60, cg_tol=1e-13, curvature=curvature)
    learners = [MetaLearner(model, mse, each, adapt=adapt) for each in (slow, hessian_free(curvature=curvature))]
    expected, found = (learner.meta_gradient(tasks) for learner in learners)
    assert relative(learners[1].adapt(tasks.support), learners[0].adapt(tasks.support)) < 1e-11
    for name, gradient in expected.grad.items():
        assert relative(found.grad[name], gradient) < 1e-10, name


def test_five_cg_steps_a_direction_need_far_fewer_evaluations(generator):
    model, tasks = mlp(generator), regression(generator)
    newton = MetaLearner(model, mse, hessian_free(0.2, cg_steps=5, cg_tol=1e-6, inner_tol=1e-4))
    descent = MetaLearner(model, mse, ImplicitMAML(0.2, steps=2000, inner_lr=0.1, cg_steps=5, inner_tol=1e-4))
    counts = []
    for learner in (newton, descent):
        _, slope, _ = objective(model, mse, tasks.support, learner.adapt(tasks.support), 0.2)
        _, first, _ = objective(model, mse, tasks.support, learner.initial(3), 0.2)
        assert bool((slope.norm(dim=1) <= 1e-4 * first.norm(dim=1)).all())
        spent = learner.evaluations
        counts.append(spent.n_grad + spent.n_hvp + spent.n_loss)
    assert 5 * counts[0] < counts[1], counts


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_every_step_lowers_the_objective_of_every_task(curvature, generator):
    model, loss, support = case("classifier", generator)
    before = torch.full((3,), float("inf"))
    for steps in range(1, 9):
        method = hessian_free(0.05, steps=steps, cg_steps=5, cg_tol=1e-6, curvature=curvature)
        phi = MetaLearner(model, loss, method).adapt(support)
        now, slope, _ = objective(model, loss, support, phi, 0.05)
        assert bool(((now < before) | (slope.norm(dim=1) < 1e-7)).all())
        before = now


def test_negative_curvature_leads_downhill_to_a_minimum(generator):
    model, loss, support = case("classifier", generator)
    with torch.no_grad():
        model[0].weight.mul_(3)
    proximal = 0.05
    start = MetaLearner(model, loss, hessian_free(proximal)).initial(3)
    first, _, shifted = objective(model, loss, support, start, proximal)
    assert bool((torch.linalg.eigvalsh(shifted)[:, 0] < -0.01).all())
    phi = MetaLearner(model, loss, hessian_free(proximal, steps=60, cg_steps=30)).adapt(support)
    last, slope, shifted = objective(model, loss, support, phi, proximal)
    assert bool((last < first).all())
    assert float(slope.norm(dim=1).max()) < 1e-9
    assert bool((torch.linalg.eigvalsh(shifted)[:, 0] > 0).all())


@pytest.fixture
def converged(generator):
    """A learner whose inner solve has converged, so that the implicit derivative is the derivative."""
    return MetaLearner(mlp(generator), mse, hessian_free(learn=("proximal",)), adapt="2.*"), regression(generator)


def test_every_gradient_against_finite_differences(converged):
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
        with torch.no_grad():
            return float(MetaLearner(learner.model, mse, hessian_free(float(proximal)), adapt="2.*")(tasks))

    expected = central_difference(loss, torch.tensor([2.0]))
    assert relative(learner.meta_gradient(tasks).hyper["proximal"][None], expected) < 1e-7


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}])
def test_tasks_are_solved_each_on_its_own(options, generator):
    model, tasks = mlp(generator), regression(generator)
    far = torch.tensor([1.0, 5.0, 0.1])[:, None, None]
    tasks = TaskBatch(Batch(tasks.support.x, far * tasks.support.y), tasks.query)
    method = hessian_free(0.3, cg_steps=5, cg_tol=1e-8, inner_tol=1e-5)
    learner = MetaLearner(model, mse, method, **options)
    phi, steps = learner.adapt(tasks.support), learner.meta_gradient(tasks).stats["inner_steps"]
    for i in range(3):
        alone = MetaLearner(model, mse, method)
        assert relative(phi[i : i + 1], alone.adapt(tasks.support[i : i + 1])) < 1e-10
        assert steps[i] == alone.meta_gradient(tasks[i : i + 1]).stats["inner_steps"][0]
    assert len(set(steps.tolist())) > 1


def test_no_evaluation_serves_one_task_alone(generator):
    counts = []
    for tasks in (2, 20):
        model, batch = mlp(generator), regression(torch.Generator().manual_seed(3), tasks=1)
        many = TaskBatch(
            *(Batch(p.x.repeat(tasks, 1, 1), p.y.repeat(tasks, 1, 1)) for p in (batch.support, batch.query))
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.3)
        learner = MetaLearner(model, mse, hessian_free(0.3, cg_steps=5, inner_tol=1e-5))
        learner.meta_gradient(many)
        counts.append(Forwards(model).during(lambda found=learner, many=many: found.meta_gradient(many)))
    assert counts[0] == counts[1]


def test_programs_find_the_same(monkeypatch, generator):
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: graph)  # which would take seconds for each
    model, tasks = mlp(generator), regression(generator)
    eager, other = (MetaLearner(model, mse, hessian_free(), backend=backend) for backend in ("eager", "compile"))
    expected, found = eager.meta_gradient(tasks), other.meta_gradient(tasks)
    for name, gradient in expected.grad.items():
        assert relative(found.grad[name], gradient) < 1e-10
    assert other.engine.replayed > 0


def test_float32_ends_at_its_rounding(generator):
    model, tasks = mlp(generator), regression(generator)
    expected = MetaLearner(model, mse, hessian_free()).adapt(tasks.support)
    found = MetaLearner(model.float(), mse, hessian_free(cg_tol=1e-6)).adapt(tasks.support.to(dtype=torch.float32))
    assert found.dtype == torch.float32
    assert relative(found.double(), expected) < 1e-5


def test_a_loss_that_is_not_finite_says_so(generator):
    model, tasks = mlp(generator), regression(generator)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(SolverError, match="the inner solve failed in 3 of 3 rows"):
        MetaLearner(model, mse, hessian_free()).meta_gradient(tasks)


def test_the_released_variant_has_no_newton():
    with pytest.raises(ValueError, match="variant='released' is gradient descent"):
        ImplicitMAML(inner="newton-cg", variant="released")
