"""Small inner problems whose meta-gradient is known otherwise: by finite differences, or in closed form."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adjoint_meta.batched_model import twice_differentiable
from adjoint_meta.meta_gradients import MAML, AdjointMAML, ImplicitMAML, Method
from adjoint_meta.problem import Problem
from adjoint_meta.solvers.solution import Status
from adjoint_meta.tasks import Batch, TaskBatch, generator

from ..measure import peak_memory_bytes, reset_peak_memory
from ..models import HalfMSELoss, mlp
from ..regression import RegressionTasks, Sine
from .subject import Subject, by_method

# Of central differences: their error is δ² and rounding over δ.
_DELTA = 1e-5
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Network:
    """Sine tasks for a small network with the inner objective L_s + ½λ‖φ − θ‖².

    Args:
        activation: "tanh", or "relu", whose loss has kinks.
        proximal: λ.
        steps: of gradient descent.
        tasks: how many.
        lr: α.
        width: hidden units.
    """

    activation: str
    proximal: float
    steps: int
    tasks: int
    lr: float = 0.1
    width: int = 8

    def subject(self) -> Subject:
        """Return θ, drawn from a seed, and the tasks."""
        source, _, _, _ = RegressionTasks(Sine(), train_tasks=self.tasks, test_tasks=1, shots=10, queries=10).build()
        model = mlp(1, self.width, 1, 1, activation=self.activation, seed=0).double()
        return Subject(model, HalfMSELoss(), source.tasks)

    @property
    def implicit(self) -> ImplicitMAML:
        """The implicit method, with as many CG steps as could ever help."""
        return ImplicitMAML(
            proximal=self.proximal, steps=self.steps, inner_lr=self.lr, cg_steps=6 * self.width, cg_tol=1e-10
        )

    @property
    def unrolled(self) -> AdjointMAML:
        """Reverse mode through the same gradient steps: MAML with the proximal term, which is Euler's method."""
        return AdjointMAML(horizon=self.steps * self.lr, solver="euler", steps=self.steps, proximal=self.proximal)

    def measure(self) -> list[dict[str, Any]]:
        """Return a record a task: errors of the meta-gradients beside finite differences of the same steps."""
        subject = self.subject()
        reference = finite_differences(subject, self.implicit)
        implicit = subject.measure(by_method(self.implicit), each=True)
        unrolled = subject.measure(by_method(self.unrolled), each=True)
        hessian = dense_hessian(subject.problem(), implicit.phi)
        shifted = hessian + self.proximal * torch.eye(hessian.shape[1], dtype=hessian.dtype)
        cotangent = query_gradients(subject, implicit.phi)
        exact = self.proximal * torch.linalg.solve(shifted, cotangent)
        slope = subject.problem().gradient(implicit.phi) + self.proximal * (implicit.phi - subject.theta)
        code = implicit.stats["cg_status"]
        columns = {
            "implicit": relative(implicit.gradient, reference),
            "implicit_dense": relative(exact, reference),
            "unrolled": relative(unrolled.gradient, reference),
            "cg": relative(implicit.gradient, exact),
            "smallest": torch.linalg.eigvalsh(shifted)[:, 0],
            "slope": slope.norm(dim=1),
            "negative": (code == Status.NEGATIVE_CURVATURE.code).double(),
        }
        shared = {"activation": self.activation, "lambda": self.proximal, "steps": self.steps}
        return [
            {**shared, "task": task, **{name: float(values[task]) for name, values in columns.items()}}
            for task in range(self.tasks)
        ]


