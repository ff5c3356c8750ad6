"""Commands that run on one process, or on several under torchrun."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import click


def several_processes(command: Callable[..., None]) -> Callable[..., None]:
    """Hand the processes to the command as ``world``; of them one reports an error, and all exit with a code."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        from adjoint_meta.distributed import processes

        with processes() as world:
            try:
                command(world=world, **arguments)
            except (Exception, KeyboardInterrupt) as error:
                if world.reports(error):
                    raise
                sys.exit(130 if isinstance(error, click.Abort | KeyboardInterrupt) else 1)
            if world.size > 1:
                # Winding down while others still talk, torch's threads now and then abort a process whose work is done.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)

    return run
