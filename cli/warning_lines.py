"""Warnings on the command line: one line each, and one for all that differ in their numbers alone."""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import TextIO

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?|\b(?:inf|nan)\b")


class WarningLines:
    """Shows the first warning of a kind, and at the end the last one and how many there were."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._last: dict[str, str] = {}

    def show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Show a warning without the source line, which a user of the command cannot change."""
        del category, filename, lineno, line
        text = " ".join(str(message).split())
        kind = _NUMBER.sub("…", text)
        self._seen[kind] += 1
        self._last[kind] = text
        if self._seen[kind] == 1:
            print(f"warning: {text}", file=file or sys.stderr)

    def finish(self) -> None:
        """Show what was not shown."""
        for kind, count in self._seen.items():
            if count > 1:
                times = "once more" if count == 2 else f"{count - 1} more times, at last"
                print(f"warning: {times}: {self._last[kind].split('. ')[0]}", file=sys.stderr)