def finite_differences(subject: Subject, method: Method) -> Tensor:
    """Return the gradient of each task's query loss after the method's inner solve, ``[tasks, P]``.

    Central differences in every coordinate of θ, all of them rows of one batch.
    """
    tasks, size = subject.theta.shape
    shifts = _DELTA * torch.cat([torch.eye(size), -torch.eye(size)]).to(subject.theta)
    theta = (subject.theta[:, None] + shifts).reshape(-1, size)
    which = torch.arange(tasks).repeat_interleave(2 * size)
    problem = subject.problem()
    with twice_differentiable():
        repeated = Problem(problem.curvature, problem.psi, subject.tasks.support.take(which))
        phi = method.adapt(repeated, theta, {})
    query = subject.tasks.query.take(which)
    losses = problem.curvature.losses(phi.detach(), problem.psi, query).reshape(tasks, 2, size)
    return (losses[:, 0] - losses[:, 1]) / (2 * _DELTA)


def dense_hessian(problem: Problem, phi: Tensor) -> Tensor:
    """Return the Hessian of L_s, ``[tasks, P, P]``, a product a column."""
    with twice_differentiable():
        linear = problem.linearise(phi)
        columns = [
            linear.product(v.expand_as(phi).contiguous(), keep=True)[1].phi.detach()
            for v in torch.eye(phi.shape[1]).to(phi)
        ]
    return torch.stack(columns, dim=2)


def query_gradients(subject: Subject, phi: Tensor) -> Tensor:
    """Return ∇L_q at φ, ``[tasks, P]``."""
    problem = subject.problem()
    with twice_differentiable():
        return problem.curvature.gradients(phi, problem.psi, subject.tasks.query).phi


def relative(found: Tensor, reference: Tensor) -> Tensor:
    """Return the relative error of each row, ``[tasks]``."""
    error: Tensor = (found - reference).norm(dim=1) / reference.norm(dim=1)
    return error


class _Linear(nn.Module):
    """Predictions x φ."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.phi = nn.Parameter(start.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return x φ."""
        return x @ self.phi


@dataclass(frozen=True)
class Quadratic:
    """Tasks L_s = ½ Σ aᵢ(φᵢ − bᵢ)², L_q = ½‖φ − q‖², with curvatures a from 1e-3 to 1; α = 1.

    Args:
        size: P.
        tasks: how many.
        proximal: λ of iMAML.
    """

    size: int
    tasks: int
    proximal: float = 0.1

    @property
    def curvatures(self) -> Tensor:
        """The eigenvalues a, ``[P]``."""
        return torch.logspace(-3, 0, self.size, dtype=torch.float64)

    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return θ ``[P]``, b and q ``[tasks, P]``."""
        draw = generator(0, 7)
        theta = torch.randn(self.size, generator=draw, dtype=torch.float64)
        b, q = torch.randn(2, self.tasks, self.size, generator=draw, dtype=torch.float64).unbind()
        return theta, b, q

    def subject(self) -> Subject:
        """Return the tasks as regression: x = diag(√a) for support, the identity for query."""
        theta, b, q = self.numbers()
        root = self.curvatures.sqrt()
        support = Batch(root.diag().repeat(self.tasks, 1, 1), root * b)
        query = Batch(torch.eye(self.size, dtype=torch.float64).repeat(self.tasks, 1, 1), q)
        return Subject(_Linear(theta), lambda y, target: 0.5 * (y - target).square().sum(), TaskBatch(support, query))

    def exact(self, name: str, steps: int) -> Tensor:
        """Return the meta-gradients in closed form, ``[tasks, P]``: after so many steps, or at iMAML's minimum."""
        theta, b, q = self.numbers()
        if name == "iMAML":
            damping = self.proximal / (self.curvatures + self.proximal)
        else:
            damping = (1 - self.curvatures) ** steps
        return damping * (b + damping * (theta - b) - q)

    def method(self, name: str, steps: int) -> Method:
        """Return the method; iMAML stops when it has converged."""
        if name == "iMAML":
            lr = 1 / (1 + self.proximal)
            return ImplicitMAML(
                proximal=self.proximal, steps=steps, inner_lr=lr, inner_tol=1e-9, cg_steps=100, cg_tol=1e-9
            )
        return MAML(steps=steps, inner_lr=1.0, adjoint="checkpointed" if "checkpointed" in name else "discrete")

    def measure(self, name: str, steps: int) -> list[dict[str, Any]]:
        """Return one record: the size of the meta-gradient, its error, and what it cost."""
        subject = self.subject()
        solve = by_method(self.method(name, steps))
        subject.measure(by_method(self.method(name, 2)), each=True)
        reset_peak_memory(_CPU)
        before, started = peak_memory_bytes(_CPU), time.process_time()
        found = subject.measure(solve, each=True)
        seconds = time.process_time() - started
        memory = peak_memory_bytes(_CPU) - before
        cotangent = query_gradients(subject, found.phi)
        exact = self.exact(name, steps)
        record = {
            "method": name,
            "steps": steps,
            "size": float((found.gradient.norm(dim=1) / cotangent.norm(dim=1)).median()),
            "error": float(relative(found.gradient, exact).median()),
            "seconds": seconds,
            "memory": max(memory, 0),
            "evaluations": found.evaluations.n_grad + found.evaluations.n_hvp,
        }
        return [record]


