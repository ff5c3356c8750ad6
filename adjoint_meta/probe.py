"""One task tried before many: what the model and the loss make of the shapes and dtypes they are given."""

from __future__ import annotations

import warnings
from functools import partial

import torch
from torch import Tensor, nn

from .batched_model import Loss, twice_differentiable

_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
_ELEMENTWISE_FUNCTIONS = (
    nn.functional.mse_loss,
    nn.functional.l1_loss,
    nn.functional.smooth_l1_loss,
    nn.functional.huber_loss,
)


def check_task(model: nn.Module, loss: Loss, what: str, x: Tensor, y: Tensor) -> None:
    """Evaluate one task, and refuse what would fail later, or be silently wrong.

    Args:
        what: which points, for the message.
        x, y: the points of one task, shapes ``[points, ...]``.

    Raises:
        TypeError, ValueError: if model or loss cannot take the points, a parameter does not influence the
            predictions, a buffer changes, or a regression loss would broadcast its targets.
    """
    parameters: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: (buffer, buffer._version, buffer.clone()) for name, buffer in model.named_buffers()}
    with twice_differentiable():
        try:
            prediction = model(x)
        except torch.OutOfMemoryError:  # smaller chunks may do
            raise
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise ValueError(
                f"the model cannot take {what}.x of one task, {list(x.shape)} {x.dtype}: {_first_line(error)}; check "
                "its shape [points, ...], dtype and range"
            ) from error
        if not isinstance(prediction, Tensor):
            raise TypeError(f"the model must return one tensor of predictions, got {type(prediction).__name__}")
        _check_buffers(model, before)
        _check_influence(parameters, prediction)
    check_loss(loss, what, prediction[None], y[None])
    with torch.no_grad():
        try:
            loss(prediction.detach(), y)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise ValueError(
                f"the loss cannot take predictions {list(prediction.shape)} {prediction.dtype} and {what}.y "
                f"{list(y.shape)} {y.dtype}: {_first_line(error)}; check the targets' shape, dtype and range"
            ) from error


def _check_buffers(model: nn.Module, before: dict[str, tuple[Tensor, int, Tensor]]) -> None:
    now = dict(model.named_buffers())
    for name, (buffer, version, value) in before.items():
        if now.get(name) is not buffer or buffer._version != version:
            with torch.no_grad():
                buffer.copy_(value)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, buffer)
            raise ValueError(
                f"the model changes its buffer {name!r} whenever it is evaluated, so the flow would depend on how "
                "often that is; make forward leave its buffers alone"
            )


def _check_influence(parameters: dict[str, Tensor], prediction: Tensor) -> None:
    found: tuple[Tensor | None, ...] = (None,) * len(parameters)
    if prediction.requires_grad:
        found = torch.autograd.grad(prediction.sum(), list(parameters.values()), allow_unused=True)
    if all(gradient is None for gradient in found):
        raise ValueError(
            "the loss does not depend on the adapted parameters, so its gradient would be silently zero; check that "
            "the model uses them and that nothing detaches them"
        )
    for name, gradient in zip(parameters, found, strict=True):
        if gradient is None:
            raise ValueError(
                f"parameter {name!r} does not influence the predictions, so its meta-gradient would be silently zero; "
                "freeze it with requires_grad_(False), or remove what detaches it"
            )


def check_loss(loss: Loss, what: str, prediction: Tensor, y: Tensor) -> None:
    """Refuse targets that a regression loss would broadcast or round in silence.

    Raises:
        TypeError, ValueError: with what was got, what was expected and what to do.
    """
    plain = loss.func if isinstance(loss, partial) else loss
    if not (isinstance(plain, _ELEMENTWISE) or plain in _ELEMENTWISE_FUNCTIONS):
        _suspect(what, prediction, y)
        return
    name = getattr(plain, "__name__", type(plain).__name__)
    if not y.is_floating_point():
        raise TypeError(
            f"{what}.y is {y.dtype}, but {name} is a regression loss; convert it with y.to({prediction.dtype})"
        )
    if prediction.shape != y.shape:
        raise ValueError(
            f"the model predicts {list(prediction.shape)} for {what}.x, but {what}.y is {list(y.shape)}; {name} would "
            "broadcast them; give y the prediction's shape"
        )


def _suspect(what: str, prediction: Tensor, y: Tensor) -> None:
    """Warn of targets that a loss of one's own may broadcast: whether it does cannot be seen from outside."""
    alike = [size for size in prediction.shape if size > 1] == [size for size in y.shape if size > 1]
    if y.is_floating_point() and prediction.shape != y.shape and alike:
        warnings.warn(
            f"the model predicts {list(prediction.shape[1:])} for each task, but {what}.y is {list(y.shape[1:])}; a "
            "loss that subtracts them broadcasts; give y the prediction's shape",
            UserWarning,
            stacklevel=2,
        )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
