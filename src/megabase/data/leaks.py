"""Examples that occur more than once: the same, as their reverse complement, or nearly.

An example is near another when at least a share of its distinct 16-mers, on either strand, lies in
that one. Of large sets only a share of all k-mers is looked at, chosen by hash (FracMinHash).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from megabase.data.hashing import mix64
from megabase.data.labeled import LabeledSequences
from megabase.data.regions import Regions
from megabase.genome import alphabet
from megabase.genome.alphabet import pack_kmers
from megabase.genome.store import Genome

_K_NEAR = 16
"""Bases of a k-mer where examples are compared: a 16-mer rarely occurs twice by chance, and a few
mutations leave many of them."""
_K_GENOME = 31  # bases of a k-mer in a genome: that of a mammal holds few of them by chance
_MOST_KMERS = 20_000_000  # K-mers that are looked at: a few hundred megabytes
_COMMON = 200  # K-mers in more rows than this are repeats and say nothing about two rows
_CHUNK = 4_000_000  # bases, or pairs of hits, that are worked on at a time: some 100 MB

_Rows = npt.NDArray[np.int64]
_Kmers = npt.NDArray[np.uint64]
_Mask = npt.NDArray[np.bool_]


class RowKmers(NamedTuple):
    """The distinct k-mers of each sequence of a set, on either strand."""

    kmers: _Kmers
    row: _Rows  # pairs of a k-mer and the row that holds it, sorted by row and k-mer, each once
    rows: int  # number of rows, those without k-mers too

    @classmethod
    def of(cls, rows: LabeledSequences, every: int = 1, k: int = _K_NEAR) -> Self:
        """Collect k-mers, or the 1/`every` of them that a hash selects."""
        pairs = [(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64))]
        for first, last in _pieces(rows.offsets):
            start, end = int(rows.offsets[first]), int(rows.offsets[last])
            found, keep = _sampled(rows.codes[start:end], k, every)
            row = np.repeat(np.arange(first, last), rows.lengths[first:last])
            # A k-mer must not run from one row into the next.
            keep &= row[: len(found)] == row[k - 1 : k - 1 + len(found)]
            found, row = found[keep], row[: len(keep)][keep]
            order = np.lexsort((found, row))
            found, row = found[order], row[order]
            new = np.ones(len(found), dtype=bool)
            new[1:] = (found[1:] != found[:-1]) | (row[1:] != row[:-1])
            pairs.append((found[new], row[new]))
        hashes, at = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return cls(hashes, at, len(rows))

    @classmethod
    def of_each(cls, splits: Mapping[str, LabeledSequences]) -> dict[str, Self]:
        """Collect the k-mers of every split, the same share of them everywhere."""
        every = _sampling_rate(*splits.values())
        return {name: cls.of(rows, every) for name, rows in splits.items()}

    def largest_shares(self, others: Self, labels: _Rows, classes: int) -> npt.NDArray[np.float32]:
        """Give, by class, the largest share of a row's k-mers that one other row of it holds.

        `labels` are the classes of the others, which may be the same set: then a row is not
        compared with itself. Gives float32 (rows, classes), 0 to 1.
        """
        sizes = np.maximum(self.sizes, 1)
        found = np.zeros((self.rows, classes), dtype=np.float32)
        for row, other, shared in _shared_kmers(self, others):
            np.maximum.at(found, (row, labels[other]), (shared / sizes[row]).astype(np.float32))
        return found

    @property
    def sizes(self) -> _Rows:
        """K-mers of each row: (rows,)."""
        return np.bincount(self.row, minlength=self.rows)


def _sampled(codes: npt.NDArray[np.uint8], k: int, every: int) -> tuple[_Kmers, _Mask]:
    """Pack all k-mers; say which are A, C, G, T only and selected by hash."""
    found, keep = pack_kmers(codes, k, canonical=True)
    if every > 1:
        keep &= mix64(found) % np.uint64(every) == 0
    return found, keep


def _pieces(offsets: _Rows) -> Iterator[tuple[int, int]]:
    """Cut rows into runs of a few million bases."""
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + _CHUNK, side="right")) - 1
        last = min(max(last, first + 1), len(offsets) - 1)
        yield first, last
        first = last


def _sampling_rate(*sets: LabeledSequences) -> int:
    """Give N where 1/N of all k-mers is looked at, so that time and memory last."""
    bases = sum(int(rows.offsets[-1]) for rows in sets)
    return max(1, -(-bases // _MOST_KMERS))


def _shared_kmers(one: RowKmers, two: RowKmers) -> Iterator[tuple[_Rows, _Rows, _Rows]]:
    """Count the k-mers that pairs of rows share: row of one, row of two and count, each pair once.

    Of one set twice, pairs of different rows. K-mers that more than 200 rows of the second set hold
    are left out. All pairs of a row of the first set come in one piece, of about four million hits.
    """
    kmers, row = one.kmers, one.row
    order = np.argsort(two.kmers, kind="stable")
    sorted_kmers, sorted_row = two.kmers[order], two.row[order]
    low = np.searchsorted(sorted_kmers, kmers, side="left")
    hits = np.searchsorted(sorted_kmers, kmers, side="right") - low
    hits[hits > _COMMON] = 0
    total, others = np.cumsum(hits), max(two.rows, 1)
    first = 0
    while first < len(kmers):
        before = int(total[first - 1]) if first else 0
        last = min(int(np.searchsorted(total, before + _CHUNK)) + 1, len(kmers))
        last = int(np.searchsorted(row, row[last - 1], side="right"))
        repeats = hits[first:last]
        source = np.repeat(row[first:last], repeats)
        place = np.repeat(low[first:last] - (np.cumsum(repeats) - repeats), repeats)
        target = sorted_row[place + np.arange(len(source))]
        if one is two:
            source, target = source[source != target], target[source != target]
        pairs, shared = np.unique(source * others + target, return_counts=True)
        yield pairs // others, pairs % others, shared
        first = last


def _near_pairs(one: RowKmers, two: RowKmers, threshold: float) -> tuple[_Rows, _Rows]:
    """List pairs (row of one, row of two) where the second holds enough of the first's k-mers."""
    sizes = one.sizes
    pairs = [(np.zeros(0, dtype=np.int64),) * 2]
    for row, other, shared in _shared_kmers(one, two):
        near = shared >= threshold * sizes[row]
        pairs.append((row[near], other[near]))
    first, second = map(np.concatenate, zip(*pairs, strict=True))
    return first, second


