"""`adjoint-meta evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import data_dir_option, json_option


@click.command(name="evaluate")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--tasks", type=int, metavar="N", help="Only the first N test tasks.")
@data_dir_option
@json_option
def command(run_dir: Path, tasks: int | None, data_dir: Path | None, as_json: bool) -> None:
    """Test the run in RUN_DIR again: before and after adaptation by the method's own inner solve."""
    from adjoint_meta.experiments.run import evaluate_run
    from adjoint_meta.experiments.run_directory import RunDirectory

    from .tables import show_test

    summary = evaluate_run(RunDirectory(run_dir), data_dir=data_dir, tasks=tasks)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        show_test(summary)
