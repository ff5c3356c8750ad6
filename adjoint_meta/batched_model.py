"""A module evaluated for a whole batch of tasks at once: one call, weights of its own for every task."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from .closed_forms import ClosedForms
from .convolution import Choose, the_first
from .mixed_precision import casting
from .parameters import ParameterRows
from .prefix import Prefix, find_prefix
from .rematerialisation import Rematerialisation
from .tasks import Batch

# loss(prediction, target) → scalar, for the points of one task.
Loss = Callable[[Tensor, Tensor], Tensor]
Weights = dict[str, Tensor]


class BatchedModel:
    """A model and a loss as functions of rows: φ ``[tasks, P]`` adapted, ψ ``[Q]`` shared.

    Args:
        model: any module that `check_module` accepts.
        loss: loss(prediction, target) → scalar.
        rows: how the model's parameters divide.
        remat: patterns of the modules whose activations are not kept; see `Rematerialisation`.
        autocast: evaluate the model in this half precision; predictions, losses and gradients stay in the rows' dtype.
        choose: of several ways to convolve, see `ClosedForms`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        rows: ParameterRows,
        remat: str | Sequence[str] = (),
        autocast: torch.dtype | None = None,
        choose: Choose = the_first,
    ) -> None:
        self.model = model
        self.loss = loss
        self.rows = rows
        self.autocast = autocast
        self.choose = choose
        self.remat = Rematerialisation(model, remat, self._evaluating)
        self._prefixes: dict[Hashable, Prefix | None] = {}
        self._state = ""
        self._modes: tuple[bool, ...] = ()
        self._plain: dict[str, bool | int | float | str] = {}
        self.changing: set[str] = set()
        self._held: list[Tensor] = []
        self._replaced = 0
        self._stand_ins: Weights = {}

    @property
    def state(self) -> str:
        """What a trace holds fixed, at the last `refresh`: plain attributes of modules, such as their mode."""
        return self._state

    def refresh(self) -> None:
        """Look at model and loss again: their modules' attributes that are plain values, and the loss's tensors."""
        losses = list(self.loss.modules()) if isinstance(self.loss, nn.Module) else []
        held = [value for module in losses for value in _tensors(module)]
        if len(held) != len(self._held) or any(a is not b for a, b in zip(held, self._held, strict=True)):
            self._replaced += bool(self._held)
            self._held = held
        self._modes = tuple(module.training for module in self.model.modules())
        named = [*self.model.named_modules(prefix="model"), *((f"loss.{i}", each) for i, each in enumerate(losses))]
        plain = {f"{name}.{k}": v for name, module in named for k, v in _plain(module).items()}
        self.changing = {name for name, value in plain.items() if self._plain.get(name, value) != value}
        self._plain = plain
        self._state = hashlib.sha1(repr((plain, self._replaced)).encode()).hexdigest()[:12]

    def look_for_prefix(self, x: Tensor) -> None:
        """Find out, once, what does not depend on φ for tasks of this shape, ``[tasks, points, ...]``."""
        if self._like(x) not in self._prefixes:
            with twice_differentiable():
                self._prefixes[self._like(x)] = find_prefix(self.model, self.rows, x[0], self.remat)

    def prefix(self, x: Tensor) -> Prefix | None:
        """Return what does not depend on φ for inputs of this shape, where that has been looked for."""
        return self._prefixes.get(self._like(x))

    def _like(self, x: Tensor) -> Hashable:
        return x.shape[1:], x.dtype, self._modes

    @contextmanager
    def _evaluating(self, like: Tensor) -> Iterator[None]:
        """Inside, the model's operations are those that a learner wants of it, wherever they are made again."""
        with casting(self.autocast, like), ClosedForms(self.choose):
            yield

    def constants(self) -> Weights:
        """Return what the model reads besides φ and ψ, by name: frozen parameters and buffers."""
        named = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        moving = {*self.rows.theta.names, *self.rows.psi.names}
        return {name: tensor for name, tensor in named.items() if name not in moving}

    def predict(self, phi: Tensor, psi: Tensor, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return predictions ``[tasks, points, ...]`` for inputs ``[tasks, points, ...]``."""
        predict, features = self._predictor(psi, x, kept)
        prefix = self.prefix(x) if features else None
        with _without_randomness(), self.remat.during(x, prefix.names if prefix else ()):
            return vmap(predict)(self.rows.theta.unflatten(phi), x, *features)

    @contextmanager
    def reading(self, constants: Sequence[Tensor]) -> Iterator[None]:
        """Inside, these tensors stand in for the model's constants, in their order: a trace must see all it reads."""
        self._stand_ins = dict(zip(self.constants(), constants, strict=True))
        try:
            yield
        finally:
            self._stand_ins = {}

    def losses(self, phi: Tensor, psi: Tensor, batch: Batch) -> Tensor:
        """Return one loss a task, ``[tasks]``."""
        predict, features = self._predictor(psi, batch.x, batch.kept)

        def one(adapted: Weights, x: Tensor, y: Tensor, *features: Tensor) -> Tensor:
            return self.loss(predict(adapted, x, *features), y)

        prefix = self.prefix(batch.x) if features else None
        with _without_randomness(), self.remat.during(batch.x, prefix.names if prefix else ()):
            return _one_a_task(vmap(one)(self.rows.theta.unflatten(phi), batch.x, batch.y, *features))

    def of(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the losses on a batch as a function of (φ, ψ)."""
        return lambda phi, psi: self.losses(phi, psi, batch)

    def prediction_losses(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Return one loss a task ``[tasks]`` from predictions and targets ``[tasks, points, ...]``."""
        return _one_a_task(vmap(self.loss)(prediction, y))

    def _predictor(self, psi: Tensor, x: Tensor, kept: Tensor | None) -> tuple[Callable[..., Tensor], list[Tensor]]:
        """Return the model of one task as a function of its adapted weights, its points and its features, and these.

        Without anything kept there are no features.
        """
        prefix = None if kept is None else self.prefix(x)
        if prefix is None or kept is None:
            shared, features = self.rows.psi.unflatten(psi), []
        else:
            shared, rows = prefix.split(psi, kept)
            features = [rows]
        shared = {**shared, **self._stand_ins}

        def predict(adapted: Weights, x: Tensor, *features: Tensor) -> Tensor:
            with self._evaluating(psi), prefix.given(*features) if prefix else nullcontext():
                prediction: Tensor = functional_call(self.model, {**adapted, **shared}, (x,))
            return prediction if self.autocast is None else prediction.to(psi.dtype)

        return predict, features


def _plain(module: nn.Module) -> dict[str, bool | int | float | str]:
    return {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str) and not k.startswith("_")}


def _tensors(module: nn.Module) -> list[Tensor]:
    own = [value for value in vars(module).values() if isinstance(value, Tensor)]
    return [*own, *module.parameters(recurse=False), *module.buffers(recurse=False)]


def _one_a_task(losses: Tensor) -> Tensor:
    if losses.ndim != 1:
        raise ValueError(
            f"loss must return a scalar for each task, got shape {list(losses.shape[1:])}; "
            "use reduction='mean' or 'sum'"
        )
    return losses


def check_module(model: nn.Module) -> None:
    """Refuse modules that would change state or draw random numbers inside the flow.

    Raises:
        ValueError: naming the module and the way out.
    """
    for name, module in model.named_modules():
        if not module.training:
            continue
        what = f"{type(module).__name__} {name!r}"
        if getattr(module, "track_running_stats", False) and getattr(module, "running_mean", None) is not None:
            raise ValueError(
                f"{what} would update its running statistics whenever the flow is evaluated; build it with "
                "track_running_stats=False (batch statistics), use GroupNorm, or call .eval() on it"
            )
        if type(module).__name__ in ("_SpectralNorm", "SpectralNorm"):
            raise ValueError(f"{what} would change its vectors whenever the flow is evaluated; call .eval() on it")
        if isinstance(module, nn.RReLU):
            raise ValueError(f"{what} would draw random slopes {_NO_GRADIENT}; call .eval() on it")
        rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0)
        if isinstance(rate, int | float) and rate > 0:
            raise ValueError(f"{what} would draw a new dropout mask {_NO_GRADIENT}; set p=0 or call .eval() on it")


