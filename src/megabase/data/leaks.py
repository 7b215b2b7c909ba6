"""Rows that occur more than once: the same, as their reverse complement, or nearly.

A row leaks when a row of another split tells its answer. Exact copies and reverse complements are
found by a hash of the bases. Near duplicates share k-mers (k = 16 here, each counted with its
reverse complement): a row is near another when at least a share ``threshold`` of its distinct
k-mers lies in that one row. Of large sets only a fixed share of all k-mers is looked at, chosen by
hash, the same ones everywhere (FracMinHash).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megabase.data.hashing import mix64
from megabase.data.labelled import LabelledSequences
from megabase.genome import alphabet

if TYPE_CHECKING:
    from megabase.data.regions import Regions
    from megabase.genome.store import GenomeStore

__all__ = [
    "K_NEAR",
    "Leaks",
    "Overlap",
    "canonical_kmers",
    "genome_overlap",
    "leaking_rows",
    "leaks",
    "row_kmers",
]

K_NEAR = 16
"""Bases of a word in the search for near duplicates."""
K_GENOME = 31
"""Bases of a word in the search in a genome: one of a mammal holds few of them by chance."""
_MOST_WORDS = 20_000_000
_COMMON = 200
"""Words in more rows than this are repeats and say nothing about two rows."""
_CHUNK = 4_000_000

_Rows = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]


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
class Overlap:
    """Rows found in the regions a model was pretrained on."""

    genome: str
    """Genome and where."""
    rows: dict[str, int]
    """By split, rows with at least half of their 31-mers there, on either strand."""


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


def canonical_kmers(codes: npt.NDArray[np.uint8], k: int) -> tuple[_Words, npt.NDArray[np.bool_]]:
    """Pack every word of k bases into an integer, the smaller of it and its reverse complement.

    Parameters
    ----------
    codes
        Base codes (n,).
    k
        1 to 31.

    Returns
    -------
    words : numpy.ndarray
        uint64 (n - k + 1,), the word that starts at each position.
    known : numpy.ndarray
        bool of the same shape: whether it is all A, C, G, T.
    """
    n = len(codes) - k + 1
    if n <= 0:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=bool)
    base = codes & alphabet.BASE_BITS
    bad = np.concatenate([[0], np.cumsum(base > alphabet.T)])
    known = bad[k:] == bad[:-k]
    two = np.where(base > alphabet.T, 0, base).astype(np.uint64)
    # Words of k bases from words of half their length: log2(k) passes over the array.
    forward, backward = _pack(two, k, False), _pack(np.uint64(3) - two, k, True)
    return np.minimum(forward, backward), known


def _pack(two: _Words, k: int, reverse: bool) -> _Words:
    if k == 1:
        return two
    half = k // 2
    low, n = _pack(two, half, reverse), len(two) - k + 1
    first, second = low[:n], low[half : half + n]
    size = half
    if k % 2:
        size += 1
        extra = two[half * 2 : half * 2 + n]
        if reverse:  # later bases are higher: the reverse strand reads from the end
            return (extra << np.uint64(4 * half)) | (second << np.uint64(2 * half)) | first
        return (first << np.uint64(2 * (half + 1))) | (second << np.uint64(2)) | extra
    if reverse:
        return (second << np.uint64(2 * half)) | first
    return (first << np.uint64(2 * half)) | second


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


def _near_pairs(one: _Index, two: _Index, threshold: float) -> tuple[_Rows, _Rows]:
    """List pairs (row of one, row of two) where the second holds enough of the first's words."""
    words, row = one.words, one.row
    order = np.argsort(two.words, kind="stable")
    sorted_words, sorted_row = two.words[order], two.row[order]
    low = np.searchsorted(sorted_words, words, side="left")
    hits = np.searchsorted(sorted_words, words, side="right") - low
    hits[hits > _COMMON] = 0
    sizes = np.bincount(row, minlength=len(one.rows))
    total, others = np.cumsum(hits), len(two.rows)
    found: list[_Rows] = []
    first = 0
    while first < len(words):  # runs of whole rows, so that memory stays small
        before = int(total[first - 1]) if first else 0
        last = min(int(np.searchsorted(total, before + _CHUNK)) + 1, len(words))
        last = int(np.searchsorted(row, row[last - 1], side="right"))
        repeats = hits[first:last]
        source = np.repeat(row[first:last], repeats)
        place = np.repeat(low[first:last] - (np.cumsum(repeats) - repeats), repeats)
        target = sorted_row[place + np.arange(len(source))]
        pairs, shared = np.unique(source * others + target, return_counts=True)
        found.append(pairs[shared >= threshold * sizes[pairs // others]])
        first = last
    pairs = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
    return pairs // max(others, 1), pairs % max(others, 1)


@dataclass(frozen=True)
class _Index:
    """Hashes and words of a split."""

    rows: LabelledSequences
    forward: npt.NDArray[np.bytes_]
    backward: npt.NDArray[np.bytes_]
    words: _Words
    row: _Rows


def _index(rows: LabelledSequences, every: int) -> _Index:
    words, row = row_kmers(rows, K_NEAR, every)
    return _Index(rows, _digests(rows, reverse=False), _digests(rows, reverse=True), words, row)


def _kinds(
    train: _Index, other: _Index, threshold: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Tell which rows of `other` occur in `train`: exactly, as reverse complement, nearly."""
    exact = np.isin(other.forward, train.forward)
    turned = np.isin(other.backward, train.forward) & ~exact
    near = np.zeros(len(other.rows), dtype=bool)
    near[_near_pairs(other, train, threshold)[0]] = True
    return exact, turned, near & ~exact & ~turned


def _every(splits: Mapping[str, LabelledSequences]) -> int:
    bases = sum(int(rows.offsets[-1]) for rows in splits.values())
    return max(1, -(-bases // _MOST_WORDS))


def leaks(splits: Mapping[str, LabelledSequences], threshold: float = 0.5) -> Leaks:
    """Count rows that occur in several splits, or several times in one.

    Parameters
    ----------
    splits
        train, valid, test; any may be missing.
    threshold
        Share of the words of a row that make it a near duplicate.
    """
    every = _every(splits)
    indices = {name: _index(rows, every) for name, rows in splits.items()}
    across: dict[str, Pair] = {}
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
    return Leaks(
        rows={name: len(rows) for name, rows in splits.items()},
        within={name: _repeats(index) for name, index in indices.items()},
        across=across,
        threshold=threshold,
        sampled=every,
    )


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
    every = _every({"train": rows, "test": test})
    one, two = _index(rows, every), _index(test, every)
    exact, turned, near = _kinds(two, one, threshold)
    found = exact | turned | near
    found[_near_pairs(two, one, threshold)[1]] = True
    return found


def genome_overlap(
    splits: Mapping[str, LabelledSequences],
    store: GenomeStore,
    regions: Regions,
    share: float = 0.5,
) -> Overlap:
    """Count rows that lie in regions of a genome, by their 31-mers on either strand.

    The genome is read once; rows need no coordinates.

    Parameters
    ----------
    splits
        Rows by split.
    store
        The genome.
    regions
        Where the model was trained.
    share
        Share of a row's words that must lie there.
    """
    bases = sum(int(rows.offsets[-1]) for rows in splits.values())
    # Long genomes: one of eight words is plenty, every row has tens of them left.
    every = max(1 if regions.total < _CHUNK else 4, -(-bases // _MOST_WORDS))
    indices = {name: row_kmers(rows, K_GENOME, every) for name, rows in splits.items()}
    wanted = np.unique(np.concatenate([words for words, _ in indices.values()]))
    present = np.zeros(len(wanted), dtype=bool)
    for codes in _stretches(store, regions):
        words, known = canonical_kmers(codes, K_GENOME)
        if every > 1:
            known &= mix64(words) % np.uint64(every) == 0
        words = words[known]
        if not len(wanted) or not len(words):
            continue
        place = np.searchsorted(wanted, words)
        place[place == len(wanted)] = 0
        present[place[wanted[place] == words]] = True
    found: dict[str, int] = {}
    for name, (words, row) in indices.items():
        inside = present[np.searchsorted(wanted, words)].astype(np.float64)
        hits = np.bincount(row, weights=inside, minlength=len(splits[name]))
        sizes = np.bincount(row, minlength=len(splits[name]))
        found[name] = int(((sizes > 0) & (hits >= share * sizes)).sum())
    return Overlap(f"{store.path.name} ({regions.total:,} bases of {store.name})", found)


def _stretches(store: GenomeStore, regions: Regions) -> Iterable[npt.NDArray[np.uint8]]:
    for contig, start, end in zip(regions.contig, regions.start, regions.end, strict=True):
        whole = store.view(int(contig))
        for low in range(int(start), int(end), _CHUNK):
            # Words across the cut belong to the earlier piece.
            yield whole[low : min(low + _CHUNK + K_GENOME - 1, int(end))]
