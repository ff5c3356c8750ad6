"""A bilevel problem that dense linear algebra solves: heads a task, and coefficients that all tasks share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adjoint_meta.learner import MetaLearner
from adjoint_meta.meta_gradients import Method
from adjoint_meta.tasks import Batch, TaskBatch, generator

from ..models import HalfMSELoss


class HeadAndShared(nn.Module):
    """The prediction ⟨φ, z⟩ + ⟨ψ, u⟩ of inputs x = (z, u), with φ = 0 and ψ = 0 to begin with.

    Args:
        head: entries of z.
        shared: entries of u.
    """

    def __init__(self, head: int, shared: int) -> None:
        super().__init__()
        self.head = nn.Linear(head, 1, bias=False, dtype=torch.float64)
        self.shared = nn.Linear(shared, 1, bias=False, dtype=torch.float64)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return predictions ``[points, 1]`` of inputs ``[points, head + shared]``."""
        z, u = x.split((self.head.in_features, self.shared.in_features), dim=-1)
        prediction: Tensor = self.head(z) + self.shared(u)
        return prediction


@dataclass(frozen=True)
class SharedRegression:
    """Linear regressions whose losses are strongly convex in φ, and whose Φ(ψ) = mean_i L_q(φ_i*(ψ), ψ) is so in ψ.

    Args:
        tasks: how many.
        points: of a task's support, and of its query.
        head: entries of φ.
        shared: entries of ψ.
        condition: by how much the inputs of ψ differ in their second moments, which spreads the curvature of Φ.
        noise: standard deviation of the targets' noise, and of what each task's ψ differs by.
        seed: of the tasks.
    """

    tasks: int = 64
    points: int = 100
    head: int = 8
    shared: int = 8
    condition: float = 30.0
    noise: float = 0.5
    seed: int = 0

    def batch(self) -> TaskBatch:
        """Return the tasks, float64; z and u are correlated, so that what φ fits depends on ψ."""
        draw = generator(self.seed, 300)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64)

        scale = torch.logspace(0, -0.5 * torch.log10(torch.tensor(self.condition)).item(), self.shared).double()
        mixing = 0.5 * normal(self.head, self.shared) / self.head**0.5
        common = normal(self.shared, 1) / scale[:, None]
        phi = normal(self.tasks, self.head, 1)
        psi = common + self.noise * normal(self.tasks, self.shared, 1)

        def points() -> Batch:
            z = normal(self.tasks, self.points, self.head)
            u = (normal(self.tasks, self.points, self.shared) + z @ mixing) * scale
            y = z @ phi + u @ psi + self.noise * normal(self.tasks, self.points, 1)
            return Batch(torch.cat([z, u], dim=-1), y)

        return TaskBatch(points(), points())

    def learner(self, method: Method) -> MetaLearner:
        """Return a new model of the tasks, whose head adapts."""
        return MetaLearner(
            HeadAndShared(self.head, self.shared), HalfMSELoss(), method, adapt="head.*", backend="eager"
        )


@dataclass(frozen=True)
class Exact:
    """Φ of each task, the quadratic ½⟨ψ, H_i ψ⟩ − ⟨r_i, ψ⟩ + const.

    Args:
        curvature: H_i, shape ``[tasks, Q, Q]``.
        slope: r_i, shape ``[tasks, Q]``.
        spectrum: eigenvalues of ∇²_φL_s, shape ``[tasks, P]``, ascending.
    """

    curvature: Tensor
    slope: Tensor
    spectrum: Tensor

    @classmethod
    def of(cls, tasks: TaskBatch, head: int) -> Exact:
        """Eliminate the heads: φ* = A⁻¹ Zᵀ(y − Uψ)/n leaves D = U − Z A⁻¹ ZᵀU/n of the inputs, and so of targets."""
        (z, u, y), (zq, uq, yq) = (
            (part.x[..., :head], part.x[..., head:], part.y) for part in (tasks.support, tasks.query)
        )
        n = z.shape[1]
        a = z.mT @ z / n
        left = uq - zq @ torch.linalg.solve(a, z.mT @ u / n)
        target = yq - zq @ torch.linalg.solve(a, z.mT @ y / n)
        slope = (left.mT @ target / n)[:, :, 0]
        return cls(left.mT @ left / n, slope, torch.linalg.eigvalsh(a))

    def gradient(self, psi: Tensor) -> Tensor:
        """Return ∇Φ at ψ ``[Q]``."""
        return self.curvature.mean(dim=0) @ psi - self.slope.mean(dim=0)

    @property
    def minimiser(self) -> Tensor:
        """Where Φ is least, ``[Q]``."""
        found: Tensor = torch.linalg.solve(self.curvature.mean(dim=0), self.slope.mean(dim=0))
        return found

    def largest(self) -> float:
        """Return ‖∇²Φ‖."""
        return float(torch.linalg.eigvalsh(self.curvature.mean(dim=0))[-1])

    def residual_of(self, step: float, batch: int) -> float:
        """Return E‖∇Φ‖² at which gradient descent on random tasks settles, to first order in 1 / batch.

        Near the minimiser it is a linear recursion with additive noise of covariance C / batch, C that of the tasks'
        gradients there: S = (I − ηH) S (I − ηH) + η² C / batch, in the eigenvectors of H (Mandt, Hoffman, Blei 2017).

        Args:
            step: η.
            batch: tasks a meta-step, drawn with replacement.
        """
        values, vectors = torch.linalg.eigh(self.curvature.mean(dim=0))
        each = (self.curvature @ self.minimiser - self.slope) @ vectors
        covariance = each.T @ each / len(each) / batch
        variance = step**2 * covariance.diagonal() / (1 - (1 - step * values) ** 2)
        return float((values**2 * variance).sum())
