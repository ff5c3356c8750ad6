from __future__ import annotations

import pytest
import torch
from problems import case
from references import Split, derivatives, relative

from adjoint_meta import Batch
from adjoint_meta.batched_model import BatchedModel
from adjoint_meta.curvature import Curvature
from adjoint_meta.parameters import ParameterRows
from adjoint_meta.problem import Problem

ROUNDING = 1e-12


@pytest.fixture
def setting(generator):
    """A problem with shared parameters, a φ of its own for each task, and dense derivatives of both losses."""
    found = case("mlp", generator)
    query = Batch(*(torch.randn(3, 6, size, generator=generator) for size in (2, 1)))
    rows, split = ParameterRows(found.model, "2.*"), Split(found.model, "2.*")
    theta, psi = rows.read(found.model)
    phi = theta + 0.1 * torch.randn(3, theta.numel(), generator=generator)
    problem = Problem(Curvature(BatchedModel(found.model, found.loss, rows)), psi, found.points, query)
    dense = {
        name: [derivatives(split, found.loss, phi[i], points.x[i], points.y[i]) for i in range(3)]
        for name, points in (("support", found.points), ("query", query))
    }

    def stacked(which: str, name: str) -> torch.Tensor:
        return torch.stack([getattr(derivative, name) for derivative in dense[which]])

    return problem, phi, stacked


def test_the_support_is_adapted_on_and_the_query_judged_on(setting):
    problem, phi, dense = setting
    assert problem.tasks == 3
    assert relative(problem.gradient(phi), dense("support", "gradient")) < ROUNDING
    assert relative(problem.query_losses(phi), dense("query", "loss")) < ROUNDING
    query = problem.query_gradients(phi)
    assert relative(query.losses, dense("query", "loss")) < ROUNDING
    assert relative(query.phi, dense("query", "gradient")) < ROUNDING
    assert float(query.psi.norm()) > 0


def test_curvature_is_that_of_the_support(setting, generator):
    problem, phi, dense = setting
    v = torch.randn(phi.shape, generator=generator)
    gradient, products = problem.linearise(phi).product(v)
    assert relative(gradient, dense("support", "gradient")) < ROUNDING
    assert relative(products.phi, torch.einsum("tij,tj->ti", dense("support", "hessian"), v)) < ROUNDING
    assert relative(products.psi, torch.einsum("tpq,tp->q", dense("support", "mixed"), v)) < ROUNDING
    ggn = torch.einsum("tij,tj->ti", dense("support", "gauss_newton"), v)
    assert relative(problem.gauss_newton(phi, v), ggn) < ROUNDING


def test_everything_is_counted(setting):
    problem, phi, _ = setting
    problem.gradient(phi)
    problem.query_gradients(phi)
    problem.query_losses(phi)
    problem.linearise(phi).product(phi)
    problem.gauss_newton(phi, phi)
    assert vars(problem.evaluations) == {"n_loss": 1, "n_grad": 2, "n_hvp": 2}


def test_a_problem_without_query_points(setting):
    problem, phi, _ = setting
    alone = Problem(problem.curvature, problem.psi, problem.support)
    assert torch.equal(alone.gradient(phi), problem.gradient(phi))
    for ask in (alone.query_losses, alone.query_gradients):
        with pytest.raises(ValueError, match="this problem has no query points"):
            ask(phi)


@pytest.mark.parametrize("which", [[0, 1, 2], [2], [2, 0], [1, 1]], ids=str)
def test_some_tasks_of_a_problem(setting, which):
    problem, phi, dense = setting
    some = problem.rows(torch.tensor(which))
    here = phi[torch.tensor(which)]
    assert some.tasks == len(which)
    assert relative(some.gradient(here), dense("support", "gradient")[which]) < ROUNDING
    assert relative(some.support_losses(here), dense("support", "loss")[which]) < ROUNDING
    products = some.linearise(here).product(here)[1]
    assert relative(products.phi, torch.einsum("tij,tj->ti", dense("support", "hessian")[which], here)) < ROUNDING
    # ψ is shared: the sum runs over the tasks that are left.
    assert relative(products.psi, torch.einsum("tpq,tp->q", dense("support", "mixed")[which], here)) < ROUNDING
    # One counter for all, and tasks that have finished adapting need no query.
    assert some.evaluations is problem.evaluations
    assert vars(problem.evaluations) == {"n_loss": 1, "n_grad": 1, "n_hvp": 1}
    with pytest.raises(ValueError, match="no query points"):
        some.query_losses(here)


def test_support_losses(setting):
    problem, phi, dense = setting
    assert relative(problem.support_losses(phi), dense("support", "loss")) < ROUNDING
    assert not problem.support_losses(phi).requires_grad
