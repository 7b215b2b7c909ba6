"""Longest exact copies: stretches of written sequences that stand, letter by letter, in a genome.

The genome is streamed; memory is that of the queries and of one part of the genome. Words of the
queries are looked up among the words of each part. From every place where both agree, unless they
already agreed one base before, the agreement is followed to its end: so the longest one is found,
not an estimate. Both strands of the genome are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megabase.genome.alphabet import BASE_BITS, N, reverse_complement
from megabase.genome.kmers import pack_kmers
from megabase.genome.store import GenomeStore

__all__ = ["Copy", "longest_copies"]

_PART = 1 << 20
_PAIRS = 1 << 20
_SHORTEST, _LONGEST = 6, 24

_Codes = NDArray[np.uint8]
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Copy:
    """The longest stretch of a query that a genome holds.

    Parameters
    ----------
    length
        Bases; 0 when the query shares no word of the shortest size looked for.
    query_start
        Where it begins in the query, 0-based.
    contig, start, end, strand
        Where it stands in the genome, 0-based half-open; the reverse strand when ``"-"``. None
        when there is none.
    """

    length: int = 0
    query_start: int = 0
    contig: str | None = None
    start: int | None = None
    end: int | None = None
    strand: str | None = None


class _Queries:
    """All queries and their reverse complements in one row of codes, with their words in order."""

    def __init__(self, queries: Sequence[_Codes], word: int) -> None:
        self.lengths = [len(query) for query in queries]
        rows: list[_Codes] = []
        starts: list[int] = []
        place = 1  # a separator before, between and after: no agreement crosses it
        for query in queries:
            plain = (query & np.uint8(BASE_BITS)).astype(np.uint8)
            for row in (plain, reverse_complement(plain)):
                rows.append(row)
                starts.append(place)
                place += len(row) + 1
        self.codes = np.full(place, N + 2, np.uint8)
        for row, start in zip(rows, starts, strict=True):
            # An N agrees with nothing, not even with an N.
            self.codes[start : start + len(row)] = np.where(row < N, row, N + 2)
        self.starts = np.array(starts, np.int64)
        words, whole = pack_kmers(self.codes, word)
        places = np.flatnonzero(whole)
        left = self.codes[places - 1]
        keys = words[places] * np.uint64(8) + left.astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        self.places, self.keys = places[order], keys[order]

    def pairs(self, words: NDArray[np.uint64], left: _Codes) -> tuple[_Ints, _Ints]:
        """Give (row in `words`, place in the queries) of equal words after unequal letters."""
        key = words * np.uint64(8)
        own = key + left.astype(np.uint64)
        begin, end = self._range(key, key + np.uint64(8))
        same_begin, same_end = self._range(own, own + np.uint64(1))
        rows = np.arange(len(words), dtype=np.int64)
        row_a, at_a = _expand(rows, begin, same_begin)
        row_b, at_b = _expand(rows, same_end, end)
        return np.concatenate((row_a, row_b)), self.places[np.concatenate((at_a, at_b))]

    def _range(self, low: NDArray[np.uint64], high: NDArray[np.uint64]) -> tuple[_Ints, _Ints]:
        return np.searchsorted(self.keys, low), np.searchsorted(self.keys, high)


def _expand(rows: _Ints, begin: _Ints, end: _Ints) -> tuple[_Ints, _Ints]:
    """List every number of the ranges, each with its row."""
    count = end - begin
    total = int(count.sum())
    before = np.repeat(np.cumsum(count) - count, count)
    return np.repeat(rows, count), np.repeat(begin, count) + np.arange(total) - before


def longest_copies(
    queries: Sequence[_Codes],
    store: GenomeStore,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Copy, ...]:
    """Find the longest exact copy of each query in a genome.

    Parameters
    ----------
    queries
        Base codes, each uint8 (length,). N agrees with nothing.
    store
        The genome, read on both strands.
    progress
        Called with genome bases read so far and in all.

    Returns
    -------
    tuple of Copy
        One for each query; of several equally long ones the first in the genome.
    """
    best = [Copy() for _ in queries]
    bases = sum(len(query) for query in queries)
    if bases == 0 or store.total_length == 0:
        return tuple(best)
    # Words about as long as chance agreements of this much DNA: few pairs, yet hardly a query
    # without one. Queries that share no such word are looked at again with shorter ones.
    chance = math.log(2 * bases * store.total_length, 4)
    word = min(_LONGEST, max(_SHORTEST, round(chance) - 2))
    todo = list(range(len(queries)))
    while todo:
        found = _search([queries[i] for i in todo], store, word, progress)
        for i, copy in zip(todo, found, strict=True):
            best[i] = copy
        todo = [i for i in todo if best[i].length == 0 and len(queries[i]) >= _SHORTEST]
        if word == _SHORTEST:
            break
        word = max(_SHORTEST, word - 4)
    return tuple(best)


def _search(
    queries: Sequence[_Codes],
    store: GenomeStore,
    word: int,
    progress: Callable[[int, int], object] | None,
) -> list[Copy]:
    table = _Queries(queries, word)
    best = [Copy() for _ in queries]
    read = 0
    for contig in store.contigs:
        codes = store.view(contig.name)
        for begin in range(0, max(0, len(codes) - word + 1), _PART):
            # One base before, for the letter to the left.
            first = max(0, begin - 1)
            part = codes[first : begin + _PART + word - 1] & np.uint8(BASE_BITS)
            words, whole = pack_kmers(part, word)
            places = np.flatnonzero(whole[begin - first :]) + (begin - first)
            left = np.where(places > 0, part[places - 1], N).astype(np.uint8)
            for i in range(0, len(places), _PAIRS):
                rows = slice(i, i + _PAIRS)
                row, query = table.pairs(words[places[rows]], left[rows])
                if len(row):
                    _follow(table, codes, places[rows][row] + first, query, word, contig.name, best)
            read += min(_PART, len(codes) - begin)
            if progress is not None:
                progress(read, store.total_length)
    return best


def _follow(
    table: _Queries,
    codes: _Codes,
    place: _Ints,
    query: _Ints,
    word: int,
    contig: str,
    best: list[Copy],
) -> None:
    """Follow agreements to their ends; keep the longest one of each query."""
    length = np.full(len(place), word, np.int64)
    active = np.arange(len(place))
    while len(active):
        at = place[active] + length[active]
        inside = at < len(codes)
        active, at = active[inside], at[inside]
        same = (codes[at] & np.uint8(BASE_BITS)) == table.codes[query[active] + length[active]]
        active = active[same]
        length[active] += 1
    number = np.searchsorted(table.starts, query, side="right") - 1
    # The longest first; among those the first in the genome.
    for i in np.lexsort((place, -length)).tolist():
        row, reverse = divmod(int(number[i]), 2)
        size = int(length[i])
        if size > best[row].length:
            offset = int(query[i] - table.starts[number[i]])
            start = table.lengths[row] - offset - size if reverse else offset
            begin = int(place[i])
            best[row] = Copy(size, start, contig, begin, begin + size, "-" if reverse else "+")
