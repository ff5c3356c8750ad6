"""Figure 2a of the iMAML paper again: how accurate meta-gradients are on linear regression, against inner steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from adjoint_meta.meta_gradients import MAML, AdjointMAML, ImplicitMAML, Method
from adjoint_meta.tasks import Batch, TaskBatch, generator

from ..models import HalfMSELoss
from ..prepare import choose_device
from ..report import Report
from .imaml_accuracy_report import report
from .study import Setting
from .subject import Subject, by_method

# MAML through the gradient steps of the proximal problem, whose minimiser the reference is differentiated at.
THROUGH = "MAML"
# MAML as it is usually meant, on the support loss alone.
ALONE = "MAML, no proximal term"
CG_STEPS = (2, 5, 10)


@dataclass(frozen=True)
class Budget:
    """How much is measured, and the sizes that the paper does not print.

    Args:
        tasks: linear regressions.
        steps: of the inner gradient descent.
        dimension: of x and of φ.
        points: of a task's support, and of its query.
        noise: standard deviation of the targets' noise, where the true coefficients have one of 1.
        proximal: λ.
        inner_lr: α.
    """

    tasks: int
    steps: tuple[int, ...]
    dimension: int = 10
    points: int = 40
    noise: float = 0.5
    proximal: float = 0.12
    inner_lr: float = 0.078


BUDGETS = {
    "quick": Budget(tasks=200, steps=tuple(range(20, 101, 5))),
    "full": Budget(tasks=2000, steps=tuple(range(20, 101))),
}


def run(setting: Setting) -> Report:
    """Measure every method at every number of steps, and report."""
    budget = BUDGETS[setting.budget]
    device = choose_device(setting.device)
    tasks = linear_tasks(budget).to(device=device)
    model = nn.Linear(budget.dimension, 1, bias=False, device=device, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    subject = Subject(model, HalfMSELoss(), tasks)
    exact = exact_gradient(tasks, subject.theta, budget.proximal)
    makers = methods(budget)
    work = [(name, steps) for name in makers for steps in budget.steps]
    errors: dict[str, dict[int, list[float]]] = {name: {} for name in makers}
    for done, (name, steps) in enumerate(work):
        setting.observe(done, len(work), f"{name}, {steps} steps")
        compute = partial(_errors, subject, makers[name](steps), exact)
        errors[name][steps] = setting.cell(f"{_file(name)}-{steps}", compute)
    setting.observe(len(work), len(work), "report")
    found = {name: np.array(list(curve.values())) for name, curve in errors.items()}
    return report(found, budget.steps, {"budget": setting.budget, "seed": 0, "device": str(device), **asdict(budget)})


def methods(budget: Budget) -> dict[str, Callable[[int], Method]]:
    """Return each curve's method by its number of inner steps."""
    alpha, proximal = budget.inner_lr, budget.proximal

    def through(n: int) -> Method:
        return AdjointMAML(horizon=n * alpha, solver="euler", steps=n, proximal=proximal)

    def implicit(cg: int, n: int) -> Method:
        return ImplicitMAML(proximal, n, alpha, cg_steps=cg, cg_tol=0.0)

    curves: dict[str, Callable[[int], Method]] = {THROUGH: through}
    curves |= {f"iMAML with {cg} CG steps": partial(implicit, cg) for cg in CG_STEPS}
    return {**curves, ALONE: lambda n: MAML(n, alpha)}


def linear_tasks(budget: Budget) -> TaskBatch:
    """Return tasks y = xᵀw + noise with x and w standard normal, float64; θ = 0 is the mean of w."""
    draw = generator(0, 200)
    shape = (budget.tasks, 2 * budget.points, budget.dimension)
    x = torch.randn(shape, generator=draw, dtype=torch.float64)
    w = torch.randn((budget.tasks, budget.dimension, 1), generator=draw, dtype=torch.float64)
    y = x @ w + budget.noise * torch.randn((*shape[:2], 1), generator=draw, dtype=torch.float64)
    half = budget.points
    return TaskBatch(Batch(x[:, :half], y[:, :half]), Batch(x[:, half:], y[:, half:]))


def exact_gradient(tasks: TaskBatch, theta: Tensor, proximal: float) -> Tensor:
    """Return λ(A + λI)⁻¹ ∇L_q(φ*) of each task, ``[tasks, P]``, by dense linear algebra; A is the support's Hessian."""
    (a, b), (c, d) = (_normal(batch) for batch in (tasks.support, tasks.query))
    regular = a + proximal * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    minimiser = torch.linalg.solve(regular, b + proximal * theta)
    exact: Tensor = proximal * torch.linalg.solve(regular, (c @ minimiser[:, :, None])[:, :, 0] - d)
    return exact


def _normal(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return Hessian ``[tasks, P, P]`` and right-hand side ``[tasks, P]`` of ½ mean (xᵀφ − y)²."""
    transposed = batch.x.transpose(1, 2) / batch.x.shape[1]
    return transposed @ batch.x, (transposed @ batch.y)[:, :, 0]


def _errors(subject: Subject, method: Method, exact: Tensor) -> list[float]:
    """Return ‖ĝ − g‖/‖g‖ of each task."""
    found = subject.measure(by_method(method), each=True).gradient
    errors: list[float] = ((found - exact).norm(dim=1) / exact.norm(dim=1)).tolist()
    return errors


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
