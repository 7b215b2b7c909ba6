from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megabase.data.labeled import LabeledSequences, LabelTable, label_splits
from megabase.data.leaks import (
    RowKmers,
    count_leaks,
    genome_overlap,
    leak_hint,
    rows_in_others,
)
from megabase.data.regions import Regions
from megabase.genome import alphabet
from megabase.genome.alphabet import pack_kmers
from megabase.genome.store import Genome

RNG = np.random.default_rng(5)


def letters(n: int) -> str:
    return "".join(RNG.choice(list("ACGT"), n))


def turned(text: str) -> str:
    return alphabet.decode(alphabet.reverse_complement(alphabet.encode(text)))


def rows_of(**splits: list[tuple[str, str]]) -> dict[str, LabeledSequences]:
    return label_splits(
        {
            name: LabelTable(name, [s for s, _ in rows], [(x,) for _, x in rows], ("label",))
            for name, rows in splits.items()
        },
        "classes",
    )


@pytest.mark.parametrize("k", [1, 2, 3, 7, 16, 31])
def test_words_are_those_of_the_letters(k: int) -> None:
    text = letters(20) + "N" + letters(40)
    words, known = pack_kmers(alphabet.encode(text.lower()), k, canonical=True)
    for i in range(len(text) - k + 1):
        piece = text[i : i + k]
        assert bool(known[i]) == ("N" not in piece)
        if "N" not in piece:
            number = {s: sum("ACGT".index(b) << 2 * (k - 1 - j) for j, b in enumerate(s))
                      for s in (piece, turned(piece))}  # fmt: skip
            assert int(words[i]) == min(number.values())
    assert pack_kmers(alphabet.encode("ACG"), 4, canonical=True)[0].size == 0


def test_words_do_not_run_into_the_next_row() -> None:
    rows = rows_of(train=[("ACGT" * 5, "a"), ("TTTT", "b"), ("GATTACA" * 3, "a")])["train"]
    words, row, _ = RowKmers.of(rows)
    assert set(row.tolist()) == {0, 2}
    expected = {int(w) for w in pack_kmers(alphabet.encode("ACGT" * 5), 16, canonical=True)[0]}
    assert {int(w) for w in words[row == 0]} == expected


def known_leaks() -> dict[str, LabeledSequences]:
    base = [letters(80) for _ in range(12)]
    nearly = base[3][:40] + letters(4) + base[3][44:]
    moved = letters(10) + base[4][:70]
    train = [(s, "ab"[i % 2]) for i, s in enumerate(base)] + [(turned(base[0]), "a")]
    valid = [(letters(80), "a"), (base[6].lower(), "a")]
    test = [
        (base[1], "b"),  # equal
        (base[2], "b"),  # equal, another label
        (turned(base[5]), "b"),  # reverse complement
        (turned(nearly), "b"),  # near, other strand
        (moved, "a"),  # near, shifted
        (letters(80), "a"),
        (base[7][:30] + letters(50), "b"),  # too little in common
    ]
    return rows_of(train=train, valid=valid, test=test)


def test_finds_what_was_planted() -> None:
    splits = known_leaks()
    found = count_leaks(splits)
    assert found["across"]["train-test"] == {
        "exact": 2, "reverse_complement": 1, "near": 2, "other_label": 1,
    }  # fmt: skip
    assert found["across"]["train-valid"]["exact"] == 1
    assert found["within"] == {"train": 1, "valid": 0, "test": 0}
    assert found["classes"] == {"a": (1, 2), "b": (4, 5)}
    inside = rows_in_others(splits["test"], [splits["train"]])
    assert np.flatnonzero(inside).tolist() == [0, 1, 2, 3, 4]
    valid = rows_in_others(splits["valid"], [splits["test"], splits["train"]])
    assert np.flatnonzero(valid).tolist() == [1]
    bad = rows_in_others(splits["train"], [splits["test"]], both_ways=True)
    assert np.flatnonzero(bad).tolist() == [1, 2, 3, 4, 5]
    kept = {**splits, "train": splits["train"].take(np.flatnonzero(~bad))}
    assert not any(count_leaks(kept)["across"]["train-test"].values())


def test_a_hint_names_what_is_in_train_and_nothing_else() -> None:
    splits = known_leaks()
    hint = leak_hint(splits)
    assert hint is not None
    assert "5 of 7 test rows are in train (2 equal, 1 as reverse complement, 2 near; 1 with" in hint
    assert "1 of 2 valid rows are in train (1 equal" in hint
    clean = {
        "train": splits["train"],
        "test": rows_of(train=[(letters(80), x) for x in "ab"])["train"],
    }
    assert leak_hint(clean) is None
    assert leak_hint({"train": splits["train"]}) is None


def test_rows_of_the_pretraining_regions(tmp_path: Path) -> None:
    genome = letters(4000)
    fasta = tmp_path / "g.fa"
    fasta.write_text(f">chr1\n{genome}\n")
    store = Genome.build([fasta], tmp_path / "g.mb")
    inside, outside = genome[500:700], genome[2500:2700]
    splits = rows_of(
        train=[(inside, "a"), (letters(200), "b")],
        test=[(turned(genome[900:1100]), "a"), (outside, "b"), (turned(outside), "b")],
    )
    found = genome_overlap(splits, store, Regions.read(store, ["chr1:1-2,000"]))
    assert found["rows"] == {"train": 1, "test": 1}
    assert "2,000 bases" in found["genome"]
