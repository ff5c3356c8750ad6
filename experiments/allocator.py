"""What a process does with the memory that it has freed."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

# Of mallopt(3), glibc: the size from which blocks are mapped one by one, and the free memory that is given back.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1


def keep_large_blocks() -> None:
    """Let this process keep freed memory for its next large tensors, where the C library is glibc.

    Blocks of 32 MiB and more, such as the activations of a few hundred images, are otherwise mapped anew each time and
    cleared page by page, which takes as long as computing them. It concerns the whole process, so only programs of
    our own call it. What the user says in the environment (``MALLOC_MMAP_THRESHOLD_``, …) stays.
    """
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        with suppress(AttributeError, OSError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_MMAP_THRESHOLD, 2**30)
            mallopt(_TRIM_THRESHOLD, 2**31 - 1)
