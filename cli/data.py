"""`adjoint-meta data`: list, fetch, add and verify the data sets of ratings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import data_dir_option, json_option
from .tables import show_table

if TYPE_CHECKING:
    from adjoint_meta.experiments.data.catalogue import DataSet

MEGABYTE = 1_000_000


@click.group(name="data")
def command() -> None:
    """List, fetch, add and verify the data sets of ratings."""


@command.command(name="list")
@data_dir_option
@json_option
def list_sets(data_dir: Path | None, as_json: bool) -> None:
    """Show every data set, and where it lies if it is here."""
    from adjoint_meta.experiments.data.catalogue import DATA_SETS
    from adjoint_meta.experiments.data.locate import search_path

    folders = [str(folder) for folder in search_path(data_dir)]
    sets = [_state(data_set, data_dir) for data_set in DATA_SETS.values()]
    if as_json:
        click.echo(json.dumps({"searched": folders, "sets": sets}))
        return
    show_table(
        ("name", "what", "size", "where"),
        [(each["name"], each["summary"], _size(each["bytes"]), each["path"] or "not here") for each in sets],
    )
    click.echo()
    for each in sets:
        click.echo(f"{each['name']}: {each['terms']}. Cite {each['citation']}.")
    click.echo(f"\nLooked in {' and '.join(folders)}. Get a set with: adjoint-meta data fetch NAME")


@command.command()
@click.argument("name")
@data_dir_option
@json_option
def fetch(name: str, data_dir: Path | None, as_json: bool) -> None:
    """Download a set from its owners into the cache, unless it is here."""
    from adjoint_meta.experiments.data.catalogue import data_set
    from adjoint_meta.experiments.data.fetch import obtain

    wanted = data_set(name)
    click.echo(f"{name}: {wanted.terms}. Cite {wanted.citation}.", err=True)
    with _progress(wanted.archives[0]) as advance:
        found, fetched = obtain(wanted, data_dir, advance)
    if as_json:
        click.echo(json.dumps({"name": name, "path": str(found.path), "fetched": fetched}))
    else:
        click.echo(f"{name} {'fetched into' if fetched else 'is here already:'} {found.path}")


@command.command()
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@data_dir_option
@json_option
def add(name: str, path: Path, data_dir: Path | None, as_json: bool) -> None:
    """Check a file, archive or folder that you have at PATH, and copy its ratings into the cache."""
    from adjoint_meta.experiments.data.catalogue import data_set
    from adjoint_meta.experiments.data.loading import add as add_to
    from adjoint_meta.experiments.data.locate import cache_folder, find

    wanted = data_set(name)
    verified = add_to(wanted, path, cache_folder())
    first = find(wanted, data_dir)
    if first.path != verified.found.path:
        click.echo(f"note: {first.path} lies before it in the search and is what will be read", err=True)
    if as_json:
        click.echo(json.dumps(verified.facts()))
    else:
        click.echo(f"{name} added as {verified.found.path}")


@command.command()
@click.argument("name", required=False)
@data_dir_option
@json_option
def verify(name: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Check hashes, every line and the counts of a set, or of all that are here."""
    from adjoint_meta.experiments.data.catalogue import DATA_SETS, data_set
    from adjoint_meta.experiments.data.errors import DataError, MissingDataError
    from adjoint_meta.experiments.data.loading import verify as verify_found
    from adjoint_meta.experiments.data.locate import find

    sets: list[dict[str, Any]] = []
    missing: list[str] = []
    broken: list[str] = []
    for each in [data_set(name)] if name else DATA_SETS.values():
        try:
            sets.append(verify_found(find(each, data_dir)).facts())
        except MissingDataError:
            if name:
                raise
            missing.append(each.name)
        except DataError as error:
            broken.append(str(error))
    if broken:
        for facts in sets:
            click.echo(f"{facts['name']} is sound: {facts['path']}", err=True)
        raise DataError(" | ".join(broken))
    if not sets:
        raise MissingDataError(f"none of {', '.join(missing)} is here; run `adjoint-meta data fetch NAME`")
    if as_json:
        click.echo(json.dumps({"sets": sets, "missing": missing}))
        return
    columns = ("name", "users", "items", "ratings", "mean", "SHA-256 of", "where")
    show_table(columns, [_verified_row(facts) for facts in sets])
    if missing:
        click.echo(f"not here: {', '.join(missing)}")


def _state(data_set: DataSet, data_dir: Path | None) -> dict[str, Any]:
    from adjoint_meta.experiments.data.errors import MissingDataError
    from adjoint_meta.experiments.data.locate import find

    try:
        path = find(data_set, data_dir).path
    except MissingDataError:
        path = None
    return {
        "name": data_set.name,
        "summary": data_set.summary,
        "present": path is not None,
        "path": str(path) if path else None,
        "bytes": path.stat().st_size if path else None,
        "url": data_set.url,
        "terms": data_set.terms,
        "citation": data_set.citation,
    }


def _verified_row(facts: dict[str, Any]) -> tuple[str, ...]:
    return (
        facts["name"],
        f"{facts['users']:,}",
        f"{facts['items']:,}",
        f"{facts['ratings']:,}",
        f"{facts['mean']:.5f}",
        facts["sha256_of"] or "unknown",
        facts["path"],
    )


def _size(size: int | None) -> str:
    return "" if size is None else f"{size / MEGABYTE:.1f} MB"


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a callback (bytes done, bytes in all) that draws a bar on stderr when that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
