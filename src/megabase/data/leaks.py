"""Rows that occur more than once: the same, as their reverse complement, or nearly.

A row leaks when a row of another split tells its answer. Exact copies and reverse complements are
found by a hash of the bases. Near duplicates share k-mers (k = 16 here, each counted with its
reverse complement): a row is near another when at least a share ``threshold`` of its distinct
k-mers lies in that one row. Of large sets only a fixed share of all k-mers is looked at, chosen by
hash, the same ones everywhere (FracMinHash).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from megabase.data.genome_overlap import Overlap
from megabase.data.labelled import LabelledSequences
from megabase.data.words import RowWords, one_in, shared_words
from megabase.genome import alphabet

__all__ = [
    "Leaks",
    "describe_pair",
    "leaking_rows",
    "leaks",
    "overlap_hint",
    "rows_in_others",
]


_Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """Counts of a split against another."""

    exact: int
    """Rows of the second split that occur in the first, letter by letter."""
    reverse_complement: int
    """Further rows whose reverse complement occurs there."""
    near: int
    """Further rows that are nearly the same as one there, on either strand."""
    other_label: int
    """Of the exact and reverse-complement rows, those that have another label there."""


@dataclass(frozen=True)
class Leaks:
    """What was found."""

    rows: dict[str, int]
    """Rows of each split."""
    within: dict[str, int]
    """By split, rows that repeat an earlier row of the split (either strand)."""
    across: dict[str, Pair]
    """By pair, such as "train-test"."""
    threshold: float
    """Share of the words behind `near`."""
    sampled: int
    """One of so many words was looked at."""
    dropped: dict[str, int] = field(default_factory=dict)
    """By split, rows that were removed."""
    pretraining: list[Overlap] = field(default_factory=list)
    """By genome."""
    classes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By class, test rows that occur in train (any kind), and all test rows. Empty without train
    and test, and for labels that are no classes."""

    def to_dict(self) -> dict[str, Any]:
        """Turn into plain values."""
        return asdict(self)


def _digests(rows: LabelledSequences, *, reverse: bool) -> npt.NDArray[np.bytes_]:
    """Hash every row, or its reverse complement, to 16 bytes; case does not matter."""
    codes = rows.codes & np.uint8(alphabet.BASE_BITS)
    found = bytearray()
    for index in range(len(rows)):
        piece = codes[rows.offsets[index] : rows.offsets[index + 1]]
        if reverse:
            piece = alphabet.reverse_complement(piece)
        found += hashlib.blake2b(piece.tobytes(), digest_size=16).digest()
    return np.frombuffer(bytes(found), dtype="S16")


def _near_pairs(one: _Index, two: _Index, threshold: float) -> tuple[_Rows, _Rows]:
    """List pairs (row of one, row of two) where the second holds enough of the first's words."""
    sizes = one.words.sizes
    first: list[_Rows] = [np.zeros(0, dtype=np.int64)]
    second: list[_Rows] = [np.zeros(0, dtype=np.int64)]
    for row, other, shared in shared_words(one.words, two.words):
        near = shared >= threshold * sizes[row]
        first.append(row[near])
        second.append(other[near])
    return np.concatenate(first), np.concatenate(second)


@dataclass(frozen=True)
class _Index:
    """Hashes and words of a split."""

    rows: LabelledSequences
    forward: npt.NDArray[np.bytes_]
    backward: npt.NDArray[np.bytes_]
    words: RowWords


def _index(rows: LabelledSequences, every: int) -> _Index:
    words = RowWords.of(rows, every)
    return _Index(rows, _digests(rows, reverse=False), _digests(rows, reverse=True), words)


