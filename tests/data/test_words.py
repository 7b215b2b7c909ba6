from __future__ import annotations

import numpy as np
import pytest

from megabase.data import leaks as words
from megabase.data.labeled import LabeledSequences, LabelTable, label_splits
from megabase.data.leaks import RowKmers, overlap_groups

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def labelled(rows: list[tuple[str, str]]) -> LabeledSequences:
    text = LabelTable("x", [s for s, _ in rows], [(label,) for _, label in rows], ("label",))
    return label_splits({"train": text}, "classes")["train"]


def some_rows(seed: int, count: int) -> list[tuple[str, str]]:
    """Draw pieces of one short sequence, on both strands, and unrelated ones, a few too short."""
    rng = np.random.default_rng(seed)
    base = "".join(np.random.default_rng(99).choice(list("ACGT"), 150))
    rows: list[tuple[str, str]] = []
    for number in range(count):
        start, length = int(rng.integers(0, 110)), int(rng.integers(10, 40))
        piece = base[start : start + length]
        if number % 4 == 1:
            piece = piece.translate(COMPLEMENT)[::-1]
        if number % 4 == 2:
            piece = "".join(rng.choice(list("ACGTN"), length, p=[0.24] * 4 + [0.04]))
        rows.append((piece, "abc"[number % 3]))
    return rows


def word_set(letters: str) -> set[str]:
    pieces = [letters[i : i + 16] for i in range(len(letters) - 15)]
    return {min(p, p.translate(COMPLEMENT)[::-1]) for p in pieces if "N" not in p}


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("chunk", [3, 4_000_000])
def test_shares_are_those_of_sets_of_words(
    same: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "_CHUNK", chunk)
    train = some_rows(1, 24)
    asked = train if same else some_rows(2, 17)
    others = labelled(train)
    held = RowKmers.of(others)
    own = held if same else RowKmers.of(labelled(asked))
    found = own.largest_shares(held, others.labels, others.outputs)
    expected = np.zeros((len(asked), 3), dtype=np.float32)
    for i, (text, _) in enumerate(asked):
        own = word_set(text)
        for j, (other, label) in enumerate(train):
            if own and not (same and i == j):
                share = len(own & word_set(other)) / len(own)
                expected[i, "abc".index(label)] = max(expected[i, "abc".index(label)], share)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert expected.max() > 0


def test_rows_without_words_share_nothing() -> None:
    rows = labelled([("ACGT", "a"), ("ACGT", "b")])
    own = RowKmers.of(rows)
    assert own.largest_shares(own, rows.labels, 2).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_groups_are_the_connected_rows(share: float) -> None:
    rows = some_rows(3, 40)
    found = overlap_groups(labelled(rows), share)
    sets = [word_set(text) for text, _ in rows]
    expected = list(range(len(rows)))
    changed = True
    while changed:
        changed = False
        for i, one in enumerate(sets):
            for j, two in enumerate(sets):
                joined = one and two and len(one & two) >= share * len(one)
                lowest = min(expected[i], expected[j])
                if joined and (expected[i], expected[j]) != (lowest, lowest):
                    expected[i] = expected[j] = lowest
                    changed = True
    assert found.tolist() == expected
    assert 1 < len(set(expected)) < len(rows)


def test_a_chain_of_rows_is_one_group() -> None:
    base = "".join(np.random.default_rng(4).choice(list("ACGT"), 2000))
    # Neighbours share half; the ends of the chain share nothing.
    rows = [(base[20 * i : 20 * i + 40 + 15], "a") for i in range(90)]
    order = np.random.default_rng(5).permutation(len(rows))
    rows = [rows[i] for i in order] + [("ACGTTGCA" * 6, "b"), ("ACG", "b")]
    assert overlap_groups(labelled(rows), 0.5).tolist() == [0] * 90 + [90, 91]
