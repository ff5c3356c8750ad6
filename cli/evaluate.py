"""`adjoint-meta evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import data_dir_option, json_option
from .processes import several_processes

if TYPE_CHECKING:
    from adjoint_meta.distributed import World


@click.command(name="evaluate")
@several_processes
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--tasks", type=int, metavar="N", help="Only the first N test tasks.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Adapt otherwise than in training: --set method.steps=20.",
)
@data_dir_option
@json_option
def command(
    world: World, run_dir: Path, tasks: int | None, assignments: tuple[str, ...], data_dir: Path | None, as_json: bool
) -> None:
    """Test the run in RUN_DIR again: before and after adaptation by the method's own inner solve."""
    from adjoint_meta.experiments.allocator import keep_large_blocks
    from adjoint_meta.experiments.config import parse_assignments
    from adjoint_meta.experiments.run import evaluate_run
    from adjoint_meta.experiments.run_directory import RunDirectory

    from .tables import show_test

    changed = parse_assignments(assignments)
    options = changed.get("method", {})
    if set(changed) - {"method"} or not isinstance(options, dict) or "name" in options:
        raise click.UsageError("evaluate --set changes options of the run's method alone, such as method.steps=20")
    keep_large_blocks()
    summary = evaluate_run(RunDirectory(run_dir), data_dir=data_dir, tasks=tasks, method=options, world=world)
    if not world.leads:
        return
    if as_json:
        click.echo(json.dumps(summary))
    else:
        show_test(summary)
