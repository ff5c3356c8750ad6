"""`adjoint-meta check-grad`."""

from __future__ import annotations

import json
from dataclasses import replace

import click

from .options import Asked, configuration_options, json_option


@click.command(name="check-grad")
@configuration_options
@json_option
def command(asked: Asked, as_json: bool) -> None:
    """Compare meta-gradients on EXPERIMENT with exact reverse mode through every inner step, in float64.

    Without a method (--method, or a method key set), all are compared; with one, each parameter's error is shown too,
    learned hyperparameters included. Steps that cannot be repeated (adaptive, implicit, a continuous adjoint) are
    compared with the flow itself: rk4 steps, doubled until the gradient settles.
    """
    from adjoint_meta.experiments import gradient_check
    from adjoint_meta.experiments.config import METHODS
    from adjoint_meta.experiments.prepare import prepare
    from adjoint_meta.solvers import SolverError

    from .tables import show_table

    if asked.keys.get("dtype", "float64") != "float64":
        raise click.UsageError(f"check-grad compares in float64, got --dtype {asked.keys['dtype']}")
    named = asked.method or ("method" in asked.keys and asked.resolve().method["name"])
    results = {}
    for name in [named] if named else METHODS:
        config = replace(asked, method=name).resolve(dtype="float64")
        if not named and config.adapt and not METHODS[name].shares:
            continue  # it has no gradient for shared parameters
        prepared = prepare(config, asked.data_dir)
        tasks = prepared.place(prepared.experiment.train.meta_batch(0, config.tasks_per_step, config.seed))
        try:
            found = gradient_check.compare(prepared.learner, tasks)
        except SolverError as error:
            if named:
                raise
            click.echo(f"{name} is left out: {error}", err=True)
            continue
        results[name] = (found, gradient_check.note(prepared.learner.method))
    if as_json:
        click.echo(json.dumps({name: {**vars(found), "note": note} for name, (found, note) in results.items()}))
    else:
        show_table(
            ["method", "relative error", "cosine", "gradients", "HVPs", "note"],
            [
                [name, f"{r.error:.1e}", f"{r.cosine:.6f}", str(r.stats["n_grad"]), str(r.stats["n_hvp"]), note]
                for name, (r, note) in results.items()
            ],
            title=f"{prepared.config.experiment}: meta-gradient against reverse mode through all inner steps, float64",
            numbers=True,
        )
        if named:
            rows = [[name, f"{error:.1e}"] for name, error in results[named][0].errors.items()]
            click.echo()
            show_table(["parameter", "relative error"], rows, numbers=True)
    failed = [name for name, (found, _) in results.items() if found.failed]
    if failed:
        raise RuntimeError(f"{', '.join(failed)} should be exact but is off by more than rounding; please report it")
