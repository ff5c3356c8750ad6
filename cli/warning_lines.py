"""Warnings on the command line: one line each, and one for all that differ in their numbers alone."""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import TextIO

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")


class WarningLines:
    """Shows the first warning of a kind, and says at the end how often others like it came."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

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
        if self._seen[kind] == 1:
            print(f"warning: {text}", file=file or sys.stderr)

    def finish(self) -> None:
        """Say how many were not shown."""
        for kind, count in self._seen.items():
            if count > 1:
                times = "once more" if count == 2 else f"{count - 1} more times"
                print(f"warning: {times}: {kind.split('. ')[0]}", file=sys.stderr)
