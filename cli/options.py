"""Options that several commands share, and how a configuration is put together from them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from adjoint_meta.experiments.config import RunConfig

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where data sets lie; else ADJOINT_META_DATA, else the user's cache.",
)

jobs_option = click.option("--jobs", type=int, metavar="N", help="Processes at once; else one a core, up to 8.")


def jobs_words(jobs: int | None) -> list[str]:
    """Return the option as it was given, for a command that goes on."""
    return [] if jobs is None else ["--jobs", str(jobs)]


def data_dir_words(data_dir: Path | None) -> list[str]:
    """Return the option as it was given, for a command that goes on."""
    return [] if data_dir is None else ["--data-dir", str(data_dir)]


_CONFIGURATION = (
    click.argument("experiment", required=False),
    click.option("--method", metavar="NAME", help="adjoint, imaml, maml, fomaml, reptile, anil or memory-reduced."),
    click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="YAML configuration."),
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


@dataclass(frozen=True)
class Asked:
    """What the user asked for: two names, and the keys of the file, --set and the flags, the later ones winning."""

    experiment: str | None
    method: str | None
    keys: dict[str, Any]
    data_dir: Path | None

    def resolve(self, **more: Any) -> RunConfig:
        """Return the resolved configuration, ``more`` winning over the keys.

        Raises:
            ValueError: for an unknown name or key, or a value that does not fit.
        """
        from adjoint_meta.experiments.registry import resolve

        return resolve({**self.keys, **more}, self.experiment, self.method)


def configuration_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options from which a configuration is resolved, and hand them to the command as ``asked``."""

    @functools.wraps(command)
    def collect(
        experiment: str | None,
        method: str | None,
        file: Path | None,
        assignments: tuple[str, ...],
        seed: int | None,
        device: str | None,
        dtype: str | None,
        data_dir: Path | None,
        **others: Any,
    ) -> None:
        from adjoint_meta.experiments.config import merge, parse_assignments, read_yaml

        flags = {"seed": seed, "device": device, "dtype": dtype}
        set_by_key = parse_assignments(assignments)
        if method is not None:
            # --method belongs to the same layer as --set: `--method maml --set method.steps=3` speaks of one method.
            options = set_by_key.get("method", {})
            if options.get("name", method) != method:
                raise click.UsageError(f"--method says {method}, --set says {options['name']}; name one method")
            set_by_key["method"] = {**options, "name": method}
        keys = merge(read_yaml(file) if file else {}, set_by_key)
        keys = merge(keys, {key: value for key, value in flags.items() if value is not None})
        command(asked=Asked(experiment, method, keys, data_dir), **others)

    for option in reversed(_CONFIGURATION):
        collect = option(collect)
    return collect
