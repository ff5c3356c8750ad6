"""`MetaLearner`: any module, a loss and a method as one differentiable function of task batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adjoint_meta.solvers import SolverError, checks

from .batched_model import (
    BatchedModel,
    Loss,
    check_batch,
    check_module,
    check_tensor,
    math_attention,
    twice_differentiable,
)
from .blame import blaming_data
from .curvature import Curvature
from .engine import Engine
from .evaluations import Evaluations
from .linearisation import MODES
from .meta_gradients.base import MetaGradient, Method, RowGradients
from .meta_gradients.whole import Given, whole_meta_gradient
from .mixed_precision import check_autocast
from .parameters import ParameterRows
from .probe import check_task
from .problem import Problem
from .tasks import Batch, TaskBatch


class MetaLearner(nn.Module):
    """A model that is meta-learned: ``learner(tasks)`` is the mean query loss after adaptation.

    ``loss.backward()`` fills ``.grad`` of the model's parameters by the method's pullback, so any torch optimiser
    works. BatchNorm, when it keeps no running statistics, uses those of the points at hand (transductive).

    Args:
        model: any module; its parameters are θ (and ψ, where ``adapt`` leaves some out).
        loss: loss(prediction, target) → scalar, for the points of one task.
        method: how tasks adapt and how the meta-gradient is taken.
        adapt: patterns of the parameter names that adapt to a task, such as ``"head.*"``; the others are shared and
            get their gradient too. ``None`` adapts all.
        backend: ``"eager"``; ``"compile"``, which traces and compiles gradients, products and whole solver steps once
            for their shapes; ``"cudagraph"``, on a CUDA device; ``"auto"``, see `Engine`.
        mode: ``"reverse_over_reverse"`` or ``"forward_over_reverse"``, how HVPs are taken.
        remat: patterns of modules whose activations are computed again instead of kept, such as ``"blocks.*"``.
        chunk_size: at most this many tasks at a time, to bound memory.
        point_chunk: at most this many points of a task at a time, where not even one task fits; for models that treat
            points one by one and losses that are a mean over points, which is tried.
        autocast: ``torch.bfloat16`` or ``torch.float16`` evaluates a float32 model in that precision; rows, losses,
            gradients and all that solvers do with them stay float32.

    Raises:
        TypeError, ValueError: for a model, pattern or option that cannot work, with the way out.
    """

    steepest: Tensor
    warm: Tensor

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        method: Method,
        *,
        adapt: str | Sequence[str] | None = None,
        backend: str = "auto",
        mode: str = MODES[0],
        remat: str | Sequence[str] = (),
        chunk_size: int | None = None,
        point_chunk: int | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not callable(loss):
            raise TypeError(f"loss must be callable as loss(prediction, target), got {type(loss).__name__}")
        if not isinstance(method, Method):
            raise TypeError(f"method must be one such as AdjointMAML(horizon=2.0), got {method!r}")
        if remat and backend not in ("auto", "eager"):
            raise ValueError(f"remat works on the eager backend only, got backend={backend!r}; leave one of them out")
        self.engine = Engine("eager" if remat else backend, Evaluations())
        check_module(model)
        self.model = model
        self.method = method
        self._rows = ParameterRows(model, adapt)
        method.check_shared(bool(self._rows.psi.names))
        like = next(p for p in model.parameters() if p.requires_grad)
        check_autocast(autocast, like)
        self._batched = BatchedModel(model, loss, self._rows, remat, autocast, self.engine.choose)
        self._curvature = Curvature(self._batched, mode, chunk_size, self.engine, point_chunk)
        self._seen: set[object] = set()
        if method.watches:
            # Where the losses curved most so far, [P]; part of the state, so that a resumed run takes the same steps.
            self.register_buffer("steepest", torch.zeros(self._rows.theta.size).to(like))
        if method.returning:
            # Where the tasks ended at the last meta-step; see `Problem`.
            self.register_buffer("warm", torch.zeros(2, method.returning, self._rows.theta.size).to(like))
        # On a log scale the hyperparameters stay positive under any optimiser.
        self.log_hyper = nn.ParameterDict(
            {name: nn.Parameter(method.initial(name, self._rows.theta.size).to(like).log()) for name in method.learned}
        )

    @property
    def hyper(self) -> dict[str, Tensor]:
        """The learnable hyperparameters in natural units, such as ``{"horizon": T}``."""
        return {name: log.detach().exp() for name, log in self.log_hyper.items()}

    @property
    def loss(self) -> Loss:
        """The loss of one task."""
        return self._batched.loss

    @property
    def adapted_names(self) -> tuple[str, ...]:
        """Names of the parameters that adapt, in the order of the rows."""
        return self._rows.theta.names

    @property
    def evaluations(self) -> Evaluations:
        """Counters of all batched evaluations so far."""
        return self._curvature.evaluations

    def forward(self, tasks: TaskBatch) -> Tensor:
        """Return the mean query loss after adaptation, a scalar; without grad mode it is only evaluated.

        Raises:
            TypeError, ValueError: if the tasks do not fit the model.
            SolverError: if the inner solve failed.
        """
        if not torch.is_grad_enabled():
            return self.query_losses(tasks).mean()
        parameters = dict(self.model.named_parameters())
        names = (*self._rows.theta.names, *self._rows.psi.names)
        loss: Tensor = _MetaLoss.apply(self, tasks, *(parameters[name] for name in names), *self.log_hyper.values())
        return loss

    def meta_gradient(self, tasks: TaskBatch) -> MetaGradient:
        """Return losses, gradients and statistics, without autograd.

        Raises:
            TypeError, ValueError: if the tasks do not fit the model.
            SolverError: if the inner solve failed.
        """
        found = self._meta_gradient(tasks)
        return MetaGradient(found.losses, self._rows.named(found.theta, found.psi), found.stats, dict(found.hyper))

    def _meta_gradient(self, tasks: TaskBatch) -> RowGradients:
        support, query = _parts(tasks)

        def attempt() -> RowGradients:
            given = self._ready(support, query)
            if self.method.returning and bool(self.warm.any()):
                given = given._replace(warm=self.warm)
            return whole_meta_gradient(self.method, self._curvature, given, self.hyper)

        with twice_differentiable(), blaming_data(support, query):
            found = self._curvature.fit(attempt, support, query)
        self._remember(found.stats.pop("vector", None))
        if self.method.returning:
            self.warm.copy_(found.stats.pop("warm"))
        return found

    def _remember(self, vectors: Tensor | None) -> None:
        """Keep the mean direction in which the tasks curved most, ``[tasks, P]``, for the next batch to start with.

        v and −v are the same direction. The sign does not depend on the other tasks, so that means over parts of a
        batch, weighted by their number of tasks, make the mean over the batch.
        """
        if vectors is None or not self.method.watches:
            return
        largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
        along = largest if not bool(self.steepest.any()) else vectors @ self.steepest[:, None]
        self.steepest.copy_((torch.sign(along) * vectors).mean(dim=0))

    def query_losses(self, tasks: TaskBatch) -> Tensor:
        """Return the query loss of each task after adaptation, shape ``[tasks]``, without gradients.

        Raises:
            TypeError, ValueError: if the tasks do not fit the model.
            SolverError: if the inner solve failed.
        """
        support, query = _parts(tasks)

        def attempt() -> Tensor:
            problem, theta = self._problem(support, query)
            phi = self.method.adapt(problem, theta.repeat(len(support), 1), self.hyper)
            return problem.query_losses(phi)

        with twice_differentiable(), blaming_data(support, query):
            losses = self._curvature.fit(attempt, support, query)
            if not bool(torch.isfinite(losses).all()):
                raise SolverError(
                    "the query loss is not finite although the inner solve was: the adapted parameters are huge. Take "
                    "more inner steps, or a shorter horizon or smaller learning rate"
                )
            return losses

    def adapt(self, support: Batch) -> Tensor:
        """Return the adapted parameters of each task, shape ``[tasks, P]``.

        Raises:
            TypeError, ValueError: if the points do not fit the model.
            SolverError: if the inner solve failed.
        """

        def attempt() -> Tensor:
            problem, theta = self._problem(support)
            return self.method.adapt(problem, theta.repeat(len(support), 1), self.hyper)

        with twice_differentiable(), blaming_data(support):
            return self._curvature.fit(attempt, support)

    def initial(self, tasks: int) -> Tensor:
        """Return θ as rows, shape ``[tasks, P]``: the parameters before adaptation."""
        return self._rows.read(self.model)[0].repeat(tasks, 1)

    def predict(self, phi: Tensor, x: Tensor) -> Tensor:
        """Return predictions ``[tasks, points, ...]`` of rows φ ``[tasks, P]`` for inputs ``[tasks, points, ...]``."""
        check_module(self.model)
        theta, psi = self._rows.read(self.model)
        checks.rows("phi", phi)
        if phi.shape[1] != theta.numel():
            raise ValueError(f"phi must have {theta.numel()} columns, got {phi.shape[1]}")
        if len(x) != len(phi):
            raise ValueError(f"x must hold one row of points a task, {len(phi)}, got {len(x)}")
        check_tensor("phi", phi, theta)
        check_tensor("x", x, theta)
        check_autocast(self._batched.autocast, theta)
        with math_attention():
            return self._curvature.fit(lambda: self._curvature.predict(phi, psi, x), x)

    def support_problem(self, support: Batch) -> Problem:
        """Return the support losses of a task batch as functions of φ, for an inner solve of one's own."""
        with twice_differentiable():
            return self._curvature.fit(lambda: self._problem(support)[0], support)

    def _problem(self, support: Batch, query: Batch | None = None) -> tuple[Problem, Tensor]:
        theta, psi, support, query, steepest, _ = self._ready(support, query)
        return Problem.of(self._curvature, psi, support, query, steepest), theta

    def _ready(self, support: Batch, query: Batch | None = None) -> Given:
        """Return parameters and points, once all is known to fit together."""
        check_module(self.model)
        if not isinstance(support, Batch):
            raise TypeError(f"the support must be a Batch(x, y), got {type(support).__name__}")
        support, query = support.ordinary(), None if query is None else query.ordinary()
        theta, psi = self._rows.read(self.model)
        check_autocast(self._batched.autocast, theta)
        self._curvature.programs.refresh()
        for what, batch in (("support", support), ("query", query)):
            if batch is not None:
                check_batch(what, batch, theta)
        steepest = self.steepest if self.method.watches and bool(self.steepest.any()) else None
        self._probe(support, query)
        for batch in (support, query):
            if batch is not None:
                self._curvature.check_points(theta, psi, batch.x, batch.y)
        return Given(theta, psi, support, query, steepest)

    def _probe(self, support: Batch, query: Batch | None) -> None:
        """Try one task, once for each new combination of shapes and dtypes; see `check_task` and `find_prefix`."""
        for what, batch in (("support", support), ("query", query)):
            if batch is None:
                continue
            key = (batch.x.shape[1:], batch.y.shape[1:], batch.x.dtype, batch.y.dtype)
            if key not in self._seen:
                few = slice(self._curvature.point_chunk)
                check_task(self.model, self.loss, what, batch.x[0, few], batch.y[0, few])
                self._seen.add(key)
            self._curvature.look_for_prefix(batch)


class _MetaLoss(torch.autograd.Function):
    """The mean query loss; its gradient is computed along with it, by the method's pullback."""

    @staticmethod
    def forward(ctx: Any, learner: MetaLearner, tasks: TaskBatch, *parameters: Tensor) -> Tensor:
        found = learner._meta_gradient(tasks)
        named = learner._rows.named(found.theta, found.psi)
        # dJ/d log τ = τ dJ/dτ
        hyper = [found.hyper[name] * value for name, value in learner.hyper.items()]
        ctx.gradients = (*named.values(), *hyper)
        return found.losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(upstream * gradient for gradient in ctx.gradients))


def _parts(tasks: TaskBatch) -> tuple[Batch, Batch]:
    if not isinstance(tasks, TaskBatch):
        raise TypeError(f"expected a TaskBatch(support=Batch(x, y), query=Batch(x, y)), got {type(tasks).__name__}")
    return tasks.support, tasks.query
