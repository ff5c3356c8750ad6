"""Options that several commands share, and how a configuration is put together from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from adjoint_meta.experiments.config import RunConfig

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where data sets lie; else ADJOINT_META_DATA, else the user's cache.",
)


def configuration_options(command: F) -> F:
    """Add the options from which a configuration is resolved."""
    for option in reversed(
        (
            click.argument("experiment", required=False),
            click.option("--method", metavar="NAME", help="adjoint, imaml, maml, fomaml or reptile."),
            click.option(
                "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="YAML configuration."
            ),
            click.option(
                "--set",
                "assignments",
                multiple=True,
                metavar="KEY=VALUE",
                help="Set any configuration key: --set method.horizon=1.0 --set meta_steps=200.",
            ),
            click.option("--seed", type=int, metavar="N", help="Seed of tasks and weights."),
            click.option("--device", metavar="auto|cpu|cuda", help="Where to compute."),
            click.option("--dtype", metavar="float32|float64", help="Precision."),
            data_dir_option,
        )
    ):
        command = option(command)
    return command


def overrides(
    file: Path | None, assignments: tuple[str, ...], seed: int | None, device: str | None, dtype: str | None
) -> dict[str, Any]:
    """Return what the user asked for: the file, then --set, then the flags."""
    from adjoint_meta.experiments.config import merge, parse_assignments, read_yaml

    flags = {"seed": seed, "device": device, "dtype": dtype}
    asked = merge(read_yaml(file) if file else {}, parse_assignments(assignments))
    return merge(asked, {key: value for key, value in flags.items() if value is not None})


def resolve_options(
    experiment: str | None,
    method: str | None,
    file: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    device: str | None,
    dtype: str | None,
) -> RunConfig:
    """Return the resolved configuration.

    Raises:
        ValueError: for an unknown name or key, or a value that does not fit.
    """
    from adjoint_meta.experiments.registry import resolve

    return resolve(overrides(file, assignments, seed, device, dtype), experiment, method)
