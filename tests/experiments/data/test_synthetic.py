import numpy as np

from adjoint_meta.experiments.data.synthetic import synthetic_ratings


def test_size_scale_and_filling():
    ratings = synthetic_ratings(0)
    per_user = np.bincount(ratings.user, minlength=200)
    assert (ratings.users, ratings.items) == (200, 100)
    assert per_user.min() >= 25
    assert 0.37 < len(ratings) / (200 * 100) < 0.43
    assert set(ratings.value) == {1, 2, 3, 4, 5}


def test_the_seed_alone_decides():
    one, same, other = synthetic_ratings(3), synthetic_ratings(3), synthetic_ratings(4)
    np.testing.assert_array_equal(one.value, same.value)
    np.testing.assert_array_equal(one.item, same.item)
    assert len(one) != len(other) or (one.value != other.value).any()


def test_items_and_users_differ_as_said_and_items_differ_in_popularity():
    ratings = synthetic_ratings(1)
    dense = ratings.matrix(100, 1)
    item_means, user_means = np.nanmean(dense, axis=0), np.nanmean(dense, axis=1)
    # standard deviation of the effect, and what sampling adds to it: about 0.9/√80 for an item, 1/√40 for a user
    assert abs(np.std(item_means) - np.hypot(0.5, 0.1)) < 0.1
    assert abs(np.std(user_means) - np.hypot(0.5, 0.16)) < 0.1
    counts = np.bincount(ratings.item)
    assert counts.max() > 2 * counts.min()


def test_there_is_taste_beyond_item_and_user():
    """After both effects are removed, two singular values stand out, as the rank of the taste has it."""
    dense = synthetic_ratings(2).matrix(100, 1)
    rest = dense - np.nanmean(dense, axis=0)
    rest = rest - np.nanmean(rest, axis=1, keepdims=True)
    values = np.linalg.svd(np.nan_to_num(rest), compute_uv=False)
    assert values[1] > 1.15 * values[2]
