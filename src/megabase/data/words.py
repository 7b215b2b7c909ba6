"""Words of k bases: those of each row, those that two rows share, shares of a row in another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megabase.data.hashing import mix64
from megabase.data.labelled import LabelledSequences
from megabase.genome.kmers import canonical_kmers

__all__ = [
    "K_NEAR",
    "RowWords",
    "largest_shares",
    "one_in",
    "overlap_groups",
    "row_kmers",
    "shared_words",
]

K_NEAR = 16
"""Bases of a word where rows are compared."""
_MOST_WORDS = 20_000_000

_COMMON = 200
"""Words in more rows than this are repeats and say nothing about two rows."""
_CHUNK = 4_000_000

_Rows = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]


def row_kmers(rows: LabelledSequences, k: int, every: int = 1) -> tuple[_Words, _Rows]:
    """Give the distinct words of each row.

    Parameters
    ----------
    rows
        Sequences.
    k
        Bases of a word.
    every
        Keep one of so many words, by hash.

    Returns
    -------
    words, row : numpy.ndarray
        Pairs of a word and a row that holds it, sorted by row and word, each once.
    """
    words: list[_Words] = []
    numbers: list[_Rows] = []
    for first, last in _pieces(rows.offsets):
        start, end = int(rows.offsets[first]), int(rows.offsets[last])
        found, keep = canonical_kmers(rows.codes[start:end], k)
        row = np.repeat(np.arange(first, last), rows.lengths[first:last])
        # A word must not run from one row into the next.
        keep &= row[: len(found)] == row[k - 1 : k - 1 + len(found)]
        if every > 1:
            keep &= mix64(found) % np.uint64(every) == 0
        found, row = found[keep], row[: len(keep)][keep]
        order = np.lexsort((found, row))
        found, row = found[order], row[order]
        new = np.ones(len(found), dtype=bool)
        new[1:] = (found[1:] != found[:-1]) | (row[1:] != row[:-1])
        words.append(found[new])
        numbers.append(row[new])
    if not words:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    return np.concatenate(words), np.concatenate(numbers)


def _pieces(offsets: _Rows) -> Iterator[tuple[int, int]]:
    """Cut rows into runs of a few million bases."""
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + _CHUNK, side="right")) - 1
        last = min(max(last, first + 1), len(offsets) - 1)
        yield first, last
        first = last


def one_in(*sets: LabelledSequences) -> int:
    """Tell how many words there are to each one that is looked at, so that time and memory last."""
    bases = sum(int(rows.offsets[-1]) for rows in sets)
    return max(1, -(-bases // _MOST_WORDS))


@dataclass(frozen=True)
class RowWords:
    """The distinct words of each row of a set."""

    words: _Words
    row: _Rows
    """Which row holds each word; ascending."""
    rows: int
    """Number of rows, those without words too."""

    @classmethod
    def of(cls, rows: LabelledSequences, every: int = 1) -> RowWords:
        """Take the words of 16 bases of labelled rows, or one in so many of them."""
        return cls(*row_kmers(rows, K_NEAR, every), len(rows))

    @property
    def sizes(self) -> _Rows:
        """Words of each row: (rows,)."""
        return np.bincount(self.row, minlength=self.rows)


def shared_words(one: RowWords, two: RowWords) -> Iterator[tuple[_Rows, _Rows, _Rows]]:
    """Count the words that pairs of rows share, for all pairs that share any.

    Words that more than 200 rows of the second set hold are left out.

    Parameters
    ----------
    one, two
        Words of two sets, or of the same set twice.

    Yields
    ------
    row_of_one, row_of_two, shared : numpy.ndarray
        Each pair once. All pairs of a row of the first set come in one piece; pieces are of about
        four million hits, so that memory stays small.
    """
    words, row = one.words, one.row
    order = np.argsort(two.words, kind="stable")
    sorted_words, sorted_row = two.words[order], two.row[order]
    low = np.searchsorted(sorted_words, words, side="left")
    hits = np.searchsorted(sorted_words, words, side="right") - low
    hits[hits > _COMMON] = 0
    total, others = np.cumsum(hits), max(two.rows, 1)
    first = 0
    while first < len(words):
        before = int(total[first - 1]) if first else 0
        last = min(int(np.searchsorted(total, before + _CHUNK)) + 1, len(words))
        last = int(np.searchsorted(row, row[last - 1], side="right"))
        repeats = hits[first:last]
        source = np.repeat(row[first:last], repeats)
        place = np.repeat(low[first:last] - (np.cumsum(repeats) - repeats), repeats)
        target = sorted_row[place + np.arange(len(source))]
        pairs, shared = np.unique(source * others + target, return_counts=True)
        yield pairs // others, pairs % others, shared
        first = last


def largest_shares(
    one: RowWords, two: RowWords, labels: _Rows, classes: int, *, same: bool = False
) -> npt.NDArray[np.float32]:
    """Give, by class, the largest share of a row's words that one row of that class holds.

    Parameters
    ----------
    one
        Words of the rows that are asked about.
    two
        Words of the rows with labels.
    labels
        Class of each row of the second set.
    classes
        Number of classes.
    same
        Both sets are the same rows: a row is not compared with itself.

    Returns
    -------
    numpy.ndarray
        float32 (rows of one, classes), 0 to 1.
    """
    sizes = np.maximum(one.sizes, 1)
    found = np.zeros((one.rows, classes), dtype=np.float32)
    for row, other, shared in shared_words(one, two):
        if same:
            apart = row != other
            row, other, shared = row[apart], other[apart], shared[apart]
        np.maximum.at(found, (row, labels[other]), (shared / sizes[row]).astype(np.float32))
    return found


def overlap_groups(rows: LabelledSequences, share: float) -> _Rows:
    """Put rows that overlap into groups, directly or through others.

    Two rows belong together when one holds at least `share` of the other's distinct 16-mers, on
    either strand; words that more than 200 rows hold do not count.

    Parameters
    ----------
    rows
        Sequences.
    share
        Above 0, at most 1.

    Returns
    -------
    numpy.ndarray
        int64 (rows,): the group of each row, named by its first row.
    """
    words = RowWords.of(rows, one_in(rows))
    first: list[_Rows] = []
    second: list[_Rows] = []
    for row, other, shared in shared_words(words, words):
        near = (row != other) & (shared >= share * words.sizes[row])
        first.append(row[near])
        second.append(other[near])
    group = np.arange(len(rows))
    if not first:
        return group
    one, two = np.concatenate(first), np.concatenate(second)
    while True:
        # Every row takes the lowest group of those it touches, and of the row that names it.
        lowest = np.minimum(group[one], group[two])
        found = group.copy()
        np.minimum.at(found, one, lowest)
        np.minimum.at(found, two, lowest)
        found = found[found]
        if np.array_equal(found, group):
            return group
        group = found
