"""Random numbers by key and position: the published generator, uniform, independent of one another and of the batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.random_numbers import bits, coin_flips, fold_in, integers, permuted, row_keys, uniform


def assert_uniform(counts: np.ndarray, what: str) -> None:
    """Chi-square within five standard deviations of its mean."""
    expected, freedom = counts.sum() / len(counts), len(counts) - 1
    assert expected >= 5, "too few for the approximation"
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5 + 10, f"{what}: {chi_square:.0f} instead of {freedom}"


def test_bits_are_those_of_splitmix64():
    """The first outputs of the published C program (Vigna, splitmix64.c) for the seed 1234567."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert bits(np.array([1234567], np.uint64), np.arange(5)).tolist() == expected


def test_keys_and_purposes_are_distinct_and_repeat():
    keys = [row_keys(seed, np.full(500, epoch), np.arange(500)) for seed in (0, 1, 2**40, -1) for epoch in range(3)]
    keys += [fold_in(keys[0], purpose) for purpose in ("mlm", "nsp", "")]
    assert len(np.unique(np.concatenate(keys))) == 15 * 500
    assert np.array_equal(keys[0], row_keys(0, np.zeros(500, int), np.arange(500)))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 10**12), min_size=1, max_size=20), st.integers(1, 70))
def test_numbers_do_not_depend_on_the_batch(seed, indices, length):
    indices, counts = np.array(indices), np.arange(len(indices)) * 37 % 200
    keys = row_keys(seed, np.zeros_like(indices), indices)
    whole = bits(keys[:, None], np.arange(length)), coin_flips(keys, counts), permuted(keys, indices % length, length)
    for row in range(len(indices)):
        one = row_keys(seed, np.zeros(1, int), indices[row : row + 1])
        assert np.array_equal(bits(one, np.arange(length)), whole[0][row])
        assert coin_flips(one, counts[row : row + 1]) == whole[1][row]
        assert permuted(one, indices[row : row + 1] % length, length) == whole[2][row]


@pytest.mark.parametrize("axis", ["positions", "indices", "epochs", "seeds"])
def test_numbers_are_uniform_and_neighbours_independent(axis):
    count = 40_000
    ramp, zeros = np.arange(count), np.zeros(count, int)
    numbers = {
        "positions": lambda: uniform(row_keys(7, [0], [0]), ramp),
        "indices": lambda: uniform(row_keys(7, zeros, ramp), 0),
        "epochs": lambda: uniform(row_keys(7, ramp, zeros), 0),
        "seeds": lambda: np.concatenate([uniform(row_keys(seed, [0], [0]), 0) for seed in range(count // 4)]),
    }[axis]()
    assert numbers.min() >= 0 and numbers.max() < 1
    cells = (numbers * 10).astype(int)
    assert_uniform(np.bincount(cells, minlength=10), "single numbers")
    assert_uniform(np.bincount(cells[:-1] * 10 + cells[1:], minlength=100), "pairs of neighbours")


@pytest.mark.parametrize("bound", [1, 2, 7, 1000, 2**53 - 1])
def test_integers_reach_every_value_below_the_bound(bound):
    numbers = integers(row_keys(1, [0], [0]), np.arange(50_000), bound)
    assert numbers.dtype == np.int64 and numbers.min() >= 0 and numbers.max() < bound
    assert_uniform(
        np.bincount(numbers * min(bound, 1000) // bound if bound < 2**40 else numbers // (bound // 999 + 1)), "integers"
    )


def test_coin_flips_are_binomial():
    keys = row_keys(5, np.zeros(20_000, int), np.arange(20_000))
    for count in (0, 1, 63, 64, 65, 300):
        heads = coin_flips(keys, np.full(20_000, count))
        assert heads.min() >= 0 and heads.max() <= count
        assert abs(heads.mean() - count / 2) <= 5 * (count / 4 / 20_000) ** 0.5
        assert abs(heads.var() - count / 4) <= 0.05 * count / 4


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**63 - 1))
def test_permutations_hold_each_place_once(size, seed):
    keys = np.broadcast_to(row_keys(seed, [0]), size)
    assert sorted(permuted(keys, np.arange(size), size)) == list(range(size))


@pytest.mark.parametrize("size", [2, 3, 5, 16, 100])
def test_places_are_as_likely(size):
    keys = row_keys(0, np.arange(3000 * min(size, 10)))
    for place in {0, size // 2, size - 1}:
        images = permuted(keys, np.full(len(keys), place), size)
        assert_uniform(np.bincount(images, minlength=size), f"the image of {place} of {size}")


def test_neighbours_are_separated():
    """Differences between the images of neighbours are spread over the range, as those of random permutations are."""
    size = 10_007
    images = permuted(np.broadcast_to(row_keys(3, [0]), size), np.arange(size), size)
    assert_uniform(np.bincount(np.diff(images) % size * 20 // size, minlength=20), "differences")
