"""`adjoint-meta data`: list, fetch, add and verify the data sets."""

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
    from adjoint_meta.experiments.data.image_catalogue import ImageSet

MEGABYTE = 1_000_000


@click.group(name="data")
def command() -> None:
    """List, fetch, add and verify the data sets."""


@command.command(name="list")
@data_dir_option
@json_option
def list_sets(data_dir: Path | None, as_json: bool) -> None:
    """Show every data set, and where it lies if it is here."""
    from adjoint_meta.experiments.data.catalogue import DATA_SETS
    from adjoint_meta.experiments.data.image_catalogue import IMAGE_SETS
    from adjoint_meta.experiments.data.locate import search_path

    folders = [str(folder) for folder in search_path(data_dir)]
    sets = [_state(data_set, data_dir) for data_set in DATA_SETS.values()]
    sets += [_image_state(image_set, data_dir) for image_set in IMAGE_SETS.values()]
    if as_json:
        click.echo(json.dumps({"searched": folders, "sets": sets}))
        return
    show_table(
        ("name", "what", "size", "where"),
        [(each["name"], each["summary"], _size(each["bytes"]), each["path"] or "not here") for each in sets],
    )
    click.echo()
    for each in sets:
        cite = f" Cite {each['citation']}." if each["citation"] else ""
        click.echo(f"{each['name']}: {each['terms']}.{cite}")
    click.echo(f"\nLooked in {' and '.join(folders)}. Get a set with: adjoint-meta data fetch NAME")


@command.command()
@click.argument("name")
@data_dir_option
@json_option
def fetch(name: str, data_dir: Path | None, as_json: bool) -> None:
    """Download a set from its owners into the cache, unless it is here."""
    from adjoint_meta.experiments.data.fetch import obtain
    from adjoint_meta.experiments.data.image_catalogue import ImageSet

    wanted = _named(name)
    cite = f" Cite {wanted.citation}." if wanted.citation else ""
    click.echo(f"{name}: {wanted.terms}.{cite}", err=True)
    with _progress(name) as advance:
        if isinstance(wanted, ImageSet):
            from adjoint_meta.experiments.data.image_archives import obtain_images

            paths, fetched = obtain_images(wanted, data_dir, advance)
        else:
            found, fetched = obtain(wanted, data_dir, advance)
            paths = [found.path]
    path = _joined(paths)
    if as_json:
        click.echo(json.dumps({"name": name, "path": path, "fetched": fetched}))
    else:
        click.echo(f"{name} {'fetched into' if fetched else 'is here already:'} {path}")


@command.command()
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@data_dir_option
@json_option
def add(name: str, path: Path, data_dir: Path | None, as_json: bool) -> None:
    """Check a file, archive or folder that you have at PATH, and copy its ratings or archives into the cache."""
    from adjoint_meta.experiments.data.image_catalogue import ImageSet
    from adjoint_meta.experiments.data.loading import add as add_to
    from adjoint_meta.experiments.data.locate import cache_folder, find

    wanted = _named(name)
    if isinstance(wanted, ImageSet):
        from adjoint_meta.experiments.data.image_archives import add_images

        path_added = _joined(add_images(wanted, path))
        click.echo(json.dumps({"name": name, "path": path_added}) if as_json else f"{name} added as {path_added}")
        return
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
    """Check hashes, every line or image and the counts of a set, or of all that are here."""
    from adjoint_meta.experiments.data.catalogue import DATA_SETS
    from adjoint_meta.experiments.data.errors import DataError, MissingDataError
    from adjoint_meta.experiments.data.image_catalogue import IMAGE_SETS

    sets: list[dict[str, Any]] = []
    missing: list[str] = []
    broken: list[str] = []
    everything: tuple[DataSet | ImageSet, ...] = (
        *DATA_SETS.values(),
        *(each for each in IMAGE_SETS.values() if each.stored),
    )
    for each in [_named(name)] if name else everything:
        try:
            sets.append(_verified(each, data_dir))
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
    ratings = [_verified_row(facts) for facts in sets if "ratings" in facts]
    if ratings:
        show_table(("name", "users", "items", "ratings", "mean", "SHA-256 of", "where"), ratings)
    images = [_verified_image_row(facts) for facts in sets if "images" in facts]
    if images:
        show_table(("name", "classes", "images", "hash of", "where"), images)
    if missing:
        click.echo(f"not here: {', '.join(missing)}")


def _named(name: str) -> DataSet | ImageSet:
    """Return the set of this name, of ratings or of images."""
    from adjoint_meta.experiments.data.catalogue import DATA_SETS
    from adjoint_meta.experiments.data.image_catalogue import IMAGE_SETS
    from adjoint_meta.solvers.checks import one_of  # imports torch, which listing does not need

    one_of("data set", name, (*DATA_SETS, *IMAGE_SETS))
    return DATA_SETS[name] if name in DATA_SETS else IMAGE_SETS[name]


def _verified(wanted: DataSet | ImageSet, data_dir: Path | None) -> dict[str, Any]:
    from adjoint_meta.experiments.data.image_catalogue import ImageSet
    from adjoint_meta.experiments.data.loading import verify as verify_found
    from adjoint_meta.experiments.data.locate import find

    if isinstance(wanted, ImageSet):
        from adjoint_meta.experiments.data.image_archives import verify_images

        return dict(verify_images(wanted, data_dir).facts())
    return dict(verify_found(find(wanted, data_dir)).facts())


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


def _image_state(wanted: ImageSet, data_dir: Path | None) -> dict[str, Any]:
    from adjoint_meta.experiments.data.errors import MissingDataError
    from adjoint_meta.experiments.data.image_paths import find_paths

    try:
        paths = find_paths(wanted, data_dir) if wanted.stored else []
    except MissingDataError:
        paths = []
    archives = [path for path in paths if path.is_file()]
    return {
        "name": wanted.name,
        "summary": wanted.summary,
        "present": bool(paths) or not wanted.stored,
        "path": _joined(paths) or (None if wanted.stored else "embedded"),
        "bytes": sum(path.stat().st_size for path in archives) if archives else None,
        "url": " ".join(archive.url for archive in wanted.archives) or None,
        "terms": wanted.terms,
        "citation": wanted.citation,
    }


def _joined(paths: list[Path]) -> str:
    return " and ".join(str(path) for path in paths)


def _verified_image_row(facts: dict[str, Any]) -> tuple[str, ...]:
    return (
        facts["name"],
        f"{facts['classes']:,}",
        f"{facts['images']:,}",
        facts["hash_of"] or "unknown",
        facts["path"],
    )


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
