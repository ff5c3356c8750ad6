"""Ctrl-C as a wish: work stops where it can go on later."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signal(say: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a wish to stop, which the yielded function tells; a second stops at once.

    Args:
        say: says so, when the wish comes.
    """
    wishes: list[int] = []

    def handle(number: int, frame: object) -> None:
        wishes.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        say()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(wishes)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