_NO_GRADIENT = "at every evaluation of the flow, so there would be no gradient to take"


@contextmanager
def _without_randomness() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "randomness" in str(error):
            raise ValueError(
                f"the model or the loss draws random numbers {_NO_GRADIENT}; switch that off, or call .eval()"
            ) from error
        raise


def check_batch(what: str, batch: Batch, like: Tensor) -> None:
    """Refuse a batch that does not fit the parameters' device or dtype, or that has a mask.

    Raises:
        TypeError, ValueError: with what was got, what was expected and what to do.
    """
    if batch.mask is not None:
        raise ValueError(f"{what} has a mask, which losses cannot honour; give every task the same number of points")
    check_tensor(f"{what}.x", batch.x, like)
    check_tensor(f"{what}.y", batch.y, like)


def check_tensor(what: str, value: Tensor, like: Tensor) -> None:
    """Refuse a tensor that does not fit the parameters' device or, if it is floating point, their dtype.

    Raises:
        TypeError, ValueError: with what was got, what was expected and what to do.
    """
    if value.device != like.device:
        raise ValueError(f"{what} is on {value.device} but the model is on {like.device}; use tasks.to(device)")
    if value.is_floating_point() and value.dtype != like.dtype:
        raise TypeError(f"{what} is {value.dtype} but the model is {like.dtype}; use tasks.to(dtype={like.dtype})")


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Inside, gradients can be taken and attention runs on the math kernel: the fused ones have no double backward.

    Gradients are part of adapting, so they are taken under ``torch.no_grad`` and ``torch.inference_mode`` too.
    """
    with torch.inference_mode(False), torch.enable_grad(), math_attention():
        yield


def math_attention() -> AbstractContextManager[None]:
    """Inside, attention runs on the math kernel; the fused ones have no rule for a batch of weights either."""
    return sdpa_kernel(SDPBackend.MATH)
