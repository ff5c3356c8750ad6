"""The real files against facts published or counted elsewhere."""

import numpy as np
import pytest

from adjoint_meta.experiments.data import DATA_SETS, loading, locate


@pytest.fixture(scope="module")
def verified(real_data):
    """Each set, parsed once."""
    return {name: loading.verify(locate.find(each, real_data)) for name, each in DATA_SETS.items()}


@pytest.mark.parametrize(
    ("name", "users", "items", "total", "mean"),
    [
        ("movielens-100k", 943, 1682, 100_000, 3.52986),
        ("movielens-1m", 6040, 3706, 1_000_209, 3.58156),
        ("jester", 24_983, 100, 1_810_455, 0.87976),
    ],
)
def test_counts_and_mean(verified, name, users, items, total, mean):
    ratings = verified[name].ratings
    assert (ratings.users, ratings.items, len(ratings)) == (users, items, total)
    assert ratings.value.mean() == pytest.approx(mean, abs=5e-6)


@pytest.mark.parametrize(
    ("name", "stars"),
    [
        ("movielens-100k", [6110, 11370, 27145, 34174, 21201]),
        ("movielens-1m", [56174, 107557, 261197, 348971, 226310]),
    ],
)
def test_how_often_each_number_of_stars_was_given(verified, name, stars):
    assert np.bincount(verified[name].ratings.value.astype(int))[1:].tolist() == stars
    assert verified[name].hash_of in ("archive", "file")


@pytest.mark.parametrize(("name", "users"), [("movielens-100k", 575), ("movielens-1m", 3500), ("jester", 24_983)])
def test_users_with_twenty_ratings_among_the_hundred_most_rated_items(verified, name, users):
    assert verified[name].ratings.matrix(100, 20).shape == (users, 100)


def test_users_of_jester_who_rated_every_joke(verified):
    assert np.sum(np.bincount(verified["jester"].ratings.user) == 100) == 7200