def overlap_groups(rows: LabeledSequences, share: float) -> _Rows:
    """Put sequences that overlap into groups, directly or through others: int64 (rows,).

    Two belong together when one holds at least `share` (above 0, at most 1) of the other's distinct
    16-mers, on either strand; k-mers that more than 200 sequences hold do not count. A group is
    named by its first row.
    """
    kmers = RowKmers.of(rows, _sampling_rate(rows))
    one, two = _near_pairs(kmers, kmers, share)
    group = np.arange(len(rows))
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


def genome_overlap(
    splits: Mapping[str, LabeledSequences], store: Genome, regions: Regions, share: float = 0.5
) -> dict[str, Any]:
    """Count examples with at least `share` of their 31-mers, on either strand, in regions.

    The genome is read once; examples need no coordinates. Gives ``genome`` (which one, and how much
    of it) and ``rows``, the count of each split.
    """
    # Long genomes: one k-mer of four is plenty, every row has tens of them left.
    every = max(1 if regions.total < _CHUNK else 4, _sampling_rate(*splits.values()))
    indices = {name: RowKmers.of(rows, every, _K_GENOME) for name, rows in splits.items()}
    wanted = np.unique(np.concatenate([index.kmers for index in indices.values()]))
    present = np.zeros(len(wanted), dtype=bool)
    for contig, start, end in zip(regions.contig, regions.start, regions.end, strict=True):
        for low in range(int(start), int(end), _CHUNK) if len(wanted) else ():
            # K-mers across the cut belong to the earlier piece.
            high = min(low + _CHUNK + _K_GENOME - 1, int(end))
            kmers, keep = _sampled(store.view(int(contig))[low:high], _K_GENOME, every)
            kmers = kmers[keep]
            place = np.minimum(np.searchsorted(wanted, kmers), len(wanted) - 1)
            present[place[wanted[place] == kmers]] = True
    found: dict[str, int] = {}
    for name, index in indices.items():
        inside = present[np.searchsorted(wanted, index.kmers)].astype(np.float64)
        hits = np.bincount(index.row, weights=inside, minlength=index.rows)
        found[name] = int(((index.sizes > 0) & (hits >= share * index.sizes)).sum())
    place = f"{store.path.name} ({regions.total:,} bases of {store.name})"
    return {"genome": place, "rows": found}


def count_leaks(splits: Mapping[str, LabeledSequences], threshold: float = 0.5) -> dict[str, Any]:
    """Count examples that occur in several of train, valid and test, or several times in one.

    `threshold` is the share of the k-mers of an example that make it a near duplicate. Gives
    ``rows`` of each split; ``within``: by split, those that repeat an earlier one of it (either
    strand); ``across``: by pair, such as "train-test", those of the second split that occur in the
    first, ``exact``, as ``reverse_complement`` or ``near`` (each counted once), and of the first
    two kinds those with an ``other_label`` there; ``threshold``; ``sampled``: 1/N of all k-mers was
    looked at; ``dropped`` and ``pretraining``, empty; ``classes``: by class, test examples that
    occur in train, and all of them (only for labels that are classes).
    """
    every = _sampling_rate(*splits.values())
    indices = {name: _Index(rows, every) for name, rows in splits.items()}
    across: dict[str, dict[str, int]] = {}
    classes: dict[str, tuple[int, int]] = {}
    for first, second in (("train", "test"), ("valid", "test"), ("train", "valid")):
        if first not in indices or second not in indices:
            continue
        one, two = indices[first], indices[second]
        exact, turned, near = _kinds(one, two, threshold)
        across[f"{first}-{second}"] = {
            "exact": int(exact.sum()), "reverse_complement": int(turned.sum()),
            "near": int(near.sum()), "other_label": _other_labels(one, two, exact, turned),
        }  # fmt: skip
        if (first, second) == ("train", "test") and two.rows.kind == "classes":
            bad = exact | turned | near
            each = [two.rows.labels == number for number in range(len(two.rows.classes))]
            counts = [(int((bad & own).sum()), int(own.sum())) for own in each]
            classes = dict(zip(two.rows.classes, counts, strict=True))
    return {
        "rows": {name: len(rows) for name, rows in splits.items()},
        "within": {name: index.repeats() for name, index in indices.items()},
        "across": across, "threshold": threshold, "sampled": every, "dropped": {},
        "pretraining": [], "classes": classes,
    }  # fmt: skip


