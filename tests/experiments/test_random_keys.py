"""Keys and choices against plain Python: whole numbers of any length, and lists from which numbers are taken."""

import numpy as np
import pytest
from plain_draws import plain_choice, plain_keys
from scipy.stats import chisquare

from adjoint_meta.experiments import random_keys
from adjoint_meta.experiments.random_keys import choose, keys, whole


def test_the_hash_is_splitmix64():
    """The generator's first numbers from 1234567, as printed for it at rosettacode.org/wiki/Pseudo-random_numbers."""
    state = np.uint64(1234567) + random_keys.GOLDEN * np.arange(1, 6, dtype=np.uint64)
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert random_keys._mix(state).tolist() == published


@pytest.mark.parametrize("seed", [0, 7, 2**63, 2**64 + 5])
def test_keys_depend_on_seed_stream_and_number_alone(seed):
    numbers = np.array([0, 1, 5, 2**40], dtype=np.uint64)
    for stream in (0, 2):
        got = keys(seed, stream, numbers, 6)
        assert got.tolist() == [plain_keys(seed, stream, int(number), 6) for number in numbers]


def test_no_two_keys_of_different_seeds_streams_and_numbers_are_equal():
    numbers = np.arange(100, dtype=np.uint64)
    every = [keys(seed, stream, numbers, 20) for seed in (0, 1, 2**64) for stream in (0, 1)]
    assert len(np.unique(np.stack(every))) == 6 * 100 * 20


@pytest.mark.parametrize(("among", "count"), [(5, 5), (20, 16), (1028, 20), (1, 1)])
def test_choices_are_taken_from_what_is_left(among, count):
    draws = keys(3, 0, np.arange(50, dtype=np.uint64), count)
    got = choose(draws, among)
    assert got.tolist() == [plain_choice(row, among) for row in draws.tolist()]
    assert all(len(set(row)) == count for row in got.tolist())
    assert got.min() >= 0 and got.max() < among


def test_every_row_has_its_own_number_to_choose_among():
    among = np.array([[3, 4], [10, 600]])
    draws = keys(1, 1, np.arange(2, dtype=np.uint64), 6).reshape(2, 2, 3)
    got = choose(draws, among)
    for index in np.ndindex(2, 2):
        assert got[index].tolist() == plain_choice(draws[index].tolist(), int(among[index]))


def test_ordered_choices_are_uniform():
    """All 60 ordered triples of five, equally often: chi-square at a seed for which p is nothing special."""
    chosen = choose(keys(11, 0, np.arange(30_000, dtype=np.uint64), 3), 5)
    counts = np.bincount(chosen @ [25, 5, 1], minlength=125)
    assert np.count_nonzero(counts) == 60
    assert chisquare(counts[counts > 0]).pvalue > 0.01


def test_whole_numbers_are_uniform():
    drawn = whole(keys(5, 0, np.arange(200, dtype=np.uint64), 100), 17)
    assert chisquare(np.bincount(drawn.ravel(), minlength=17)).pvalue > 0.01
