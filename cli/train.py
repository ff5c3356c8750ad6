"""`adjoint-meta train`."""

from __future__ import annotations

import json
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .interrupt import stop_on_signal
from .options import Asked, configuration_options, json_option
from .processes import several_processes

if TYPE_CHECKING:
    from adjoint_meta.distributed import World
    from adjoint_meta.experiments.config import RunConfig
    from adjoint_meta.experiments.run_directory import RunDirectory


@click.command(name="train")
@several_processes
@configuration_options
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Run directory (default: runs/…).")
@click.option("--resume", is_flag=True, help="Continue the run in --out from its checkpoint.")
@json_option
def command(world: World, asked: Asked, out: Path | None, resume: bool, as_json: bool) -> None:
    """Meta-train on EXPERIMENT (default: cosmixture), test the result and draw it.

    The run directory holds config.yaml, metrics.jsonl, checkpoint.pt, summary.json and pictures. Ctrl-C saves; the
    same command with --resume continues bit for bit. Under torchrun (`torchrun --nproc-per-node 2 -m adjoint_meta.cli
    train …`) the processes share the tasks of each meta-step, and the first of them writes.
    """
    from adjoint_meta.experiments.allocator import keep_large_blocks
    from adjoint_meta.experiments.run import Interrupted, finish, fit
    from adjoint_meta.experiments.run_directory import RunDirectory

    from .progress import progress

    keep_large_blocks()
    if resume and out is None:
        raise click.UsageError("--resume needs the run directory: --out DIR")
    config, path = world.first(lambda: _run(asked, out, resume))
    directory = RunDirectory(path)

    def say(message: str) -> None:
        if world.leads:
            click.echo(message, err=True)

    def stopping() -> None:
        say("Stopping after this meta-step; again to stop at once.")

    shown = progress(config.meta_steps) if world.leads else nullcontext(lambda record: None)
    try:
        with shown as observe, stop_on_signal(stopping) as stop:
            fitted = fit(
                config,
                directory,
                data_dir=asked.data_dir,
                resume=resume,
                observe=observe,
                should_stop=stop,
                world=world,
            )
        say("Testing …")
        summary = finish(fitted)
    except (Interrupted, KeyboardInterrupt) as stopped:
        saved = f"Saved after meta-step {stopped.step}. " if isinstance(stopped, Interrupted) else ""
        say(f"{saved}Go on with: adjoint-meta train --resume --out {shlex.quote(str(directory.path))}")
        raise click.Abort from stopped
    if not world.leads:
        return
    if as_json:
        click.echo(json.dumps(summary))
    else:
        _show(config, directory, summary)


def _run(asked: Asked, out: Path | None, resume: bool) -> tuple[RunConfig, Path]:
    """Return the configuration and the directory of the run that is asked for."""
    from adjoint_meta.experiments.run_directory import RunDirectory, free_directory

    if resume and out is not None and RunDirectory(out).config.exists():
        return _continued(RunDirectory(out), asked), out
    config = asked.resolve()
    if resume:
        click.echo(f"There is no run in {out} yet; starting one.", err=True)
    return config, out or free_directory(Path("runs") / f"{config.experiment}-{config.method['name']}")


def _continued(directory: RunDirectory, asked: Asked) -> RunConfig:
    held = directory.read_config()
    for what, given, own in (
        ("experiment", asked.experiment, held.experiment),
        ("method", asked.method, held.method["name"]),
    ):
        if given is not None and given != own:
            raise click.UsageError(f"{directory.path} holds a run of {what} {own!r}, not {given!r}")
    return directory.continued(asked.keys)


def _show(config: RunConfig, directory: RunDirectory, summary: dict[str, Any]) -> None:
    """Print what a person wants to know of a finished run."""
    from .tables import show_test

    show_test(summary)
    compiled = summary["compile_seconds"]
    once = f", {compiled:.1f} s of it compiling once" if compiled else ""
    click.echo(
        f"\n{summary['meta_steps']} meta-steps in {summary['seconds']:.1f} s{once} "
        f"({1000 * summary['seconds_per_meta_step']:.0f} ms, {summary['n_grad_per_meta_step']:.0f} gradients and "
        f"{summary['n_hvp_per_meta_step']:.0f} HVPs each), peak memory {summary['peak_memory_bytes'] / 2**20:.0f} MiB."
    )
    if summary["skipped_meta_steps"]:
        click.echo(f"{summary['skipped_meta_steps']} meta-steps had no finite meta-gradient and were skipped.")
    names = [path.name for path in (directory.curves, directory.adaptation, directory.summary) if path.exists()]
    click.echo(f"See {', '.join(names)} in {directory.path}")
