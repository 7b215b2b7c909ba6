"""Markov baselines: hand-made counts, a plain dictionary implementation, fitted rates."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megabase.data.regions import Regions
from megabase.errors import InputError
from megabase.evaluate.markov import DEFAULT_RATE, _MarkovModel, train_markov
from megabase.genome.alphabet import encode
from megabase.genome.store import Genome


def dictionary_model(pieces: list[str], order: int, rate: float) -> Callable[[str, int], float]:
    """Interpolated probabilities as one would write them down: strings and dictionaries."""
    counts = {}
    for piece in pieces:
        for i in range(len(piece)):
            for k in range(order + 1):
                word = piece[i - k : i + 1] if i >= k else ""
                if word and set(word) <= set("ACGT"):
                    counts[word] = counts.get(word, 0) + 1

    def probability(text: str, i: int) -> float:
        result = 0.25
        for k in range(order + 1):
            word = text[i - k : i + 1] if i >= k else ""
            if not word or set(word) - set("ACGT"):
                return result
            total = sum(counts.get(word[:-1] + base, 0) for base in "ACGT")
            result = (counts.get(word, 0) + rate * result) / (total + rate)
        return result

    return probability


def test_hand_computed_example() -> None:
    model = _MarkovModel(1)
    model.add(encode("AACAAC"))
    # A follows A twice, C follows A twice, A follows C once; six bases in all.
    assert model.counts(0).tolist() == [[4, 2, 0, 0]]
    assert model.counts(1)[0].tolist() == [2, 2, 0, 0]
    assert model.counts(1)[1].tolist() == [1, 0, 0, 0]
    rate = 2.0
    p_a, p_c = (4 + 2 * 0.25) / 8, (2 + 2 * 0.25) / 8
    found = np.exp(model.log_probabilities(encode("ACA"), rates=rate))
    assert found[0] == pytest.approx([p_a, p_c, p_a])
    assert found[1] == pytest.approx([p_a, (2 + 2 * p_c) / 6, (1 + 2 * p_a) / 3])


@pytest.mark.parametrize("order", [0, 1, 3, 5])
def test_equals_dictionaries_on_dna_with_gaps(order: int) -> None:
    generator = np.random.default_rng(order)
    pieces = ["".join(generator.choice(list("ACGTN"), p=[0.3, 0.2, 0.2, 0.2, 0.1], size=300))
              for _ in range(3)]  # fmt: skip
    text = "".join(generator.choice(list("ACGTN"), p=[0.3, 0.2, 0.2, 0.2, 0.1], size=200))
    model = _MarkovModel(order)
    for piece in pieces:
        model.add(encode(piece))
    expected = dictionary_model(pieces, order, 3.0)
    found = model.log_probabilities(encode(text.lower()), rates=3.0)[-1]
    for i, letter in enumerate(text):
        if letter == "N":
            assert math.isnan(found[i])
        else:
            assert math.exp(found[i]) == pytest.approx(expected(text, i))


def test_probabilities_of_four_bases_sum_to_one() -> None:
    model = _MarkovModel(4)
    model.add(encode("ACGTTGCAACGGTCATTACGATCGATTTACG" * 4))
    total = sum(np.exp(model.log_probabilities(encode("ACGGT" + base), first=5)) for base in "ACGT")
    assert total == pytest.approx(np.ones((5, 1)))


def test_pieces_cut_anywhere_give_the_same_counts(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    codes = generator.integers(0, 5, 5_000).astype(np.uint8)
    whole, parts = _MarkovModel(3), _MarkovModel(3)
    whole.add(codes)
    for start in range(0, codes.size, 617):
        first = min(3, start)
        parts.add(codes[start - first : start + 617], first)
    for order in range(4):
        np.testing.assert_array_equal(whole.counts(order), parts.counts(order))


def test_rows_are_scored_like_single_sequences() -> None:
    generator = np.random.default_rng(2)
    model = _MarkovModel(2)
    rows = generator.integers(0, 5, (6, 50)).astype(np.uint8)
    model.add(rows)
    together = model.log_probabilities(rows, first=7)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(together[:, i], model.log_probabilities(row, first=7))


def store_of(tmp_path: Path, **contigs: str) -> Genome:
    fasta = tmp_path / "genome.fa"
    fasta.write_text("".join(f">{name}\n{text}\n" for name, text in contigs.items()))
    return Genome.build(fasta, tmp_path / "genome.mb")


def test_training_stays_inside_the_regions(tmp_path: Path) -> None:
    store = store_of(tmp_path, one="A" * 100 + "C" * 100, two="G" * 100)
    model = train_markov(store, Regions.of([0, 1], [0, 50], [100, 60]), 2)
    assert model.counts(0).tolist() == [[100, 0, 10, 0]]
    # The ten G begin without context, so two of them have no context of two bases.
    assert model.counts(2).sum() == 98 + 8


def test_fitted_rates_beat_the_fixed_one_on_noise(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    noise = "".join(generator.choice(list("ACGT"), size=60_000))
    store = store_of(tmp_path, noise=noise)
    model = train_markov(store, Regions.of([0], [0], [50_000]), 8)
    assert model.bases == 50_000
    held_out = store.view(0)[50_000:]
    fixed = -model.log_probabilities(held_out, 8)[-1].mean()
    fitted = -model.log_probabilities(held_out, 8, model.fitted_rates)[-1].mean()
    # In noise long contexts say nothing; a fitted rate says so, a fixed one overfits.
    assert fitted < fixed - 0.05
    assert math.exp(fitted) == pytest.approx(4.0, abs=0.03)


def test_unusable_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="between 0 and 14, found 15"):
        _MarkovModel(15)
    with pytest.raises(InputError, match="3 of them"):
        _MarkovModel(2).log_probabilities(encode("ACGT"), rates=[1.0])
    store = store_of(tmp_path, gap="N" * 50)
    with pytest.raises(InputError, match="hold no A, C, G or T"):
        train_markov(store, Regions.whole(store.lengths), 2)


def test_default_rate_is_eight() -> None:
    assert DEFAULT_RATE == 8.0