@dataclass(frozen=True)
class AbsoluteValues:
    """Tasks L_s = Σ|φᵢ − bᵢ|, L_q = ½‖φ − q‖²: with the proximal term the minimiser is b + soft(θ − b, 1/λ).

    Args:
        size: P.
        tasks: how many.
        steps: of gradient descent, α = 0.01, or of proximal gradient.
        proximal: λ.
    """

    size: int
    tasks: int
    steps: int
    proximal: float = 1.0

    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return θ ``[P]``, b and q ``[tasks, P]``."""
        return Quadratic(self.size, self.tasks).numbers()

    def subject(self) -> Subject:
        """Return the tasks as regression; the query loss is not theirs."""
        theta, b, _ = self.numbers()
        one = Batch(torch.eye(self.size, dtype=torch.float64).repeat(self.tasks, 1, 1), b)
        return Subject(_Linear(theta), nn.L1Loss(reduction="sum"), TaskBatch(one, one))

    def measure(self) -> list[dict[str, Any]]:
        """Return a record a task: errors beside the derivative of the soft threshold."""
        subject = self.subject()
        theta, b, q = self.numbers()
        kinked = (theta - b).abs() < 1 / self.proximal
        minimiser = _soft(theta - b, 1 / self.proximal) + b
        exact = torch.where(kinked, 0.0, minimiser - q)
        implicit = ImplicitMAML(proximal=self.proximal, steps=self.steps, inner_lr=0.01, cg_steps=20)
        unrolled = AdjointMAML(horizon=0.01 * self.steps, solver="euler", steps=self.steps, proximal=self.proximal)
        columns = {"unrolled_proximal": relative(self.proximal_steps(), exact)}
        for name, method in (("implicit", implicit), ("unrolled", unrolled)):
            with twice_differentiable():
                adapted = method.solve(subject.problem(), subject.theta, {})
                columns[name] = relative(adapted.pullback(adapted.phi - q).theta, exact)
        columns["kinked"] = kinked.double().mean(dim=1)
        return [{"task": i, **{name: float(v[i]) for name, v in columns.items()}} for i in range(self.tasks)]

    def proximal_steps(self) -> Tensor:
        """Return the meta-gradients of unrolled proximal gradient descent, whose step is the soft threshold itself."""
        theta, b, q = self.numbers()
        start = theta.repeat(self.tasks, 1).requires_grad_()
        phi, h = start, 0.5 / self.proximal
        for _ in range(self.steps):
            phi = b + _soft(phi - h * self.proximal * (phi - start) - b, h)
        (found,) = torch.autograd.grad((0.5 * (phi - q).square()).sum(), start)
        return found


def _soft(x: Tensor, threshold: float) -> Tensor:
    return torch.sign(x) * torch.relu(x.abs() - threshold)