def describe_pairs(found: Mapping[str, Any], first: str = "") -> list[str]:
    """Say what :func:`count_leaks` found in each pair; with `first`, only where there is any."""
    said = []
    for pair, counts in found["across"].items():
        one, two = pair.split("-")
        total = counts["exact"] + counts["reverse_complement"] + counts["near"]
        if first and (one != first or not total):
            continue
        other = f"; {counts['other_label']:,} with another label" * bool(counts["other_label"])
        said.append(
            f"{total:,} of {found['rows'][two]:,} {two} rows are in {one} "
            f"({counts['exact']:,} equal, {counts['reverse_complement']:,} as reverse complement, "
            f"{counts['near']:,} near{other})"
        )
    return said


def leak_hint(splits: Mapping[str, LabeledSequences]) -> str | None:
    """Warn of test (or validation) examples that are in train; None when there are none.

    Splits with labels for bases are not looked at: regions divide them.
    """
    if splits["train"].kind in ("nucleotides", "tracks"):
        return None
    found = count_leaks({name: rows for name, rows in splits.items() if len(rows)})
    if not (pairs := describe_pairs(found, "train")):
        return None
    return (
        f"overlap: {'; '.join(pairs)}. What is memorized counts there and says little of new "
        "sequences; megabase benchmark measures the others apart, and splits rows that overlap "
        "together"
    )


class _Index:
    def __init__(self, rows: LabeledSequences, every: int) -> None:
        self.rows, self.kmers = rows, RowKmers.of(rows, every)
        self.forward, self.backward = _digests(rows, reverse=False), _digests(rows, reverse=True)

    def repeats(self) -> int:
        lower = np.minimum(self.forward.astype("O"), self.backward.astype("O"))
        return len(self.rows) - len(np.unique(lower))


def _digests(rows: LabeledSequences, *, reverse: bool) -> npt.NDArray[np.bytes_]:
    """Hash every row, or its reverse complement, to 16 bytes; case does not matter."""
    found = bytearray()
    for index in range(len(rows)):
        piece = rows.sequence(index) & np.uint8(alphabet.BASE_BITS)
        piece = alphabet.reverse_complement(piece) if reverse else piece
        found += hashlib.blake2b(piece.tobytes(), digest_size=16).digest()
    return np.frombuffer(bytes(found), dtype="S16")


def _kinds(train: _Index, other: _Index, threshold: float) -> tuple[_Mask, _Mask, _Mask]:
    """Tell which rows of `other` occur in `train`: exactly, as reverse complement, nearly."""
    exact = np.isin(other.forward, train.forward)
    turned = np.isin(other.backward, train.forward) & ~exact
    near = np.zeros(len(other.rows), dtype=bool)
    near[_near_pairs(other.kmers, train.kmers, threshold)[0]] = True
    return exact, turned, near & ~exact & ~turned


def _other_labels(train: _Index, other: _Index, exact: _Mask, turned: _Mask) -> int:
    """Count rows of `other` whose copies in `train` all have another label."""
    label: dict[bytes, set[bytes]] = {}
    for key, value in zip(train.forward.tolist(), train.rows.labels, strict=True):
        label.setdefault(key, set()).add(np.asarray(value).tobytes())
    different = 0
    for rows, keys in ((exact, other.forward), (turned, other.backward)):
        for row in np.flatnonzero(rows).tolist():
            own = np.asarray(other.rows.labels[row]).tobytes()
            different += own not in label[bytes(keys[row])]
    return different


def rows_in_others(
    rows: LabeledSequences, others: Sequence[LabeledSequences], threshold: float = 0.5, *,
    both_ways: bool = False,
) -> npt.NDArray[np.bool_]:  # fmt: skip
    """Tell which examples occur in other splits: equal, mirrored or nearly; bool (rows,).

    With `both_ways` a pair is near when the threshold is met from either side, so that after
    dropping these no example of the others has a near duplicate left.
    """
    every = _sampling_rate(rows, *others)
    index = _Index(rows, every)
    found = np.zeros(len(rows), dtype=bool)
    for one in others:
        other = _Index(one, every)
        for kind in _kinds(other, index, threshold):
            found |= kind
        if both_ways:
            found[_near_pairs(other.kmers, index.kmers, threshold)[1]] = True
    return found
