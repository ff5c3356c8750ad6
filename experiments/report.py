"""A report: what was asked and found, tables and pictures, as HTML, Markdown, CSV and JSON in one directory."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import adjoint_meta

from .plots import save
from .run_directory import write_atomically


@dataclass(frozen=True)
class Table:
    """A table for people; the first column names its rows.

    Args:
        title: what it shows, with units.
        columns: headings.
        rows: cells; one that begins with ``*`` is set in bold, such as the best of a row.
        note: what a reader must know to read it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure, written as NAME.png and NAME.svg.

    Args:
        name: of the files.
        caption: what one sees, in a sentence.
        figure: drawn in the style of `plots`.
    """

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Report:
    """What a study found.

    Args:
        title: of the page.
        question: what is shown and why, for a reader who knows only the paper.
        findings: sentences that follow from the data.
        parts: tables, pictures and paragraphs, in order.
        records: the numbers behind them, one mapping a measurement, for table.csv and results.json.
        departures: where this differs from the paper, and why.
        setting: budget, seeds, counts and whatever else decides the numbers.
    """

    title: str
    question: str
    findings: Sequence[str]
    parts: Sequence[Table | Picture | str]
    records: Sequence[Mapping[str, Any]]
    departures: Sequence[str] = ()
    setting: Mapping[str, Any] = field(default_factory=dict)


def write(report: Report, out: Path, command: str) -> dict[str, Any]:
    """Write report.html, table.md, table.csv, results.json and the pictures, and return what results.json holds."""
    pictures = [part for part in report.parts if isinstance(part, Picture)]
    for picture in pictures:
        for kind in ("png", "svg"):
            save(picture.figure, out / f"{picture.name}.{kind}")
    results = {
        "title": report.title,
        "command": command,
        "findings": list(report.findings),
        "records": [{key: _standard(value) for key, value in record.items()} for record in report.records],
        "departures": list(report.departures),
        "setting": dict(report.setting),
        "environment": environment(),
    }
    write_atomically(out / "table.md", markdown(report, command))
    write_atomically(out / "table.csv", comma_separated(report.records))
    write_atomically(out / "report.html", page(report, command))
    write_atomically(out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results


def _standard(value: Any) -> Any:
    """Return a value that JSON has: not infinity, nor what no number is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment() -> dict[str, str]:
    """Return what the numbers were made with."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "adjoint-meta": adjoint_meta.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cuda device": cuda,
    }


def markdown(report: Report, command: str) -> str:
    """Return the report as Markdown."""
    blocks = [f"# {report.title}", report.question, _bullets(report.findings)]
    for part in report.parts:
        if isinstance(part, Table):
            blocks += [f"## {part.title}", markdown_table(part), part.note]
        elif isinstance(part, Picture):
            blocks.append(f"![{part.caption}]({part.name}.png)")
        else:
            blocks.append(part)
    if report.departures:
        blocks += ["## Departures from the paper", _bullets(report.departures)]
    blocks += ["## How it was made", f"`{command}`", _bullets(_facts(report))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def markdown_table(table: Table) -> str:
    """Return the rows as a Markdown table, numbers to the right."""
    lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)]]
    lines += [[f"**{cell[1:]}**" if cell.startswith("*") else cell for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def comma_separated(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the records as CSV, a column for every key that occurs."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def page(report: Report, command: str) -> str:
    """Return the report as one HTML file that needs no other."""
    body = [f"<h1>{_text(report.title)}</h1>", f"<p class=lead>{_text(report.question)}</p>", _list(report.findings)]
    for part in report.parts:
        if isinstance(part, Table):
            body.append(_html_table(part))
        elif isinstance(part, Picture):
            body.append(_html_picture(part))
        else:
            body.append(f"<p>{_text(part)}</p>")
    if report.departures:
        body += ["<h2>Departures from the paper</h2>", _list(report.departures)]
    body += ["<h2>How it was made</h2>", f"<p><code>{_text(command)}</code></p>", _list(_facts(report))]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">{_STYLE}'
    title = f"<title>{_text(report.title)}</title>"
    return f'<!doctype html>\n<html lang="en"><head>{head}{title}</head>\n<body>{chr(10).join(body)}</body></html>\n'


# Tables scroll sideways within the page, so that a phone shows text at its own width.
_STYLE = """<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 62rem; margin: 0 auto;
  padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.lead, li, p { max-width: 46rem; } .scroll { overflow-x: auto; } .note, figcaption { color: #555; font-size: .9rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e3e3; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; } code { overflow-wrap: anywhere; }
</style>"""


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in table.columns)
    rows = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in table.rows)
    note = f"<p class=note>{_text(table.note)}</p>" if table.note else ""
    heading = f"<h2>{_text(table.title)}</h2>"
    return f"{heading}<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}"


def _cell(cell: str) -> str:
    return f"<td><b>{_text(cell[1:])}</b></td>" if cell.startswith("*") else f"<td>{_text(cell)}</td>"


def _html_picture(picture: Picture) -> str:
    buffer = io.BytesIO()
    picture.figure.savefig(buffer, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    caption = _text(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _facts(report: Report) -> list[str]:
    return [f"{key}: {value}" for key, value in {**report.setting, **environment()}.items()]


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>" if lines else ""


def _text(text: str) -> str:
    return html.escape(text, quote=True)
