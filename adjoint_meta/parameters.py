"""Parameter rows: the only place that knows names and shapes. Below it everything is a flat row a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from adjoint_meta.solvers import checks


class Layout:
    """The order of named tensors in one flat vector.

    Args:
        tensors: the named tensors, all of one floating dtype and one device.

    Raises:
        TypeError, ValueError: if dtypes or devices are mixed, or a tensor is not floating point.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.names = tuple(tensors)
        self.shapes = tuple(tensor.shape for tensor in tensors.values())
        self.sizes = tuple(tensor.numel() for tensor in tensors.values())
        self.size = sum(self.sizes)
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                raise TypeError(f"parameter {name!r} must be real floating point, got {tensor.dtype}")
        for what, kinds in (
            ("dtype", {tensor.dtype for tensor in tensors.values()}),
            ("device", {tensor.device for tensor in tensors.values()}),
        ):
            if len(kinds) > 1:
                raise ValueError(
                    f"all parameters must share one {what}, got {sorted(map(str, kinds))}; move the model with model.to"
                )

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the tensors as one detached vector ``[size]``."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.names])

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views ``[..., *shape]`` of a vector ``[size]`` or of rows ``[tasks, size]``."""
        parts = flat.split(self.sizes, dim=-1)
        lead = flat.shape[:-1]
        return {
            name: part.reshape(lead + shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }


_FROZEN = "no longer requires grad; build the MetaLearner after freezing it"
_THAWED = "requires grad since the MetaLearner was built; build that after requires_grad_()"


class ParameterRows:
    """How a model's parameters divide: θ adapts to each task, ψ is shared, frozen parameters are constants.

    Args:
        model: any module.
        adapt: glob patterns of the parameter names that adapt (``"head.*"``); ``None`` adapts all that require grad.

    Raises:
        ValueError: if a pattern matches nothing, or nothing is left to adapt.
    """

    def __init__(self, model: nn.Module, adapt: str | Sequence[str] | None = None) -> None:
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trainable:
            raise ValueError("the model has no parameters that require grad; set requires_grad_(True) on some of them")
        Layout(trainable)  # the whole model must share one dtype and one device, whatever adapts
        patterns = ["*"] if adapt is None else [adapt] if isinstance(adapt, str) else list(adapt)
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in trainable):
                raise ValueError(
                    f"adapt pattern {pattern!r} matches no trainable parameter; {checks.nearest(pattern, trainable)}"
                )
        adapted = {name: p for name, p in trainable.items() if any(fnmatchcase(name, pat) for pat in patterns)}
        if not adapted:
            raise ValueError("adapt=[] leaves nothing to adapt; name at least one parameter pattern, or pass None")
        shared = {name: p for name, p in trainable.items() if name not in adapted}
        self.theta = Layout(adapted)
        self.psi = Layout(shared)

    def read(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the model's current (θ ``[P]``, ψ ``[Q]``), detached."""
        parameters = dict(model.named_parameters())
        for layout in (self.theta, self.psi):
            for name, shape in zip(layout.names, layout.shapes, strict=True):
                if name not in parameters or parameters[name].shape != shape:
                    raise ValueError(
                        f"the model's parameter {name!r} of shape {list(shape)} is gone or has another shape; build "
                        "the MetaLearner after changing the model"
                    )
                if not parameters[name].requires_grad:
                    raise ValueError(f"the model's parameter {name!r} {_FROZEN}")
        known = {*self.theta.names, *self.psi.names}
        for name, parameter in parameters.items():
            if parameter.requires_grad and name not in known:
                raise ValueError(f"the model's parameter {name!r} {_THAWED}")
        theta = self.theta.flatten(parameters)
        return theta, self.psi.flatten(parameters) if self.psi.names else theta.new_empty(0)

    def named(self, theta: Tensor, psi: Tensor) -> dict[str, Tensor]:
        """Return vectors ``[P]`` and ``[Q]`` as one dictionary in the order θ, ψ."""
        return {**self.theta.unflatten(theta), **self.psi.unflatten(psi)}
