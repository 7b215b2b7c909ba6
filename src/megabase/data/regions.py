"""Sets of genome positions as sorted, disjoint intervals, with set algebra over numpy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Regions"]

# Contigs are laid end to end, far apart: one-dimensional algebra then serves all of them at once.
# Longer than any chromosome (2**40 bases), and 2**23 contigs still fit into 63 bits.
_STRIDE = np.int64(1) << np.int64(40)
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

    Parameters
    ----------
    contig
        int32 (n,): index of the contig in the order of the genome store.
    start, end
        int64 (n,): 0-based half-open.
    """

    contig: npt.NDArray[np.int32]
    start: _Ints
    end: _Ints

    @classmethod
    def of(
        cls,
        contig: Sequence[int] | npt.NDArray[np.integer],
        start: Sequence[int] | npt.NDArray[np.integer],
        end: Sequence[int] | npt.NDArray[np.integer],
    ) -> Regions:
        """Make the union of intervals in any order; empty ones vanish, touching ones merge.

        Parameters
        ----------
        contig, start, end
            Equally long; contig indices and 0-based half-open coordinates, start >= 0.

        Returns
        -------
        Regions
        """
        base = np.asarray(contig, dtype=np.int64) * _STRIDE
        low = base + np.asarray(start, dtype=np.int64)
        return cls._from_line(low, base + np.asarray(end, dtype=np.int64))

    @classmethod
    def whole(cls, lengths: Iterable[int]) -> Regions:
        """Make the set of every position of contigs with these lengths."""
        ends = np.fromiter(lengths, dtype=np.int64)
        return cls.of(np.arange(ends.size), np.zeros_like(ends), ends)

    @classmethod
    def _from_line(cls, low: _Ints, high: _Ints) -> Regions:
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
        return (
            np.array_equal(self.contig, other.contig)
            and np.array_equal(self.start, other.start)
            and np.array_equal(self.end, other.end)
        )

    @property
    def total(self) -> int:
        """Number of positions in the set."""
        return int((self.end - self.start).sum())

    @property
    def longest(self) -> int:
        """Length of the longest interval in bases; 0 for the empty set."""
        return int((self.end - self.start).max(initial=0))

    def union(self, other: Regions) -> Regions:
        """Give the positions in either set."""
        ours, theirs = self._line(), other._line()
        return Regions._from_line(
            np.concatenate((ours[0], theirs[0])), np.concatenate((ours[1], theirs[1]))
        )

    def intersect(self, other: Regions) -> Regions:
        """Give the positions in both sets."""
        return Regions._from_line(*_intersect(*self._line(), *other._line()))

    def subtract(self, other: Regions) -> Regions:
        """Give the positions of this set that are not in the other."""
        low, high = other._line()
        between_low = np.concatenate((np.zeros(1, np.int64), high))
        between_high = np.concatenate((low, np.full(1, _LAST)))
        return Regions._from_line(*_intersect(*self._line(), between_low, between_high))

    def overlap(
        self,
        contig: npt.NDArray[np.integer],
        start: npt.NDArray[np.integer],
        end: npt.NDArray[np.integer],
    ) -> npt.NDArray[np.bool_]:
        """Tell for each given interval whether it shares a position with the set.

        Parameters
        ----------
        contig, start, end
            (n,) each, 0-based half-open; coordinates outside the contig hold no position.

        Returns
        -------
        numpy.ndarray
            bool (n,).
        """
        base = np.asarray(contig, dtype=np.int64) * _STRIDE
        low = base + np.maximum(np.asarray(start, dtype=np.int64), 0)
        high = base + np.asarray(end, dtype=np.int64)
        return _overlapping(low, high, *self._line())[1] > 0
