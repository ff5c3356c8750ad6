"""What these solvers leave to torchdiffeq, and how it is asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .captures import reachable
from .pytree import Layout
from .solution import SolverError

METHODS = ("dopri8", "explicit_adams", "implicit_adams", "fixed_adams", "scipy_solver")

# Options that only torchdiffeq knows, with the values that change nothing.
_IDLE = {"min_step": 0, "max_step": math.inf, "step_t": None, "jump_t": None, "perturb": False}
_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


def reason(func: Any, method: str, options: dict[str, Any], event_fn: Any, layout: Layout) -> str | None:
    """Return what of a call only torchdiffeq has, or ``None``."""
    if event_fn is not None:
        return "event_fn"
    if method in METHODS:
        return f"method={method!r}"
    for callback in _CALLBACKS:
        if hasattr(func, callback):
            return f"func.{callback}"
    for option, idle in _IDLE.items():
        given = options.get(option, idle)
        if given is not idle and (isinstance(given, Tensor) or given != idle):
            return f"the option {option!r}"
    # torchdiffeq takes the higher of the two precisions.
    dtype = torch.promote_types(options.get("dtype", layout.dtype), layout.dtype)
    return None if dtype == layout.dtype else f"time in {dtype} for a state in {layout.dtype}"


def transformed() -> bool:
    """Whether torch.func transforms or forward-mode differentiation watch what is computed."""
    return bool(torch._C._are_functorch_transforms_active()) or torch.autograd.forward_ad._current_level >= 0


def draws(action: Callable[[], object], device: torch.device) -> bool:
    """Whether an action draws from the global generators of random numbers, which are put back where they were."""
    before = torch.get_rng_state()
    before_there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    action()
    drew = not torch.equal(torch.get_rng_state(), before)
    if drew:
        torch.set_rng_state(before)
    if before_there is not None and not torch.equal(torch.cuda.get_rng_state(device), before_there):
        torch.cuda.set_rng_state(before_there, device)
        return True
    return drew


def solve_there(
    name: str,
    what: str,
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t: Tensor,
    *,
    batched: bool,
    method: str,
    options: dict[str, Any],
    backward: dict[str, Any],
    **others: Any,
) -> Any:
    """Call torchdiffeq's function of this name.

    Args:
        what: the reason, for messages.
        backward: the arguments of its adjoint, if it is that which is called; ``adjoint_params`` are found where it
            would not find any.

    Raises:
        ValueError: if torchdiffeq does not know the method or the form of y0 either.
        SolverError: where it fails with an assertion.
    """
    plain = isinstance(y0, Tensor) or (isinstance(y0, tuple) and all(isinstance(part, Tensor) for part in y0))
    if batched or not plain or method == "tsit5":
        raise ValueError(
            f"{what} is left to torchdiffeq, which knows no batched=True, no tsit5 and only tensors and tuples of "
            f"tensors as y0; got batched={batched}, method={method!r} and y0 of type {type(y0).__name__}"
        )
    import torchdiffeq

    if backward:
        found, adjoint_options = backward["adjoint_params"], backward["adjoint_options"]
        if found is None and not isinstance(func, torch.nn.Module):
            found = tuple(reachable(func))
        if adjoint_options is not None:
            adjoint_options = {key: value for key, value in adjoint_options.items() if key != "snapshots"}
        backward = {**backward, "adjoint_params": found, "adjoint_options": adjoint_options}
    try:
        solve = getattr(torchdiffeq, name)
        return solve(func, y0, t, method=method, options=options or None, **others, **backward)
    except AssertionError as error:
        raise SolverError(f"torchdiffeq, to which {what} is left, failed: {error}") from error
