"""The sheet of ratings of Jester 1: a row a user, the count of ratings and then 100 ratings, 99 meaning none."""

from __future__ import annotations

import io
import os
import re

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .ratings import Ratings

NAME = "jester"
JOKES = 100
LOW, HIGH, MISSING = -10.0, 10.0, 99.0
REMEDY = f"restore the file, with `adjoint-meta data fetch {NAME}`"
CELL = rb"-?[0-9]{1,3}(?:\.[0-9]{0,9})?"


def parse_csv(data: bytes, where: str) -> Ratings:
    """Return the ratings of ``jester-data-1.csv``, every cell checked.

    Raises:
        DataError: at the first line that is not 101 numbers, or breaks a rule of `from_sheet`.
    """
    if not data:
        raise DataError(f"{where} is empty, expected lines of {JOKES + 1} numbers; {REMEDY}")
    # One search in C over the whole file: it finds the first line that is *not* of the right form.
    form = rb"^(?!%b(?:,%b){%d}\r?$)(?!\Z).*$" % (CELL, CELL, JOKES)
    wrong = re.compile(form, re.MULTILINE).search(data)
    if wrong:
        line = data.count(b"\n", 0, wrong.start()) + 1
        raise DataError(f"{where}, line {line}: {_fault(wrong[0])}; {REMEDY}")
    return from_sheet(np.loadtxt(io.BytesIO(data), delimiter=",", ndmin=2), where, "line")


def parse_xls(data: bytes, where: str) -> Ratings:
    """Return the ratings of the official ``jester-data-1.xls``, every cell checked.

    Raises:
        RuntimeError: if the package xlrd is not installed.
        DataError: if it is no Excel sheet of 101 columns of numbers, or breaks a rule of `from_sheet`.
    """
    try:
        import xlrd
    except ImportError as error:
        raise RuntimeError(
            'reading jester-data-1.xls needs the package xlrd: run `pip install "adjoint-meta[xls]"`, '
            "or save the sheet as jester-data-1.csv"
        ) from error
    try:
        with open(os.devnull, "w") as quiet:  # xlrd prints its complaints, on stdout unless told otherwise
            sheet = xlrd.open_workbook(file_contents=data, logfile=quiet).sheet_by_index(0)
    except Exception as error:  # a broken file makes xlrd fail in any way at all, down to a failed assertion
        reason = str(error) or type(error).__name__
        raise DataError(f"{where} is no Excel (.xls) file that can be read ({reason}); {REMEDY}") from error
    if sheet.ncols != JOKES + 1 or not sheet.nrows:
        raise DataError(
            f"{where}: got a sheet of {sheet.nrows} rows and {sheet.ncols} columns, expected {JOKES + 1}; {REMEDY}"
        )
    for row in range(sheet.nrows):
        for column, kind in enumerate(sheet.row_types(row)):
            if kind != xlrd.XL_CELL_NUMBER:
                got = sheet.cell_value(row, column)
                raise DataError(
                    f"{where}, row {row + 1}, column {column + 1}: got {got!r}, expected a number; {REMEDY}"
                )
    return from_sheet(np.array([sheet.row_values(row) for row in range(sheet.nrows)]), where, "row")


def from_sheet(sheet: NDArray[np.float64], where: str, unit: str) -> Ratings:
    """Return the ratings of a sheet ``[users, 101]``.

    Raises:
        DataError: if a rating is neither 99 nor in −10..10, or a first column is not the count of its row's ratings.
    """
    count, values = sheet[:, 0], sheet[:, 1:]
    rated = values != MISSING
    outside = rated & ~((values >= LOW) & (values <= HIGH))
    if outside.any():
        row, joke = (int(place) for place in np.unravel_index(np.argmax(outside), outside.shape))
        raise DataError(
            f"{where}, {unit} {row + 1}, column {joke + 2}: got rating {values[row, joke]:g}, "
            f"expected {LOW:g} to {HIGH:g}, or {MISSING:g} for none; {REMEDY}"
        )
    wrong = rated.sum(axis=1) != count
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{where}, {unit} {row + 1}: the first column says {count[row]:g} ratings, "
            f"expected {rated[row].sum()}, as many as follow; {REMEDY}"
        )
    user, item = np.nonzero(rated)
    return Ratings(NAME, user, item, values[rated], LOW, HIGH, len(sheet), JOKES)


def _fault(line: bytes) -> str:
    cells = line.removesuffix(b"\r").split(b",")
    if len(cells) != JOKES + 1:
        return f"got {len(cells)} value{'s' if len(cells) != 1 else ''}, expected {JOKES + 1} separated by commas"
    column, cell = next((column, cell) for column, cell in enumerate(cells) if not re.fullmatch(CELL, cell))
    return f"got {cell[:40].decode('latin-1')!r} in column {column + 1}, expected a number"
