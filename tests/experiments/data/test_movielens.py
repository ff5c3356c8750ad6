import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adjoint_meta.experiments.data import movielens
from adjoint_meta.experiments.data.errors import DataError

LINES = ["7\t30\t5\t881250949", "2\t30\t1\t891717742", "7\t4\t3\t878887116"]


def parse(text, separator=b"\t"):
    return movielens.parse("movielens-100k", text.encode("latin-1"), separator, "u.data")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n"])
@pytest.mark.parametrize("separator", ["\t", "::"])
def test_users_and_items_are_numbered_in_the_order_of_their_ids(newline, last, separator):
    text = newline.join(LINES).replace("\t", separator) + last.replace("\n", newline)
    ratings = parse(text, separator.encode())
    assert ratings.user.tolist() == [1, 0, 1]
    assert ratings.item.tolist() == [1, 1, 0]
    assert ratings.value.tolist() == [5.0, 1.0, 3.0]
    assert (ratings.users, ratings.items, ratings.low, ratings.high) == (2, 2, 1, 5)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("2\t30\t1", r"line 2: got 3 fields, expected 4 whole numbers"),
        ("2\t30\t1\t5\t6", r"line 2: got 5 fields"),
        ("", r"line 2: got 1 field, expected 4"),
        ("2::30::1::5", r"line 2: got 1 field, expected 4"),
        ("2\t30\t1.5\t5", r"line 2: got rating '1\.5', expected 4 whole numbers"),
        ("2\t30\tnan\t5", r"line 2: got rating 'nan'"),
        ("2\tx\t1\t5", r"line 2: got item 'x'"),
        ("-2\t30\t1\t5", r"line 2: got user '-2'"),
        (" 2\t30\t1\t5", r"line 2: got user ' 2'"),
        ("2\t30\t1\t", r"line 2: got timestamp ''"),
        ("1234567890\t30\t1\t5", r"line 2: got user '1234567890'"),
        ("2\t30\t²\t5", r"line 2: got rating"),
        ("2\t30\t1\t5\0", r"line 2: got timestamp"),
        (f"2\t30\t{'9' * 500}\t5", r"line 2: got rating '9{40}',"),
        ("2\t30\t0\t5", r"line 2: got rating 0, expected 1 to 5"),
        ("2\t30\t6\t5", r"line 2: got rating 6, expected 1 to 5"),
        ("7\t30\t2\t5", r"line 2: user 7 rates item 30 again, first on line 1"),
    ],
)
def test_a_bad_line_is_named(second, message):
    with pytest.raises(DataError, match=f"u.data, {message}") as caught:
        parse("\n".join((LINES[0], second, LINES[2])))
    assert "adjoint-meta data fetch movielens-100k" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_refused():
    with pytest.raises(DataError, match=r"u\.data is empty"):
        parse("")


def test_a_blank_line_at_the_end_is_refused():
    with pytest.raises(DataError, match="line 4: got 1 field"):
        parse("\n".join(LINES) + "\n\n")


def test_the_first_of_several_repeats_is_named():
    with pytest.raises(DataError, match="line 3: user 9 rates item 9 again, first on line 2"):
        parse("1\t1\t1\t1\n9\t9\t1\t1\n9\t9\t1\t1\n1\t1\t1\t1\n")


@settings(deadline=None)
@given(st.dictionaries(st.tuples(st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1)), st.integers(1, 5), min_size=1))
def test_any_sound_file_is_read_as_written(table):
    ratings = parse("".join(f"{user}\t{item}\t{stars}\t0\n" for (user, item), stars in table.items()))
    users = sorted({user for user, _ in table})
    items = sorted({item for _, item in table})
    got = {
        (users[user], items[item]): stars
        for user, item, stars in zip(ratings.user, ratings.item, ratings.value, strict=True)
    }
    assert got == table
    assert ratings.value.dtype == np.float64
