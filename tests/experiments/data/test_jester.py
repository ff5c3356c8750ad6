import struct
import sys

import numpy as np
import pytest

from adjoint_meta.experiments.data import jester
from adjoint_meta.experiments.data.errors import DataError


def row(ratings, count=None):
    """A row of the sheet: {joke from 1: rating}."""
    cells = [99.0] * 100
    for joke, rating in ratings.items():
        cells[joke - 1] = rating
    return [len(ratings) if count is None else count, *cells]


SHEET = [row({1: -9.95, 3: 10.0}), row({}), row({100: 0.0, 2: -10.0, 3: 7.82})]


def csv(sheet, newline="\n"):
    return newline.join(",".join(f"{cell:g}" for cell in cells) for cells in sheet).encode()


def xls(sheet):
    """The sheet in the oldest Excel format, BIFF2: beginning of file, one record a number, end of file."""
    records = [struct.pack("<HHHH", 0x0009, 4, 0x0002, 0x0010)]
    for y, cells in enumerate(sheet):
        for x, cell in enumerate(cells):
            if isinstance(cell, str):
                records.append(struct.pack("<HHHH3sB", 0x0004, 8 + len(cell), y, x, b"", len(cell)) + cell.encode())
            elif cell is not None:
                records.append(struct.pack("<HHHH3sd", 0x0003, 15, y, x, b"", cell))
    return b"".join(records) + struct.pack("<HH", 0x000A, 0)


def read(kind, sheet):
    if kind == "csv":
        return jester.parse_csv(csv(sheet), "sheet")
    pytest.importorskip("xlrd")
    return jester.parse_xls(xls(sheet), "sheet")


@pytest.mark.parametrize("kind", ["csv", "xls"])
def test_the_sheet_is_read(kind):
    ratings = read(kind, SHEET)
    assert ratings.user.tolist() == [0, 0, 2, 2, 2]
    assert ratings.item.tolist() == [0, 2, 1, 2, 99]
    assert ratings.value.tolist() == [-9.95, 10.0, -10.0, 7.82, 0.0]
    assert (ratings.users, ratings.items, ratings.low, ratings.high) == (3, 100, -10.0, 10.0)


def test_windows_line_ends_and_trailing_zeros_are_read():
    data = csv(SHEET, "\r\n").replace(b",99", b",99.00") + b"\r\n"
    assert jester.parse_csv(data, "sheet").value.tolist() == read("csv", SHEET).value.tolist()


@pytest.mark.parametrize("kind", ["csv", "xls"])
@pytest.mark.parametrize(
    ("second", "message"),
    [
        (row({4: 10.01}), "2, column 5: got rating 10.01, expected -10 to 10, or 99 for none"),
        (row({4: -11}), "2, column 5: got rating -11"),
        (row({4: 98.0}), "2, column 5: got rating 98"),
        (row({4: 1.0}, count=2), "2: the first column says 2 ratings, expected 1"),
        (row({4: 1.0}, count=0), "2: the first column says 0 ratings, expected 1"),
    ],
)
def test_a_bad_row_is_named(kind, second, message):
    with pytest.raises(DataError, match=f"sheet, (line|row) {message}") as caught:
        read(kind, [SHEET[0], second, SHEET[2]])
    assert "adjoint-meta data fetch jester" in str(caught.value)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b"", "got 1 value, expected 101"),
        (csv(SHEET[:1])[:-3], "got 100 values, expected 101"),
        (csv(SHEET[:1]) + b",99", "got 102 values, expected 101"),
        (b"x" + csv(SHEET[:1]), "got 'x2' in column 1, expected a number"),
        (csv(SHEET[:1]).replace(b"-9.95", b"nan"), "got 'nan' in column 2"),
        (csv(SHEET[:1]).replace(b"-9.95", b""), "got '' in column 2"),
        (csv(SHEET[:1]).replace(b"-9.95", b"1e1"), "got '1e1' in column 2"),
        (csv(SHEET[:1]).replace(b",", b";"), "got 1 value, expected 101"),
    ],
)
def test_a_bad_line_of_csv_is_named(second, message):
    data = csv(SHEET[:1]) + b"\n" + second + b"\n" + csv(SHEET[2:])
    with pytest.raises(DataError, match=f"sheet, line 2: {message}"):
        jester.parse_csv(data, "sheet")


def test_an_empty_file_is_refused():
    with pytest.raises(DataError, match="sheet is empty"):
        jester.parse_csv(b"", "sheet")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no Excel"),
        (b"not a sheet", "no Excel"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\xff" * 600, "no Excel"),
        (b"PK\x03\x04 an xlsx", "no Excel"),
        (xls([[1.0] * 100]), "1 rows and 100 columns, expected 101"),
        (xls([[1.0] * 102]), "1 rows and 102 columns"),
        (xls([]), "0 rows"),
        (xls([SHEET[0], row({5: "good"})]), "row 2, column 6: got 'good', expected a number"),
        (xls([SHEET[0], row({5: None})]), "row 2, column 6: got '', expected a number"),
        (xls(SHEET)[:1000], "no Excel|expected"),
    ],
)
def test_a_bad_excel_file_is_refused(data, message, capsys):
    pytest.importorskip("xlrd")
    with pytest.raises(DataError, match=message):
        jester.parse_xls(data, "sheet")
    assert capsys.readouterr().out == ""


def test_without_xlrd_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "xlrd", None)
    with pytest.raises(RuntimeError, match=r'pip install "adjoint-meta\[xls\]"'):
        jester.parse_xls(xls(SHEET), "sheet")


def test_random_sheets_agree_in_both_formats():
    pytest.importorskip("xlrd")
    rng = np.random.default_rng(0)
    values = np.round(rng.uniform(-10, 10, (30, 100)), 2)
    values[rng.random(values.shape) < 0.4] = 99.0
    sheet = np.column_stack([(values != 99).sum(axis=1), values]).tolist()
    one, other = read("csv", sheet), read("xls", sheet)
    for field in ("user", "item", "value"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    np.testing.assert_array_equal(one.value, values[values != 99])
