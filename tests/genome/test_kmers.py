"""Packed k-mers against text, at every k."""

from __future__ import annotations

import pytest

from megabase.genome.alphabet import encode
from megabase.genome.kmers import canonical_kmers, pack_kmers

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
    canonical, same = canonical_kmers(encode(DNA), k)
    assert known.tolist() == same.tolist() == whole
    for text, fits, one, both in zip(texts, whole, kmers.tolist(), canonical.tolist(), strict=True):
        if fits:
            assert one == number(text)
            assert both == min(number(text), number(other_strand(text)))


def test_short_sequences_have_none() -> None:
    assert not len(pack_kmers(encode("AC"), 3)[0])
    assert not len(canonical_kmers(encode(""), 1)[0])
