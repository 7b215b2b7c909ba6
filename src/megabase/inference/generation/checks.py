"""Checks of generated sequences: composition, k-mers, and longest exact matches to a genome.

Longest exact matches are found, not estimated. The genome is streamed; memory is that of the
queries and of one part of the genome. K-mers of the queries are looked up among those of each part,
and agreements are followed to their ends from where they begin, on both strands.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megabase.genome.alphabet import BASE_BITS, N, encode, pack_kmers, reverse_complement
from megabase.genome.interval import Interval
from megabase.genome.store import Genome
from megabase.inference.generation.generate import Generated

_PART = 1 << 20  # bases of the genome whose k-mers are held at a time: some 20 MB
_PIECE = 1 << 22  # bases whose k-mers are counted at a time: some 100 MB of integers at most
_PAIRS = 1 << 20  # k-mers that are looked up at a time, since each may meet many in the queries
_SHORTEST, _LONGEST = 6, 24
"""Sizes of k-mers: shorter ones are everywhere by chance, and longer ones miss short matches."""
_MOST_N = 0.5
"""Share of N above which a random region says little about the genome, and is drawn again."""

_Codes = NDArray[np.uint8]
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _ExactMatch:
    """The longest part of a query that a genome contains; None where there is none."""

    length: int = 0  # bases; 0 when the query shares not even the shortest k-mer
    query_start: int = 0  # 0-based start in the query
    contig: str | None = None
    start: int | None = None  # 0-based start in the genome
    end: int | None = None  # exclusive end in the genome
    strand: str | None = None  # ``"-"`` where the genome holds the reverse complement


@dataclass(frozen=True)
class _SequenceCheck:
    """Findings about one generated sequence; names are keys of the JSON output."""

    number: int
    name: str  # of its prompt
    length: int  # bases generated
    gc: float  # share of G and C among A, C, G, T; NaN without any
    bits_per_base: float  # negative log2 probability of its letters, under the model itself
    copy: _ExactMatch  # longest exact match, prompt excluded


@dataclass(frozen=True)
class _GenerationCheck:
    """Findings about sequences against a genome; attributes are keys of the JSON output."""

    bases: int  # of all sequences together, as `gc` and `letters`
    gc: float
    letters: dict[str, int]
    kmer: int  # size of the k-mers that are compared
    genome: str
    genome_sha256: str
    genome_gc: float
    kmer_distance: float
    """Jensen-Shannon divergence, in bits, of the k-mer frequencies of sequences and genome: 0 when
    equal, 1 when they share no k-mer."""
    kmer_distance_genome: float
    """The same for random regions of the genome of the same lengths: the value to expect of real
    DNA of this amount."""
    kmer_distance_uniform: float  # the same for uniformly random letters
    longest_copy: int  # bases of the longest exact match
    longest_copy_uniform: int
    """Bases of the longest exact match of random letters of the same lengths: the value by
    chance."""
    sequences: tuple[_SequenceCheck, ...]  # one by one


def _kmer_distance(one: _Ints, other: _Ints) -> float:
    """Give the Jensen-Shannon divergence of two tables of counts, in bits; NaN without counts."""
    if not one.sum() or not other.sum():
        return float("nan")
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2

    def bits(x: NDArray[np.float64]) -> float:
        some = x > 0
        return float((x[some] * np.log2(x[some] / middle[some])).sum())

    return (bits(p) + bits(q)) / 2


def check_generated(
    generated: Sequence[Generated], genome: Genome, kmer: int = 6
) -> _GenerationCheck:
    """Compare generated sequences, without their prompts, with a genome, by k-mers of 1 to 10."""
    codes = [encode(one.sequence) for one in generated]
    rng = np.random.default_rng(0)
    uniform = [rng.integers(0, 4, len(row), dtype=np.uint8) for row in codes]
    matches = _longest_exact_matches([*codes, *uniform], genome)
    lengths = [match.length for match in matches]
    contigs = [genome.view(contig.name) for contig in genome.contigs]
    table = _count_all(contigs, kmer)
    regions = _random_regions(genome, [len(row) for row in codes], rng)
    counts = (_count_all(rows, kmer) for rows in (codes, regions, uniform))
    own, real, chance = (_kmer_distance(one, table) for one in counts)
    rows = tuple(
        _SequenceCheck(
            one.number, one.name, len(row), _gc([row]),
            -one.log_prob / np.log(2) / max(1, len(row)), match,
        )
        for one, row, match in zip(generated, codes, matches, strict=False)
    )  # fmt: skip
    text = "".join(one.sequence for one in generated)
    return _GenerationCheck(
        len(text), _gc(codes), {letter: text.count(letter) for letter in "ACGTN"}, kmer,
        genome.name, genome.checksum, _gc(contigs), own, real, chance,
        max(lengths[: len(codes)], default=0), max(lengths[len(codes) :], default=0), rows,
    )  # fmt: skip


def _count_all(rows: Iterable[_Codes], size: int) -> _Ints:
    """Count k-mers of sequences, (4 ** size,), without those that hold N."""
    counts = np.zeros(4**size, np.int64)
    for row in rows:
        for begin in range(0, len(row) - size + 1, _PIECE):
            kmers, known = pack_kmers(row[begin : begin + _PIECE + size - 1], size)
            counts += np.bincount(kmers[known].astype(np.int64), minlength=4**size)
    return counts


def _gc(rows: Iterable[_Codes]) -> float:
    """Give the share of G and C; NaN without a base."""
    bases = _count_all(rows, 1)
    return float((bases[1] + bases[2]) / bases.sum()) if bases.any() else float("nan")


def _random_regions(
    genome: Genome, lengths: Sequence[int], rng: np.random.Generator
) -> list[_Codes]:
    """Fetch random regions; those that are mostly N are drawn again, a few times."""
    found: list[_Codes] = []
    for length in lengths:
        ends = np.cumsum(np.maximum(genome.lengths - length + 1, 0))
        codes = np.empty(0, np.uint8)
        if length and not ends[-1]:  # no contig is as long: the whole of the longest one
            codes = genome.view(genome.contigs[int(genome.lengths.argmax())].name)
        for _ in range(20 if length and ends[-1] else 0):
            position = int(rng.integers(int(ends[-1])))
            index = int(np.searchsorted(ends, position, side="right"))
            start = position - int(ends[index - 1]) * (index > 0)
            name = genome.contigs[index].name
            codes = genome.fetch(Interval(name, start, start + length))
            if ((codes & np.uint8(BASE_BITS)) < N).mean() > _MOST_N:
                break
        found.append(codes)
    return found


class _Queries:
    """All queries and their reverse complements in one array of codes, with sorted k-mers."""

    def __init__(self, queries: Sequence[_Codes], k: int) -> None:
        self.lengths = [len(query) for query in queries]
        rows: list[_Codes] = []
        starts: list[int] = []
        end = 1  # a separator before, between and after: no agreement crosses it
        for query in queries:
            plain = (query & np.uint8(BASE_BITS)).astype(np.uint8)
            for row in (plain, reverse_complement(plain)):
                rows.append(row)
                starts.append(end)
                end += len(row) + 1
        self.codes = np.full(end, N + 2, np.uint8)
        for row, start in zip(rows, starts, strict=True):
            # An N agrees with nothing, not even with an N.
            self.codes[start : start + len(row)] = np.where(row < N, row, N + 2)
        self.starts = np.array(starts, np.int64)
        kmers, known = pack_kmers(self.codes, k)
        positions = np.flatnonzero(known)
        left = self.codes[positions - 1]
        keys = kmers[positions] * np.uint64(8) + left.astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        self.positions, self.keys = positions[order], keys[order]

    def pairs(self, kmers: NDArray[np.uint64], left: _Codes) -> tuple[_Ints, _Ints]:
        """Give (row of `kmers`, position in the queries) of equal k-mers after unequal letters."""
        key = kmers * np.uint64(8)
        own = key + left.astype(np.uint64)
        begin, end = (np.searchsorted(self.keys, bound) for bound in (key, key + np.uint64(8)))
        same_begin, same_end = (np.searchsorted(self.keys, x) for x in (own, own + np.uint64(1)))
        row_a, at_a = _expand(begin, same_begin)
        row_b, at_b = _expand(same_end, end)
        return np.concatenate((row_a, row_b)), self.positions[np.concatenate((at_a, at_b))]


def _expand(begin: _Ints, end: _Ints) -> tuple[_Ints, _Ints]:
    """List every number of the ranges, each with the row of its range."""
    count = end - begin
    before = np.repeat(np.cumsum(count) - count, count)
    rows = np.repeat(np.arange(len(count), dtype=np.int64), count)
    return rows, np.repeat(begin, count) + np.arange(int(count.sum())) - before


def _longest_exact_matches(queries: Sequence[_Codes], store: Genome) -> list[_ExactMatch]:
    """Find the longest exact match of each query in a genome, on both strands.

    N agrees with nothing; of several equally long matches it is the first in the genome.
    """
    best = [_ExactMatch() for _ in queries]
    bases = sum(len(query) for query in queries)
    if bases == 0 or store.total_length == 0:
        return best
    # K-mers about as long as chance matches of this much DNA: few pairs, yet hardly a query
    # without one. Queries that share no such k-mer are searched again with shorter ones.
    chance = math.log(2 * bases * store.total_length, 4)
    k = min(_LONGEST, max(_SHORTEST, round(chance) - 2))
    todo = list(range(len(queries)))
    while todo:
        found = _search([queries[i] for i in todo], store, k)
        for i, match in zip(todo, found, strict=True):
            best[i] = match
        todo = [i for i in todo if best[i].length == 0 and len(queries[i]) >= _SHORTEST]
        if k == _SHORTEST:
            break
        k = max(_SHORTEST, k - 4)
    return best


def _search(queries: Sequence[_Codes], store: Genome, k: int) -> list[_ExactMatch]:
    """Find the longest matches of at least k bases."""
    table = _Queries(queries, k)
    best = [_ExactMatch() for _ in queries]
    for contig in store.contigs:
        codes = store.view(contig.name)
        for begin in range(0, max(0, len(codes) - k + 1), _PART):
            # One base before, for the letter to the left.
            first = max(0, begin - 1)
            part = codes[first : begin + _PART + k - 1] & np.uint8(BASE_BITS)
            kmers, known = pack_kmers(part, k)
            positions = np.flatnonzero(known[begin - first :]) + (begin - first)
            left = np.where(positions > 0, part[positions - 1], N).astype(np.uint8)
            for i in range(0, len(positions), _PAIRS):
                rows = slice(i, i + _PAIRS)
                row, query = table.pairs(kmers[positions[rows]], left[rows])
                if len(row):
                    at = positions[rows][row] + first
                    length = _extend(table.codes, query, codes, at, k)
                    _keep_longest(best, table, query, length, contig.name, at)
    return best


def _extend(queries: _Codes, query: _Ints, codes: _Codes, at: _Ints, k: int) -> _Ints:
    """Follow agreements of k bases to their ends; give their lengths."""
    length = np.full(len(at), k, np.int64)
    active = np.arange(len(at))
    while len(active):
        end = at[active] + length[active]
        inside = end < len(codes)
        active, end = active[inside], end[inside]
        same = (codes[end] & np.uint8(BASE_BITS)) == queries[query[active] + length[active]]
        active = active[same]
        length[active] += 1
    return length


def _keep_longest(
    best: list[_ExactMatch], table: _Queries, query: _Ints, length: _Ints, contig: str, at: _Ints
) -> None:
    """Let agreements replace shorter matches of the same query."""
    number = np.searchsorted(table.starts, query, side="right") - 1
    # The longest first; among those the first in the genome.
    for i in np.lexsort((at, -length)).tolist():
        row, reverse = divmod(int(number[i]), 2)
        size = int(length[i])
        if size > best[row].length:
            offset = int(query[i] - table.starts[number[i]])
            start = table.lengths[row] - offset - size if reverse else offset
            begin, strand = int(at[i]), "-" if reverse else "+"
            best[row] = _ExactMatch(size, start, contig, begin, begin + size, strand)
