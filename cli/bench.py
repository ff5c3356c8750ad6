"""`adjoint-meta bench`: how accurate solvers, adjoints and meta-gradients are, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import json_option
from .progress import counted

out_option = click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where the results go.")
device_option = click.option("--device", default="auto", metavar="auto|cpu|cuda", help="Where to compute.")
threads_option = click.option("--threads", default=1, metavar="N", help="Of torch, on the CPU; 1 when not given.")


@click.group(name="bench")
def command() -> None:
    """Measure solvers, adjoints and meta-gradients, and make the tables and figures of the A-MAML paper."""


@command.command()
@click.option("--budget", default="quick", metavar="quick|full", help="Two minutes (the default), or half an hour.")
@out_option
@json_option
def solvers(budget: str, out: Path | None, as_json: bool) -> None:
    """Work and precision of every solver and adjoint.

    Errors of φ(T) and of the meta-gradient against evaluations, on CosMixture at a random and at a meta-trained θ, with
    torchdiffeq and torchode beside them. The directory (default: runs/bench-solvers) gets solvers.json, solvers.md and
    the pictures, and keeps the trained θ.
    """
    from adjoint_meta.experiments.studies import work_precision, work_precision_report

    from .progress import progress
    from .tables import show_table

    folder = out or Path("runs/bench-solvers")
    steps = work_precision.meta_steps(budget)
    with progress(steps) as observe:
        work_precision.train(budget, folder, observe)
    with counted() as show:
        result = work_precision.study(budget, folder, observe=show)
    if as_json:
        click.echo(json.dumps(result))
        return
    for start in work_precision_report.starts(result):
        title = f"{start} θ: gradients + HVPs a task for a meta-gradient within 1e-2 and 1e-3 (– not reached)"
        show_table(*work_precision_report.reach_table(result, start), title=title, numbers=True)
        click.echo()
    for rows, title in (
        (work_precision_report.auto_table(result), 'solver="auto"'),
        (work_precision_report.shared_table(result), work_precision_report.shared_line(result)),
        (work_precision_report.reference_table(result), "references"),
    ):
        show_table(*rows, title=title, numbers=True)
        click.echo()
    lines = work_precision_report.euler_lines(result) + work_precision_report.trust_lines(result) + result["missing"]
    click.echo("\n".join(lines))
    click.echo(f"See solvers.md, solvers.json, work_precision.png and work_precision_phi.png in {folder}")


@command.command()
@out_option
@json_option
def tables(out: Path | None, as_json: bool) -> None:
    """Tables 4 and 5 of the A-MAML paper.

    Beside the paper's numbers; takes some minutes. The directory (default: runs/bench-tables) gets tables.json and
    tables.md.
    """
    from adjoint_meta.experiments.studies import appendix, appendix_report

    from .tables import show_table

    folder = out or Path("runs/bench-tables")
    with counted() as show:
        result = appendix.study(folder, observe=show)
    if as_json:
        click.echo(json.dumps(result))
        return
    title = "Table 4: dy/dt = −2t³ − 2ty, relative error of dL/dy(0)"
    show_table(*appendix_report.table4_rows(result), title=title, numbers=True)
    click.echo()
    title = "Table 5: CosMixture, relative error of the meta-gradient"
    show_table(*appendix_report.table5_rows(result), title=title, numbers=True)
    click.echo()
    click.echo("\n".join(appendix_report.target_lines(result)))
    click.echo(f"See tables.md and tables.json in {folder}")


@command.command(name="meta-gradient")
@click.option("--budget", default="quick", metavar="quick|full", help="Three minutes (the default), or up to an hour.")
@device_option
@threads_option
@out_option
@json_option
def meta_gradient(budget: str, device: str, threads: int, out: Path | None, as_json: bool) -> None:
    """Time, memory and error of a meta-gradient, ours and others'.

    Every method on every backend, beside exact unrolling by torch.func, higher, torchopt and torchdiffeq's
    odeint_adjoint; each in a process of its own, medians of measurements taken in turns. The directory (default:
    runs/bench-meta-gradient) gets meta-gradient.json, meta-gradient.md and two pictures, the paper's figures 3 and 4.
    """
    from adjoint_meta.experiments.studies import meta_gradient, meta_gradient_report

    from .tables import show_table

    folder = out or Path("runs/bench-meta-gradient")
    with counted() as show:
        result = meta_gradient.study(budget, folder, device=device, threads=threads, observe=show)
    if as_json:
        click.echo(json.dumps(result))
        return
    for title, rows in meta_gradient_report.tables(result):
        show_table(meta_gradient_report.COLUMNS, rows, title=title, numbers=True)
        click.echo()
    click.echo("\n".join([meta_gradient_report.headline(result), *result["notes"]]))
    click.echo(f"See meta-gradient.md, meta-gradient.json and the two pictures meta_gradient_*.png in {folder}")


@command.command()
@click.option("--budget", default="quick", metavar="quick|full", help="Four minutes (the default), or longer.")
@device_option
@threads_option
@out_option
@json_option
def limit(budget: str, device: str, threads: int, out: Path | None, as_json: bool) -> None:
    """How much of a meta-gradient's time its bare evaluations take.

    A meta-gradient's time over that of as many gradients and HVPs timed alone, HVP over gradient, and the share of the
    batched matrix-product rate that they reach. The directory (default: runs/bench-limit) gets limit.json and limit.md.
    """
    from adjoint_meta.experiments.studies import limit, limit_report

    from .tables import show_table

    folder = out or Path("runs/bench-limit")
    with counted() as show:
        result = limit.study(budget, folder, device=device, threads=threads, observe=show)
    if as_json:
        click.echo(json.dumps(result))
        return
    for title, table in limit_report.tables(result):
        show_table(*table, title=title, numbers=True)
        click.echo()
    click.echo("\n".join([limit_report.headline(result), *result["notes"]]))
    click.echo(f"See limit.md and limit.json in {folder}")


@command.command()
@click.option("--budget", default="quick", metavar="quick|full", help="Ten minutes (the default), or an hour.")
@device_option
@threads_option
@out_option
@json_option
def decoder(budget: str, device: str, threads: int, out: Path | None, as_json: bool) -> None:
    """Time and memory of a decoder's meta-gradient, every mode.

    Eight blocks whose last two MLPs adapt, 1, 4 and 16 inner steps: every way to take its products, with and without
    keeping activations, beside plain unrolling. The directory (default: runs/bench-decoder) gets decoder.json and
    decoder.md.
    """
    from adjoint_meta.experiments.studies import decoder, decoder_report

    from .tables import show_table

    folder = out or Path("runs/bench-decoder")
    with counted() as show:
        result = decoder.study(budget, folder, device=device, threads=threads, observe=show)
    if as_json:
        click.echo(json.dumps(result))
        return
    for title, rows in decoder_report.tables(result):
        show_table(decoder_report.COLUMNS, rows, title=title, numbers=True)
        click.echo()
    click.echo("\n".join([decoder_report.headline(result), *result["notes"]]))
    click.echo(f"See decoder.md and decoder.json in {folder}")
