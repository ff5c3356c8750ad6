"""`adjoint-meta reproduce`."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import click

from .options import data_dir_option, data_dir_words, jobs_option, jobs_words, json_option
from .studies import long_work, show_report


@click.command(name="reproduce")
@click.argument("study")
@click.option("--budget", default="quick", metavar="quick|full", help="Minutes (the default), or the paper's own.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Default: runs/STUDY-BUDGET.")
@jobs_option
@click.option("--device", default="auto", metavar="auto|cpu|cuda", help="Where to compute.")
@data_dir_option
@json_option
def command(
    study: str, budget: str, out: Path | None, jobs: int | None, device: str, data_dir: Path | None, as_json: bool
) -> None:
    """Make a figure or table of the papers again: STUDY is a name of `adjoint-meta list`.

    The directory gets report.html, which needs no other file, its tables as Markdown and CSV, the pictures as PNG and
    SVG, and results.json. The same command goes on with an interrupted study, and skips what is finished.
    """
    from adjoint_meta.experiments.prepare import choose_device
    from adjoint_meta.experiments.report import write
    from adjoint_meta.experiments.studies.catalogue import STUDIES
    from adjoint_meta.experiments.studies.study import Setting, claim
    from adjoint_meta.solvers import checks

    chosen = STUDIES[checks.one_of("study", study, STUDIES)]
    checks.one_of("budget", budget, chosen.budgets)
    count, place = chosen.resources(study, jobs, device)
    folder = out or Path("runs") / f"{study}-{budget}"
    identity = {"command": "reproduce", "study": study, "budget": budget, "device": str(choose_device(place))}
    claim(folder, {**identity, "sizes": str(chosen.budgets[budget])})
    words = ["adjoint-meta", "reproduce", study, "--budget", budget, "--device", device, "--out", str(folder)]
    again = shlex.join([*words, *jobs_words(jobs), *data_dir_words(data_dir)])
    with long_work(again) as (show, stop):
        report = chosen.run(Setting(budget, folder, data_dir, count, place, show, stop))
    used = {"processes at once": count} if chosen.side_by_side else {}
    report = replace(report, setting={"device": str(choose_device(place)), **report.setting, **used})
    show_report(report, write(report, folder, again), folder, as_json)
