import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adjoint_meta.experiments.data.errors import DataError
from adjoint_meta.experiments.data.ratings import Ratings, first_repeat


def ratings(triples, users=9, items=9):
    user, item, value = (np.array(column) for column in zip(*triples, strict=True))
    return Ratings("mine", user, item, value.astype(float), 1, 5, users, items)


@pytest.mark.parametrize(
    ("triples", "message"),
    [
        ([(0, 0, 6)], r"ratings must lie in 1\.\.5, got 6"),
        ([(0, 0, np.nan)], r"ratings must lie in 1\.\.5, got nan"),
        ([(9, 0, 1)], r"user must lie in 0\.\.8, got 9\.\.9"),
        ([(0, -1, 1)], r"item must lie in 0\.\.8, got -1"),
        ([(3, 4, 1), (0, 0, 1), (3, 4, 2)], "user 3 rates item 4 twice"),
    ],
)
def test_what_cannot_be_is_refused(triples, message):
    with pytest.raises(DataError, match=message):
        ratings(triples)


def test_arrays_of_different_length_or_none_are_refused():
    one, two, none = np.array([0]), np.array([0.5, 1]), np.array([], dtype=int)
    for user, item, value in ((one, one, two), (none, none, none.astype(float))):
        with pytest.raises(DataError, match="must be arrays of one length, at least 1"):
            Ratings("mine", user, item, value, 0, 1, 1, 1)


def test_the_most_rated_items_are_kept_and_ties_go_to_the_lower_index():
    # Ratings an item: 0 has one, 1 has two, 2 has three, 3 has two, 4 has two.
    triples = [(0, 2, 1), (1, 2, 2), (2, 2, 3), (0, 4, 4), (1, 4, 5), (0, 3, 1), (2, 3, 2), (1, 1, 3), (2, 1, 4)]
    triples.append((3, 0, 5))
    dense = ratings(triples, users=4, items=5).matrix(top_items=3, min_ratings=1)
    nan = np.nan
    np.testing.assert_array_equal(dense, [[nan, 1, 1], [3, 2, nan], [4, 3, 2]])  # items 1, 2, 3; user 3 is gone


def test_users_with_too_few_ratings_among_the_kept_items_are_left_out():
    data = ratings([(0, 0, 1), (0, 1, 2), (1, 0, 3), (1, 2, 4), (2, 0, 5), (2, 1, 5)], users=3, items=3)
    np.testing.assert_array_equal(data.matrix(2, 2), [[1, 2], [5, 5]])
    with pytest.raises(ValueError, match="no user of mine has rated 3"):
        data.matrix(2, 3)


@settings(deadline=None)
@given(
    st.dictionaries(st.tuples(st.integers(0, 8), st.integers(0, 8)), st.integers(1, 5), min_size=1),
    st.integers(1, 12),
    st.integers(1, 3),
)
def test_the_matrix_agrees_with_a_plain_count(table, top, least):
    counts = [sum(item == each for _, item in table) for each in range(9)]
    kept = sorted(sorted(range(9), key=lambda each: (-counts[each], each))[:top])
    rows = [[table.get((user, item), np.nan) for item in kept] for user in range(9)]
    rows = [row for row in rows if np.sum(~np.isnan(row)) >= least]
    data = ratings([(*pair, value) for pair, value in table.items()])
    if rows:
        np.testing.assert_array_equal(data.matrix(top, least), rows)
    else:
        with pytest.raises(ValueError, match="no user"):
            data.matrix(top, least)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_the_first_repeat_agrees_with_a_plain_search(pairs):
    seen, expected = {}, None
    for place, pair in enumerate(pairs):
        if pair in seen:
            expected = (seen[pair], place)
            break
        seen[pair] = place
    user, item = (np.array(column) for column in zip(*pairs, strict=True))
    assert first_repeat(user, item) == expected
