"""One window for each row of a table of intervals, as the published loaders cut them.

Coordinates are 0-based half-open; `length` and `extra` are those of :mod:`megabase.data.windows`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from megabase.data.hashing import derive_key, draw_bits, uniform_below
from megabase.data.regions import Regions
from megabase.data.windows import (
    SHIFT,
    WindowBatch,
    check_probability,
    checked_numbers,
    place_in_epoch,
    strand_coins,
)
from megabase.errors import InputError

__all__ = ["IntervalWindows"]


class IntervalWindows:
    """One window for each row of a table of intervals: the published way (HyenaDNA paper, A.1).

    An interval shorter than the window is lengthened on both sides, the odd base on the right; of
    a longer one only the first bases are ever used. Where a lengthened interval leaves its contig,
    the missing positions are padding. Lengthened windows may run into held-out regions: nothing
    of the published rule prevents it (see :meth:`touching`).

    Parameters
    ----------
    contig, start, end
        (n,) each: contig index and 0-based half-open interval, in the order of the table.
    contig_lengths
        Length in bases of every contig, by index.
    seed
        Seed of the order, the shift and the strand.
    shuffle
        Shuffle the order, anew in each epoch.
    shift
        Smallest and largest random shift of an interval in bases (kept on the contig), or None.
    reverse_complement
        Probability that a window is read as its reverse complement.
    padding
        Where padding of clipped windows goes: "in_place" where the bases are missing, "left"
        always before the sequence, as published.
    segment
        None, or the length of a segment that starts where the interval starts and is cut into
        ``segment / length`` consecutive windows, those past the contig's end moved back onto it
        (the way of the Caduceus paper, with 2**20).

    Raises
    ------
    InputError
        For an empty table, an interval outside its contig at the start, or a bad option.
    """

    def __init__(
        self,
        contig: npt.NDArray[np.integer],
        start: npt.NDArray[np.integer],
        end: npt.NDArray[np.integer],
        *,
        contig_lengths: npt.NDArray[np.integer],
        seed: int = 0,
        shuffle: bool = True,
        shift: tuple[int, int] | None = None,
        reverse_complement: float = 0.0,
        padding: Literal["in_place", "left"] = "in_place",
        segment: int | None = None,
    ) -> None:
        check_probability("reverse_complement", reverse_complement)
        if padding not in ("in_place", "left"):
            raise InputError(f'padding must be "in_place" or "left", found {padding!r}')
        if shift is not None and not shift[0] <= 0 <= shift[1]:
            raise InputError(f"shift must be a range around 0, such as (-3, 3); found {shift}")
        self.contig = np.asarray(contig, dtype=np.int32)
        self.start = np.asarray(start, dtype=np.int64)
        self.end = np.asarray(end, dtype=np.int64)
        self.contig_lengths = np.asarray(contig_lengths, dtype=np.int64)
        if self.start.size == 0:
            raise InputError("the table of intervals has no row for this split")
        bad = (self.start < 0) | (self.end < self.start)
        bad |= self.start >= self.contig_lengths[self.contig]
        if bool(bad.any()):
            row = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"interval {row + 1} [{self.start[row]:,}, {self.end[row]:,}) does not begin on "
                f"its contig, which has {self.contig_lengths[self.contig[row]]:,} bases, "
                "or ends before it begins"
            )
        self.seed = seed
        self.shuffle = shuffle
        self.shift = shift
        self.reverse_complement = reverse_complement
        self.padding = padding
        self.segment = segment

    def _pieces(self, length: int) -> int:
        if self.segment is None:
            return 1
        if self.segment % length:
            raise InputError(
                f"the window length must divide the segment of {self.segment:,} bases; "
                f"found {length:,}"
            )
        return self.segment // length

    def epoch_size(self, length: int, extra: int = 0) -> int | None:
        """Count the windows of one pass over the table.

        Parameters
        ----------
        length, extra
            Positions the model reads, and target bases after them.

        Returns
        -------
        int
            Number of rows, times the windows of a segment.
        """
        checked_numbers(np.zeros(1, np.int64), length, extra)
        return self.start.size * self._pieces(length)

    def draw(
        self, stream: int, indices: npt.NDArray[np.int64], length: int, extra: int = 0
    ) -> WindowBatch:
        """Give the windows with these numbers; numbers past an epoch go on in the next.

        Parameters
        ----------
        stream
            Stage of the length warm-up.
        indices
            int64 (n,): running numbers inside the stage.
        length, extra
            Positions the model reads, and target bases after them.

        Returns
        -------
        WindowBatch
            Windows of ``length + extra`` bases.

        Raises
        ------
        InputError
            When the length does not divide the segment.
        """
        numbers = checked_numbers(indices, length, extra)
        pieces = self._pieces(length)
        item = place_in_epoch(self.seed, stream, numbers, self.start.size * pieces, self.shuffle)
        row, piece = np.divmod(item, np.int64(pieces))
        reverse = strand_coins(self.seed, stream, numbers, self.reverse_complement)
        wanted = length + extra
        if self.segment is not None:
            contig = self.contig[row]
            last = np.maximum(self.contig_lengths[contig] - wanted, 0)
            start = np.minimum(self.start[row] + piece * length, last)
            return WindowBatch(contig, start, wanted, reverse)
        return self._extended(row, wanted, reverse, self._shifts(stream, numbers, row))

    def _shifts(
        self, stream: int, numbers: npt.NDArray[np.int64], row: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        if self.shift is None:
            return np.zeros(numbers.shape, dtype=np.int64)
        size = self.contig_lengths[self.contig[row]]
        lowest = np.maximum(self.shift[0], -self.start[row])
        highest = np.maximum(np.minimum(self.shift[1], size - self.end[row]), lowest)
        bits = draw_bits(derive_key(self.seed, stream, SHIFT), numbers)
        return lowest + uniform_below(bits, highest - lowest + 1)

    def _extended(
        self,
        row: npt.NDArray[np.int64],
        wanted: int,
        reverse: npt.NDArray[np.bool_],
        shift: npt.NDArray[np.int64],
    ) -> WindowBatch:
        contig = self.contig[row]
        missing = np.maximum(wanted - (self.end - self.start)[row], 0)
        start = self.start[row] + shift - missing // 2
        if self.padding == "in_place":
            return WindowBatch(contig, start, wanted, reverse)
        # The published loader keeps what lies on the contig and pads it on the left to full length.
        upper = np.minimum(start + wanted, self.contig_lengths[contig])
        return WindowBatch(
            contig, upper - wanted, wanted, reverse, lower=np.maximum(start, 0), upper=upper
        )

    def touching(self, regions: Regions, length: int, extra: int = 0) -> int:
        """Count the rows whose windows (unshifted) share a position with the given regions.

        Parameters
        ----------
        regions
            Positions that should not be seen, such as the held-out ones.
        length, extra
            Positions the model reads, and target bases after them.

        Returns
        -------
        int
            Number of windows of one epoch.
        """
        numbers = np.arange(self.epoch_size(length, extra) or 0, dtype=np.int64)
        plain = IntervalWindows(
            self.contig,
            self.start,
            self.end,
            contig_lengths=self.contig_lengths,
            shuffle=False,
            segment=self.segment,
        )
        windows = plain.draw(0, numbers, length, extra)
        found = regions.overlap(windows.contig, windows.start, windows.start + windows.length)
        return int(found.sum())
