"""Checks at the door: each says what it got, what it expected and what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real

from torch import Tensor


def nearest(name: str, options: Iterable[str]) -> str:
    """Return "did you mean …?" for the closest options, or the list of all of them when none is close."""
    options = list(options)
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(option) for option in close)}?"
    return f"expected one of {', '.join(sorted(options))}"


def one_of(what: str, name: str, options: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``options``.

    Raises:
        ValueError: if it is not; the message names the nearest options.
    """
    options = list(options)
    if name not in options:
        raise ValueError(f"unknown {what} {name!r}; {nearest(str(name), options)}")
    return name


def positive(what: str, value: object) -> None:
    """Refuse a number that is not finite and above zero."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} must be a number, got {value!r}")
    if not (math.isfinite(value) and float(value) > 0):
        raise ValueError(f"{what} must be positive and finite, got {value}")


def at_least(what: str, value: object, bound: float) -> None:
    """Refuse a number that is not finite or lies below ``bound``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} must be a number, got {value!r}")
    if not (math.isfinite(value) and float(value) >= bound):
        raise ValueError(f"{what} must be finite and at least {bound}, got {value}")


def count(what: str, value: object, least: int = 1) -> None:
    """Refuse anything but a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{what} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, got {value}")


def rows(what: str, value: Tensor) -> None:
    """Refuse anything but a floating-point tensor of shape ``[rows, P]`` with at least one row."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} must be a tensor of shape [rows, P], got {type(value).__name__}")
    if value.ndim != 2 or value.shape[0] == 0:
        raise ValueError(f"{what} must have shape [rows, P] with at least one row, got {list(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{what} must be floating point, got {value.dtype}; convert it with .to(torch.float32)")


def like(what: str, value: Tensor, reference: Tensor) -> None:
    """Refuse a tensor whose shape, dtype or device differs from the reference's."""
    if value.shape != reference.shape:
        raise ValueError(f"{what} must have shape {list(reference.shape)}, got {list(value.shape)}")
    if value.dtype != reference.dtype:
        raise TypeError(f"{what} must be {reference.dtype}, got {value.dtype}")
    if value.device != reference.device:
        raise ValueError(f"{what} must be on {reference.device}, got {value.device}")
