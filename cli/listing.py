"""`adjoint-meta list`."""

from __future__ import annotations

import json

import click

from .options import json_option


@click.command(name="list")
@json_option
def command(as_json: bool) -> None:
    """List experiments, methods, solvers and studies, one line each."""
    from adjoint_meta.experiments.config import METHODS
    from adjoint_meta.experiments.registry import EXPERIMENTS
    from adjoint_meta.experiments.studies.catalogue import STUDIES
    from adjoint_meta.inner_solvers import IMPLICIT, AutomaticSteps
    from adjoint_meta.solvers import TABLEAUS, Chebyshev

    solvers = {name: f"order {tableau.order}: {tableau.source}" for name, tableau in TABLEAUS.items()}
    for name, kind in {"rkc": Chebyshev, **IMPLICIT, "auto": AutomaticSteps}.items():
        solvers[name] = _first_sentence(kind.__doc__)
    listing = {
        "experiments": {name: entry.summary for name, entry in EXPERIMENTS.items()},
        "methods": {name: _first_sentence(kind.__doc__) for name, kind in METHODS.items()},
        "solvers": solvers,
        "studies": {name: study.summary for name, study in STUDIES.items()},
    }
    if as_json:
        click.echo(json.dumps(listing))
        return
    for heading, entries in listing.items():
        click.echo(click.style(heading, bold=True))
        for name, text in entries.items():
            click.echo(f"  {name:<28}{text}")


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())
