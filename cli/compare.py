"""`adjoint-meta compare`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from .options import data_dir_option, data_dir_words, jobs_option, jobs_words, json_option
from .studies import long_work, show_report


@click.command(name="compare")
@click.argument("experiment")
@click.option("--methods", "names", required=True, metavar="A,B,…", help="Such as adjoint,imaml,maml:steps=50.")
@click.option("--seeds", default=1, metavar="N", help="Seeds 0 to N − 1; 1 when not given.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a key for all methods.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Default: runs/compare-EXPERIMENT.")
@jobs_option
@click.option("--device", metavar="auto|cpu|cuda", help="Where to compute.")
@data_dir_option
@json_option
def command(
    experiment: str,
    names: str,
    seeds: int,
    assignments: tuple[str, ...],
    out: Path | None,
    jobs: int | None,
    device: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Compare methods on EXPERIMENT with equal meta-steps, tasks and initialisation.

    Options of a method follow its name after colons: maml:steps=50:inner_lr=0.02. The directory gets report.html, its
    table as Markdown and CSV, results.json and a picture. The same command goes on with an interrupted comparison, and
    skips what is finished.
    """
    from adjoint_meta.experiments import comparison, comparison_report
    from adjoint_meta.experiments.config import parse_assignments
    from adjoint_meta.experiments.crew import processes, work
    from adjoint_meta.experiments.report import write
    from adjoint_meta.experiments.studies.study import claim
    from adjoint_meta.solvers import checks

    checks.count("seeds", seeds)
    keys = parse_assignments(assignments)
    if "method" in keys or "seed" in keys:
        raise ValueError("compare sets method and seed itself; write options of a method as maml:steps=50")
    if device is not None:
        keys["device"] = device
    methods = comparison.parse_methods(names)
    folder = out or Path("runs") / f"compare-{experiment}"
    planned = comparison.jobs(experiment, methods, range(seeds), keys, folder)
    identity = {"command": "compare", "experiment": experiment, "methods": list(methods), "seeds": seeds, "keys": keys}
    claim(folder, identity)
    again = shlex.join(
        [
            *("adjoint-meta", "compare", experiment, "--methods", names, "--seeds", str(seeds)),
            *(word for assignment in assignments for word in ("--set", assignment)),
            *(() if device is None else ("--device", device)),
            *("--out", str(folder)),
            *jobs_words(jobs),
            *data_dir_words(data_dir),
        ]
    )
    count = processes(jobs, device)
    with long_work(again) as (show, stop):
        finished = work(planned, processes=count, data_dir=data_dir, observe=show, should_stop=stop)
    setting = {
        "meta-steps": planned[0].config.meta_steps,
        "seeds": seeds,
        "methods": ", ".join(methods),
        "device": finished[0].summary["device"],
        "processes at once": count,
    }
    report = comparison_report.report(experiment, comparison.Comparison.of(finished), range(seeds), setting)
    show_report(report, write(report, folder, again), folder, as_json)
