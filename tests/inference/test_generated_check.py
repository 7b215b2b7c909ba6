"""Distances and shares that can be worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from megabase.genome.alphabet import encode
from megabase.genome.store import Genome
from megabase.inference.generation.checks import _count_all, _kmer_distance, check_generated
from megabase.inference.generation.generate import Generated


def written(*texts: str) -> list[Generated]:
    return [Generated(i, "", "", t, -len(t) * np.log(2), "length") for i, t in enumerate(texts)]


def test_kmers_are_counted_at_every_position_and_not_across_n(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "ACGTNacGGTACA"
    for part in (1 << 22, 2, 3):
        monkeypatch.setattr("megabase.inference.generation.checks._PIECE", part)
        counts = _count_all([encode(text)], 2)
        for i, kmer in enumerate(a + b for a in "ACGT" for b in "ACGT"):
            wanted = sum(text.upper()[j : j + 2] == kmer for j in range(len(text)))
            assert counts[i] == wanted, kmer
    assert _count_all([encode("A"), encode("ACN")], 3).sum() == 0


def test_distance_of_tables() -> None:
    a, b = np.array([2, 0, 2, 0]), np.array([0, 5, 0, 5])
    assert _kmer_distance(a, a * 7) == 0
    assert _kmer_distance(a, b) == pytest.approx(1)
    half = _kmer_distance(np.array([1, 0]), np.array([1, 1]))
    assert half == pytest.approx((np.log2(4 / 3) + 0.5 * np.log2(2 / 3) + 0.5) / 2)
    assert np.isnan(_kmer_distance(a, a * 0))


def test_an_exact_match_to_the_genome_is_found(tmp_path: Path) -> None:
    letters = "".join(np.random.default_rng(1).choice(list("ACGT"), 5_000))
    (tmp_path / "g.fa").write_text(f">c\n{letters}\n")
    store = Genome.build(tmp_path / "g.fa", tmp_path / "g.mb")
    check = check_generated(written(letters[700:900], "GC" * 50), store, kmer=3)
    assert (check.bases, check.letters["N"]) == (300, 0)
    assert check.longest_copy == 200
    assert check.longest_copy_uniform < 20
    first, second = check.sequences
    assert (first.copy.start, first.copy.end) == (700, 900)
    assert (second.gc, second.bits_per_base) == (1.0, 1.0)
    assert check.kmer_distance > check.kmer_distance_genome


def test_longer_than_the_contigs_and_empty(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">c\nACGTACGTTG\n")
    store = Genome.build(tmp_path / "g.fa", tmp_path / "g.mb")
    found = check_generated(written("ACGTACGTTGACGT", ""), store, kmer=2)
    assert found.longest_copy == 10
    assert found.gc == 0.5
    assert np.isnan(found.sequences[1].gc)
