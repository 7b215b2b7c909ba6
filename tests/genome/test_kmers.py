"""Packed k-mers against text, at every k; dinucleotide shuffles against all orders there are."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from megabase.genome.alphabet import dinucleotide_shuffle, encode, pack_kmers

DNA = "ACGTNacgtTTGCAANRGGATCCAGTACCGTTTAACGATTGCAGTCATGCA" * 2


def number(text: str) -> int:
    return int("0" + "".join(str("ACGT".index(letter)) for letter in text), 4)


def other_strand(text: str) -> str:
    return text[::-1].translate(str.maketrans("ACGT", "TGCA"))


@pytest.mark.parametrize("k", [*range(1, 20), 31, 32])
def test_packing_equals_text(k: int) -> None:
    upper = DNA.upper()
    texts = [upper[i : i + k] for i in range(len(upper) - k + 1)]
    whole = [set(text) <= set("ACGT") for text in texts]
    kmers, known = pack_kmers(encode(DNA), k)
    canonical, same = pack_kmers(encode(DNA), k, canonical=True)
    assert known.tolist() == same.tolist() == whole
    for text, fits, one, both in zip(texts, whole, kmers.tolist(), canonical.tolist(), strict=True):
        if fits:
            assert one == number(text)
            assert both == min(number(text), number(other_strand(text)))


def test_short_sequences_have_none() -> None:
    assert not len(pack_kmers(encode("AC"), 3)[0])
    assert not len(pack_kmers(encode(""), 1, canonical=True)[0])


@pytest.mark.parametrize("text", ["TGACTCAGTTCA", "AAAAAAAA", "ACGNNTANCG", "ACG", "A", ""])
def test_dinucleotide_shuffles_are_all_orders_alike(text: str) -> None:
    rng, codes = np.random.default_rng(0), encode(text)
    pairs = Counter(pairwise(codes))
    found = Counter(tuple(dinucleotide_shuffle(codes, rng).tolist()) for _ in range(3000))
    for one in found:
        assert Counter(pairwise(one)) == pairs
        assert one[:1] == tuple(codes[:1])

    def orders(one: tuple[int, ...], left: Counter[tuple[int, int]]) -> set[tuple[int, ...]]:
        if len(one) >= len(codes):
            return {one}
        steps = [pair for pair in left if pair[0] == one[-1] and left[pair] > 0]
        return set[tuple[int, ...]]().union(
            *(orders((*one, end), left - Counter([(begin, end)])) for begin, end in steps)
        )

    expected = orders(tuple(codes[:1].tolist()), pairs)
    assert set(found) == expected
    mean = 3000 / len(expected)
    chi_square = sum((found[one] - mean) ** 2 / mean for one in expected)
    assert chi_square < 2 * len(expected)
