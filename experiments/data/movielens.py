"""The files of ratings of MovieLens: a line is user, item, stars and time, whole numbers all."""

from __future__ import annotations

import re

import numpy as np

from .errors import DataError
from .ratings import Ratings, first_repeat

FIELDS = ("user", "item", "rating", "timestamp")
LOW, HIGH = 1, 5
# So that a time, and a user times an item, stay within 64 bits; in the real files they have nine and four digits.
STAMP_DIGITS = 18
ID_DIGITS = 9


def parse(name: str, data: bytes, separator: bytes, where: str) -> Ratings:
    """Return the ratings of ``u.data`` (separator: a tab) or ``ratings.dat`` (``::``), every line checked.

    Users and items are numbered from 0 in the order of their ids, those without a rating left out.

    Raises:
        DataError: at the first line that is not four whole numbers, has stars outside 1..5, or repeats a pair.
    """
    if not data:
        raise DataError(f"{where} is empty, expected lines of {', '.join(FIELDS)}; {_remedy(name)}")
    # One search in C over the whole file: it finds the first line that is *not* of the right form.
    number, stamp = b"[0-9]{1,%d}" % ID_DIGITS, b"[0-9]{1,%d}" % STAMP_DIGITS
    form = re.escape(separator).join((number, number, number, stamp))
    wrong = re.compile(rb"^(?!" + form + rb"\r?$)(?!\Z).*$", re.MULTILINE).search(data)
    if wrong:
        line = data.count(b"\n", 0, wrong.start()) + 1
        raise DataError(f"{where}, line {line}: {_fault(wrong[0], separator)}; {_remedy(name)}")
    table = np.fromstring(data.replace(separator, b" "), dtype=np.int64, sep=" ").reshape(-1, len(FIELDS))
    user_id, item_id, stars = table[:, 0], table[:, 1], table[:, 2]
    outside = (stars < LOW) | (stars > HIGH)
    if outside.any():
        line = int(np.argmax(outside))
        raise DataError(
            f"{where}, line {line + 1}: got rating {stars[line]}, expected {LOW} to {HIGH}; {_remedy(name)}"
        )
    twice = first_repeat(user_id, item_id)
    if twice is not None:
        raise DataError(
            f"{where}, line {twice[1] + 1}: user {user_id[twice[1]]} rates item {item_id[twice[1]]} again, "
            f"first on line {twice[0] + 1}, expected once; {_remedy(name)}"
        )
    users, user = np.unique(user_id, return_inverse=True)
    items, item = np.unique(item_id, return_inverse=True)
    return Ratings(name, user, item, stars.astype(np.float64), LOW, HIGH, len(users), len(items))


def _fault(line: bytes, separator: bytes) -> str:
    fields = line.removesuffix(b"\r").split(separator)
    expected = f"{len(FIELDS)} whole numbers separated by {separator.decode()!r} ({', '.join(FIELDS)})"
    if len(fields) != len(FIELDS):
        return f"got {len(fields)} field{'s' if len(fields) != 1 else ''}, expected {expected}"
    what, field = next(
        (what, field)
        for what, field in zip(FIELDS, fields, strict=True)
        if not field.isdigit() or len(field) > (STAMP_DIGITS if what == "timestamp" else ID_DIGITS)
    )
    return f"got {what} {field[:40].decode('latin-1')!r}, expected {expected}"


def _remedy(name: str) -> str:
    return f"restore the file, with `adjoint-meta data fetch {name}`"
