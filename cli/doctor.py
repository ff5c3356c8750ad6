"""`adjoint-meta doctor`."""

from __future__ import annotations

import json
from typing import Any

import click

from .options import json_option


@click.command(name="doctor")
@json_option
def command(as_json: bool) -> None:
    """Show versions, devices and data directories, and check a meta-gradient against exact reverse mode."""
    from adjoint_meta.experiments.diagnosis import diagnose

    found = diagnose()
    if as_json:
        click.echo(json.dumps(found))
    else:
        _show(found)
    if not found["gradient_check"]["passed"]:
        raise RuntimeError(f"the gradient self-check failed: {found['gradient_check']}")


def _show(found: dict[str, Any]) -> None:
    for name, version in found["versions"].items():
        click.echo(f"{name:<14}{version or 'not installed'}")
    click.echo(f"{'devices':<14}{', '.join(found['devices'])}; {found['threads']} threads")
    click.echo(f"{'data':<14}{', '.join(found['data'])}")
    check = found["gradient_check"]
    click.echo(
        f"{'gradients':<14}{'exact' if check['passed'] else 'WRONG'}: relative error {check['error']:.1e} against "
        f"reverse mode ({check['seconds']:.1f} s)"
    )
