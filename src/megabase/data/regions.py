"""Sets of genome positions: named, combined, and split for training, validation and test.

A region is named by a contig (``chr20``), a part of one as people write it
(``chr20:45,000,001-50,000,000``, 1-based with both ends), or a BED file (``gaps.bed``,
``gaps.bed.gz``).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from megabase.errors import InputError
from megabase.genome.interval import Interval
from megabase.genome.store import Genome
from megabase.genome.tables import read_bed

Place = str | os.PathLike[str]  # a contig, a region as people write it, or a BED file
_BED = (".bed", ".bed.gz", ".narrowpeak", ".narrowpeak.gz", ".broadpeak", ".broadpeak.gz")
"""Endings that tell a BED file from a contig."""
# Contigs are laid end to end, far apart: one-dimensional algebra then serves all of them at once.
# Longer than any chromosome (2**40 bases), and 2**23 contigs still fit into 63 bits.
_STRIDE = np.int64(1) << np.int64(40)
# Past every position: the end of what is not in a set.
_LAST = np.int64(np.iinfo(np.int64).max)

_Ints = npt.NDArray[np.int64]


def _merge(low: _Ints, high: _Ints) -> tuple[_Ints, _Ints]:
    keep = high > low
    low, high = low[keep], high[keep]
    if low.size == 0:
        return low, high
    order = np.argsort(low, kind="stable")
    low, reach = low[order], np.maximum.accumulate(high[order])
    gap = low[1:] > reach[:-1]
    return low[np.concatenate(([True], gap))], reach[np.concatenate((gap, [True]))]


def _overlapping(
    low: _Ints, high: _Ints, other_low: _Ints, other_high: _Ints
) -> tuple[_Ints, _Ints]:
    """First overlapping interval of the other set, and how many, for each of ours."""
    first = np.searchsorted(other_high, low, side="right")
    count = np.maximum(np.searchsorted(other_low, high, side="left") - first, 0)
    return first, np.where(high > low, count, 0)


def _intersect(low: _Ints, high: _Ints, other_low: _Ints, other_high: _Ints) -> tuple[_Ints, _Ints]:
    first, count = _overlapping(low, high, other_low, other_high)
    ours = np.repeat(np.arange(low.size), count)
    within = np.arange(ours.size) - np.repeat(np.cumsum(count) - count, count)
    theirs = first[ours] + within
    return np.maximum(low[ours], other_low[theirs]), np.minimum(high[ours], other_high[theirs])


@dataclass(frozen=True, eq=False)
class Regions:
    """A set of positions on the contigs of one genome, as sorted, disjoint, non-touching intervals.

    Build it with :meth:`of`, which sorts and merges; the fields are read-only facts.
    """

    contig: npt.NDArray[np.int32]
    """int32 (n,): index of the contig in the order of the genome store."""
    start: _Ints
    end: _Ints
    """int64 (n,): 0-based half-open."""

    @classmethod
    def of(cls, contig: npt.ArrayLike, start: npt.ArrayLike, end: npt.ArrayLike) -> Self:
        """Make the union of intervals (n,) in any order; empty ones vanish, touching ones merge.

        Coordinates are 0-based half-open, with start >= 0.
        """
        base = np.asarray(contig, dtype=np.int64) * _STRIDE
        low = base + np.asarray(start, dtype=np.int64)
        return cls._from_line(low, base + np.asarray(end, dtype=np.int64))

    @classmethod
    def whole(cls, lengths: Iterable[int]) -> Self:
        """Make the set of every position of contigs with these lengths."""
        ends = np.fromiter(lengths, dtype=np.int64)
        return cls.of(np.arange(ends.size), np.zeros_like(ends), ends)

    @classmethod
    def read(cls, store: Genome, places: Iterable[Place], *, strict: bool = True) -> Self:
        """Give the union of contig names, regions and BED files, in any mixture; empty for none.

        Strict: rows of BED files that are not on the genome are refused, for a held-out region must
        not vanish; otherwise they are left out and counted.
        """
        found = cls.of([], [], [])
        for place in places:
            text = os.fspath(place)
            if text.lower().endswith(_BED) or isinstance(place, Path):
                table = read_bed(Path(text), store, columns=3, strict=strict)
                found = found.union(cls.of(*Intervals.of(store, table)))
            else:
                interval = store.region(text)
                index = store.contig_index(interval.contig)
                found = found.union(cls.of([index], [interval.start], [interval.end]))
        return found

    @classmethod
    def split(
        cls, store: Genome, *, include: Iterable[Place] = (), exclude: Iterable[Place] = (),
        validation: Iterable[Place] = (), test: Iterable[Place] = (),
    ) -> dict[str, Self]:  # fmt: skip
        """Split a genome: training gets all that is included (None: everything) and not held out.

        Gives disjoint ``train``, ``validation`` and ``test``; any may be empty but ``train``.
        Held-out regions need not be among the included ones. An InputError when validation and test
        overlap, or nothing is left for training.
        """
        included, excluded = list(include), cls.read(store, exclude)
        allowed = cls.read(store, included) if included else cls.whole(store.lengths)
        held_out = cls.read(store, validation), cls.read(store, test)
        shared = held_out[0].intersect(held_out[1])
        if len(shared):
            name = store.contigs[int(shared.contig[0])].name
            first = Interval(name, int(shared.start[0]), int(shared.end[0]))
            raise InputError(
                f"validation and test regions overlap, first at {first}; a base can be held out "
                "for one of them only"
            )
        train = allowed.subtract(excluded).subtract(held_out[0]).subtract(held_out[1])
        if len(train) == 0:
            raise InputError(
                "no position is left for training: the excluded, validation and test regions cover "
                "everything that is included"
            )
        kept = [regions.subtract(excluded) for regions in held_out]
        return {"train": train, "validation": kept[0], "test": kept[1]}

    @classmethod
    def _from_line(cls, low: _Ints, high: _Ints) -> Self:
        low, high = _merge(low, high)
        contig = low // _STRIDE
        return cls(contig.astype(np.int32), low - contig * _STRIDE, high - contig * _STRIDE)

    def _line(self) -> tuple[_Ints, _Ints]:
        base = self.contig.astype(np.int64) * _STRIDE
        return base + self.start, base + self.end

    def __len__(self) -> int:
        return int(self.start.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Regions):
            return NotImplemented
        ours, theirs = vars(self).values(), vars(other).values()
        return all(np.array_equal(one, two) for one, two in zip(ours, theirs, strict=True))

    @property
    def total(self) -> int:
        """Number of positions in the set."""
        return int((self.end - self.start).sum())

    @property
    def longest(self) -> int:
        """Length of the longest interval in bases; 0 for the empty set."""
        return int((self.end - self.start).max(initial=0))

    def union(self, other: Self) -> Self:
        """Give the positions in either set."""
        pairs = zip(self._line(), other._line(), strict=True)
        return self._from_line(*map(np.concatenate, pairs))

    def intersect(self, other: Self) -> Self:
        """Give the positions in both sets."""
        return self._from_line(*_intersect(*self._line(), *other._line()))

    def subtract(self, other: Self) -> Self:
        """Give the positions of this set that are not in the other."""
        low, high = other._line()
        between_low = np.concatenate((np.zeros(1, np.int64), high))
        between_high = np.concatenate((low, np.full(1, _LAST)))
        return self._from_line(*_intersect(*self._line(), between_low, between_high))

    def overlap(
        self, contig: npt.ArrayLike, start: npt.ArrayLike, end: npt.ArrayLike
    ) -> npt.NDArray[np.bool_]:
        """Tell which intervals (n,), 0-based half-open, share a position with the set.

        Coordinates outside the contig hold no position.
        """
        base = np.asarray(contig, dtype=np.int64) * _STRIDE
        low = base + np.maximum(np.asarray(start, dtype=np.int64), 0)
        high = base + np.asarray(end, dtype=np.int64)
        return _overlapping(low, high, *self._line())[1] > 0

    def cut_tails(self, fraction: float, least: int) -> tuple[Self, Self]:
        """Cut the last share of every region off, for validation: one segment each.

        At least `least` bases are cut off a region; shorter regions are kept whole, and an
        InputError says when none is long enough. Gives what is kept and what is cut off.
        """
        size = self.end - self.start
        tail = np.where(size >= 2 * least, np.maximum(np.round(size * fraction), least), 0)
        if not tail.any():
            raise InputError(
                f"no training region is long enough to cut {least:,} bases off for validation; "
                "name regions for it (genome.valid)"
            )
        cut = self.end - tail.astype(np.int64)
        return self.of(self.contig, self.start, cut), self.of(self.contig, cut, self.end)

    def tile(
        self, size: int, *, before: int = 0, whole: bool = False, limit: int | None = None
    ) -> "Intervals":
        """Cut regions into blocks of `size` bases; the last one of a region may be shorter.

        `before` bases must lie in front of a block on its contig. `whole` leaves out the shorter
        blocks; `limit` keeps at most that number, evenly spread.
        """
        first = np.maximum(self.start, before)
        bases = np.maximum(self.end - first, 0)
        until = np.cumsum(bases // size if whole else -(-bases // size))
        total = int(until[-1]) if until.size else 0
        if limit is None or limit >= total:
            chosen = np.arange(total)
        else:
            # Never the whole list: a genome has hundreds of millions of small blocks.
            chosen = (2 * np.arange(limit) + 1) * total // (2 * limit)
        region = np.searchsorted(until, chosen, side="right")
        passed = np.concatenate(([0], until))[region]
        start = first[region] + (chosen - passed) * size
        return Intervals(self.contig[region], start, np.minimum(start + size, self.end[region]))

    def touches(self, contig: int, start: int, end: int) -> bool:
        """Tell whether one interval, 0-based half-open, shares a position with the set."""
        return bool(self.overlap([contig], [start], [end])[0])


class Intervals(NamedTuple):
    """Rows of a table of intervals: contig indices, and 0-based half-open coordinates."""

    contig: npt.NDArray[np.int32]
    start: _Ints
    end: _Ints

    @classmethod
    def of(cls, store: Genome, table: pl.DataFrame) -> Self:
        """Give the rows of a frame with contig, start and end."""
        contig = np.array([store.contig_index(name) for name in table["contig"]], dtype=np.int32)
        return cls(contig, table["start"].to_numpy(), table["end"].to_numpy())

    @classmethod
    def read(cls, store: Genome, path: Place, split: str) -> Self:
        """Read the rows of one split from a BED file, in order; its fourth column names the split.

        The published ones have ``train``, ``valid`` and ``test``. An InputError when a row does not
        lie on the genome, or no row is of this split.
        """
        table = read_bed(Path(path), store, columns=4, strict=True)
        names = table["name"].to_list() if "name" in table.columns else []
        rows = table.filter([name == split for name in names]) if names else table.clear()
        if rows.is_empty():
            found = ", ".join(sorted({str(name) for name in names})) or "none: no fourth column"
            raise InputError(f"{path} has no interval of split {split!r}; its splits are {found}")
        return cls.of(store, rows)
