"""The arguments of `odeint` and `odeint_adjoint` at the door."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import checks, handover
from .pytree import Layout
from .schemes import ADAPTIVE, ADAPTIVE_OPTIONS, FIXED, FIXED_OPTIONS

METHODS = (*ADAPTIVE, *FIXED, *handover.METHODS)


def mapping(what: str, value: Any) -> dict[str, Any]:
    """Return options as a dict; ``None`` means none."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{what} must be a dict of names and values, got {value!r}")
    return dict(value or {})


def parameters(value: Any) -> tuple[Tensor, ...] | None:
    """Return ``adjoint_params`` as a tuple; ``None`` means all that can be found."""
    if value is None:
        return None
    # The rows of a tensor would be other tensors than the one that wants a gradient.
    if isinstance(value, Tensor) or not isinstance(value, Iterable):
        kind = type(value).__name__
        raise TypeError(f"adjoint_params must be a tuple or another iterable of tensors, got one {kind}")
    found = tuple(value)
    for parameter in found:
        if not isinstance(parameter, Tensor):
            raise TypeError(f"adjoint_params must be tensors, got {type(parameter).__name__}")
    return found


def check_options(what: str, method: str, options: dict[str, Any], more: tuple[str, ...] = ()) -> None:
    """Refuse keys that the method does not know; torchdiffeq itself looks at those of the methods left to it.

    Args:
        what: what an option is called in messages.
        more: names that are known besides.
    """
    dtype = options.get("dtype", torch.float64)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"{what} 'dtype' must be a floating-point dtype such as torch.float64, got {dtype!r}")
    if method in handover.METHODS and method != "dopri8":
        return
    own, others = (FIXED_OPTIONS, ADAPTIVE_OPTIONS) if method in FIXED else (ADAPTIVE_OPTIONS, FIXED_OPTIONS)
    own = (*own, *more)
    kind = "with a controlled error" if method in FIXED else "with fixed steps"
    for key in options:
        if key in own:
            continue
        if key in others:
            raise ValueError(f"{what} {key!r} belongs to methods {kind}; {method} takes {', '.join(own)}")
        close = difflib.get_close_matches(str(key), (*own, *others), n=1, cutoff=0.5)
        hint = checks.nearest(str(key), own)
        if close and close[0] not in own:
            hint = f"did you mean {close[0]!r}? That belongs to methods {kind}"
        raise ValueError(f"unknown {what} {key!r} for {method}; {hint}")


def check_tolerance(name: str, value: Any) -> None:
    """Refuse a number that is no tolerance; tensors are looked at where they are used."""
    if isinstance(value, (int, float)):
        checks.at_least(name, value, 0.0)


def check_backward(method: str, backward: dict[str, Any]) -> None:
    """Refuse what torchdiffeq's adjoint would not understand, needed or not."""
    for name in ("adjoint_rtol", "adjoint_atol"):
        check_tolerance(name, backward[name])
    own = checks.one_of("adjoint_method", backward["adjoint_method"] or method, METHODS)
    check_options("adjoint option", own, backward["adjoint_options"] or {}, ("snapshots",))


def times(t: Any, layout: Layout) -> Tensor:
    """Return the output times in the precision and on the device of the state."""
    if not isinstance(t, Tensor):
        raise TypeError(f"t must be a tensor of times, got {type(t).__name__}")
    if not t.is_floating_point():
        raise TypeError(f"t must be floating point, got {t.dtype}; convert it with .to(torch.float32)")
    if t.ndim != 1 or len(t) == 0:
        raise ValueError(f"t must have shape [count] with at least one time, got {list(t.shape)}")
    if t.device != layout.device:
        warnings.warn(f"t is on {t.device} and is moved to {layout.device}, where y0 is", stacklevel=5)
    # Copied, as y0 is: whoever writes to it afterwards writes to their own.
    found = t.to(device=layout.device, dtype=layout.dtype, copy=True)
    values = found.detach()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("t must be finite, got NaN or infinite times")
    steps = values.diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        at = int(((steps * steps[0] <= 0) | (steps == 0)).nonzero()[0])
        raise ValueError(
            f"t must be strictly increasing or decreasing in {layout.dtype}, the precision of y0, got "
            f"t[{at}] = {values[at].item():.9g} and t[{at + 1}] = {values[at + 1].item():.9g}"
        )
    return found