def _kinds(
    train: _Index, other: _Index, threshold: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Tell which rows of `other` occur in `train`: exactly, as reverse complement, nearly."""
    exact = np.isin(other.forward, train.forward)
    turned = np.isin(other.backward, train.forward) & ~exact
    near = np.zeros(len(other.rows), dtype=bool)
    near[_near_pairs(other, train, threshold)[0]] = True
    return exact, turned, near & ~exact & ~turned


def leaks(splits: Mapping[str, LabelledSequences], threshold: float = 0.5) -> Leaks:
    """Count rows that occur in several splits, or several times in one.

    Parameters
    ----------
    splits
        train, valid, test; any may be missing.
    threshold
        Share of the words of a row that make it a near duplicate.
    """
    every = one_in(*splits.values())
    indices = {name: _index(rows, every) for name, rows in splits.items()}
    across: dict[str, Pair] = {}
    classes: dict[str, tuple[int, int]] = {}
    for first, second in (("train", "test"), ("valid", "test"), ("train", "valid")):
        if first in indices and second in indices:
            one, two = indices[first], indices[second]
            exact, turned, near = _kinds(one, two, threshold)
            across[f"{first}-{second}"] = Pair(
                int(exact.sum()),
                int(turned.sum()),
                int(near.sum()),
                _other_labels(one, two, exact, turned),
            )
            if (first, second) == ("train", "test"):
                classes = _by_class(two.rows, exact | turned | near)
    return Leaks(
        rows={name: len(rows) for name, rows in splits.items()},
        within={name: _repeats(index) for name, index in indices.items()},
        across=across,
        threshold=threshold,
        sampled=every,
        classes=classes,
    )


def describe_pair(pair: str, counts: Mapping[str, int], rows: Mapping[str, int]) -> str:
    """Say what one split holds of another.

    Parameters
    ----------
    pair
        Such as "train-test".
    counts
        Fields of a :class:`Pair`.
    rows
        Rows of each split.
    """
    first, second = pair.split("-")
    total = counts["exact"] + counts["reverse_complement"] + counts["near"]
    text = (
        f"{total:,} of {rows[second]:,} {second} rows are in {first} "
        f"({counts['exact']:,} equal, {counts['reverse_complement']:,} as reverse complement, "
        f"{counts['near']:,} near"
    )
    if counts["other_label"]:
        text += f"; {counts['other_label']:,} with another label"
    return text + ")"


def overlap_hint(splits: Mapping[str, LabelledSequences]) -> str | None:
    """Warn of test (or validation) rows that are in train; None when there are none.

    Splits with a class for every base are not looked at: places divide them.
    """
    if splits["train"].kind == "nucleotides":
        return None
    found = leaks({name: rows for name, rows in splits.items() if len(rows)})
    said = [
        describe_pair(pair, asdict(counts), found.rows)
        for pair, counts in found.across.items()
        if pair.startswith("train-") and counts.exact + counts.reverse_complement + counts.near
    ]
    if not said:
        return None
    return (
        f"overlap: {'; '.join(said)}. What is learnt by heart counts there and says little of new "
        "sequences; megabase benchmark measures the others apart, and splits rows that overlap "
        "together"
    )


def _by_class(rows: LabelledSequences, bad: npt.NDArray[np.bool_]) -> dict[str, tuple[int, int]]:
    """Count leaking rows and all rows of each class."""
    if rows.kind != "classes":
        return {}
    return {
        name: (int((bad & (rows.labels == number)).sum()), int((rows.labels == number).sum()))
        for number, name in enumerate(rows.classes)
    }


def _repeats(index: _Index) -> int:
    forward, backward = index.forward, index.backward
    return len(index.rows) - len(np.unique(np.minimum(forward.astype("O"), backward.astype("O"))))


def _other_labels(
    train: _Index,
    other: _Index,
    exact: npt.NDArray[np.bool_],
    turned: npt.NDArray[np.bool_],
) -> int:
    label: dict[bytes, set[bytes]] = {}
    for key, value in zip(train.forward.tolist(), train.rows.labels, strict=True):
        label.setdefault(key, set()).add(np.asarray(value).tobytes())
    different = 0
    for rows, keys in ((exact, other.forward), (turned, other.backward)):
        for row in np.flatnonzero(rows).tolist():
            own = np.asarray(other.rows.labels[row]).tobytes()
            different += own not in label[bytes(keys[row])]
    return different


def leaking_rows(
    rows: LabelledSequences, test: LabelledSequences, threshold: float = 0.5
) -> npt.NDArray[np.bool_]:
    """Tell which training rows equal, mirror or nearly equal a test row.

    A pair is near when the threshold is met from either side, so after dropping these rows no test
    row has a near duplicate left.

    Returns
    -------
    numpy.ndarray
        bool (rows,).
    """
    every = one_in(rows, test)
    one, two = _index(rows, every), _index(test, every)
    exact, turned, near = _kinds(two, one, threshold)
    found = exact | turned | near
    found[_near_pairs(two, one, threshold)[1]] = True
    return found


def rows_in_others(
    test: LabelledSequences, others: Sequence[LabelledSequences], threshold: float = 0.5
) -> npt.NDArray[np.bool_]:
    """Tell which test rows occur in other splits: equal, as reverse complement, or nearly.

    Parameters
    ----------
    test
        Rows that are asked about.
    others
        Training and validation rows.
    threshold
        Share of the words of a test row that make it a near duplicate.

    Returns
    -------
    numpy.ndarray
        bool (test rows,).
    """
    every = one_in(test, *others)
    asked = _index(test, every)
    found = np.zeros(len(test), dtype=bool)
    for rows in others:
        for kind in _kinds(_index(rows, every), asked, threshold):
            found |= kind
    return found
