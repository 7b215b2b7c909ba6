from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megabase.data.hashing import Draws, mix64


def test_mixer_gives_the_published_sequence() -> None:
    # First outputs of SplitMix64 from state 1234567 (the test vector of its public C code).
    golden = 0x9E3779B97F4A7C15
    states = np.array([1234567 + golden * i & (2**64 - 1) for i in (1, 2, 3)], dtype=np.uint64)
    assert mix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_key_depends_on_every_word_and_their_order() -> None:
    keys = {Draws(*words).key for words in [(1,), (1, 0), (0, 1), (2, 0), (1, 0, 0)]}
    assert len(keys) == 5
    assert Draws(-1).key == Draws(2**64 - 1).key


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**63 - 1))
def test_uniform_below_is_the_high_half_of_the_exact_product(key: int, bound: int) -> None:
    words, got = Draws(key).bits(np.arange(20)), Draws(key).below(np.arange(20), bound)
    assert got.tolist() == [word * bound >> 64 for word in words.tolist()]


@pytest.mark.parametrize("bound", [1, 7, 64, 1000])
def test_uniform_below_is_uniform(bound: int) -> None:
    values = Draws(3).below(np.arange(200_000), bound)
    counts = np.bincount(values, minlength=bound)
    expected = values.size / bound
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # Mean bound - 1, variance 2 (bound - 1): five standard deviations above.
    assert chi_square <= (bound - 1) + 5 * np.sqrt(2 * bound)


def test_bits_of_neighboring_indices_and_keys_are_unrelated() -> None:
    indices = np.arange(50_000)
    first = Draws(1).floats(indices)
    second = Draws(2).floats(indices)
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert first.min() >= 0.0
    assert first.max() < 1.0


@given(st.integers(1, 700), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    got = Draws(key).permute(np.arange(size), size, np.zeros(size, np.int64))
    assert sorted(got.tolist()) == list(range(size))


def test_permutations_differ_between_keys_and_from_the_identity() -> None:
    size = 1000
    one, two = (Draws(0).permute(np.arange(size), size, np.full(size, n)) for n in (1, 2))
    assert (one == two).mean() < 0.02
    assert (one == np.arange(size)).mean() < 0.02


def test_permute_sends_each_place_anywhere() -> None:
    size, keys = 16, 20_000
    got = Draws(0).permute(np.full(keys, 3), size, np.arange(keys))
    counts = np.bincount(got, minlength=size)
    chi_square = ((counts - keys / size) ** 2 / (keys / size)).sum()
    assert chi_square < (size - 1) + 5 * np.sqrt(2 * size)
