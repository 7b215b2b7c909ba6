"""Windows of a genome by number: pure functions of (seed, stream, index, length).

A stream is one stage of the length warm-up; the index is the running number of the window inside
that stage. Coordinates are 0-based half-open. `length` counts the positions the model reads, and
`extra` the bases after them that only a target needs (1 for next-token prediction).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megabase.data.hashing import Draws
from megabase.data.regions import Intervals, Regions
from megabase.errors import InputError
from megabase.genome import alphabet
from megabase.genome.store import Genome

_POSITION, _REVERSE, _ORDER, _SHIFT = range(4)  # part of a draw's key: purposes are independent
_MASK_SEED = 0x6D61736B
"""ASCII "mask": sets the seeds of masked positions apart from the draws of the windows."""
_WEIGHT_ONE = 1000  # weights are counted in thousandths: draws stay whole numbers
_ATTEMPTS = 100  # draws of a window with few N; after a hundred, the regions hold next to none

_Ints = npt.NDArray[np.int64]


class _WindowBatch(NamedTuple):
    contig: npt.NDArray[np.int32]  # int32 (n,): index of the contig in the genome store
    start: _Ints
    """int64 (n,): first position, 0-based; may be negative, positions off the contig are
    padding."""
    length: int  # bases in each window, with the extra ones
    lower: _Ints | None = None
    upper: _Ints | None = None
    """int64 (n,) or None: only positions in [lower, upper) are read, the others are padding."""
    reverse: npt.NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
    """bool (n,): read the window as its reverse complement; drawn last."""


class WindowSource(ABC):
    """Windows by number, each read as its reverse complement with a given probability.

    The order is shuffled anew in each epoch; `seed` decides all draws.
    """

    def __init__(self, seed: int, shuffle: bool, reverse_complement: float) -> None:
        self.seed, self.shuffle, self.reverse_complement = seed, shuffle, reverse_complement

    def epoch_size(self, length: int, extra: int = 0) -> int | None:
        """Count the windows of one epoch; None when the source has no epochs."""
        return None

    def draw(self, stream: int, indices: _Ints, length: int, extra: int = 0) -> _WindowBatch:
        """Give the windows with these numbers; numbers past an epoch continue in the next.

        `indices`, int64 (n,), are running numbers inside a stage of the length warm-up (`stream`).
        Windows have ``length + extra`` bases: positions the model reads, and target bases after
        them. An InputError when the source holds no such window.
        """
        numbers = np.asarray(indices, dtype=np.int64)
        coins = Draws(self.seed, stream, _REVERSE).floats(numbers)
        windows = self._place(stream, numbers, length, extra)
        return windows._replace(reverse=coins < self.reverse_complement)

    @abstractmethod
    def _place(self, stream: int, numbers: _Ints, length: int, extra: int) -> _WindowBatch:
        """Give the windows on the forward strand."""

    def _in_epoch(self, stream: int, numbers: _Ints, size: int) -> _Ints:
        """Position of each number in its epoch; every epoch is a permutation of its own."""
        epoch, place = np.divmod(numbers, np.int64(size))
        if not self.shuffle:
            return place
        return Draws(self.seed, stream, _ORDER).permute(place, size, epoch)


class RandomWindows(WindowSource):
    """Windows uniform over the allowed positions: each admissible start is equally likely.

    A window with its extra bases lies within one region. There are no epochs. Windows of the
    `store` with a larger share of N than `max_n_fraction` are drawn again (with the number of the
    attempt in the hash, so the result stays a pure function). `weights` are classes of positions:
    a window whose middle lies in one is drawn that many times as often (of several, the last
    decides).
    """

    def __init__(
        self, regions: Regions, *, seed: int, reverse_complement: float = 0.0,
        max_n_fraction: float = 1.0, store: Genome | None = None,
        weights: Sequence[tuple[Regions, float]] = (),
    ) -> None:  # fmt: skip
        super().__init__(seed, True, reverse_complement)
        if len(regions) == 0:
            raise InputError(
                "there are no positions to draw windows from: nothing is left after the held-out "
                "and excluded regions"
            )
        self.regions, self.store, self.max_n_fraction = regions, store, max_n_fraction
        self.weights = weights
        self._found: dict[int, tuple[Regions, _Ints]] = {}

    def _starts(self, wanted: int) -> tuple[Regions, _Ints]:
        """Give where windows may start, in pieces of one class each, and their weights."""
        if wanted in self._found:
            return self._found[wanted]
        fits = self.regions.end - self.regions.start >= wanted
        contig, start = self.regions.contig[fits], self.regions.start[fits]
        rest = Regions.of(contig, start, self.regions.end[fits] - wanted + 1)
        pieces, weights = [], []
        for regions, weight in reversed(self.weights):
            low, high = (np.maximum(at - wanted // 2, 0) for at in (regions.start, regions.end))
            pieces.append(rest.intersect(Regions.of(regions.contig, low, high)))
            weights.append(round(weight * _WEIGHT_ONE))
            rest = rest.subtract(pieces[-1])
        each = np.repeat([*weights, _WEIGHT_ONE], [*map(len, pieces), len(rest)])
        joined = (
            np.concatenate([getattr(one, name) for one in (*pieces, rest)])
            for name in ("contig", "start", "end")
        )
        self._found[wanted] = Regions(*joined), each if weights else np.ones_like(each)
        return self._found[wanted]

    def _place(self, stream: int, numbers: _Ints, length: int, extra: int) -> _WindowBatch:
        wanted = length + extra
        starts, weights = self._starts(wanted)
        counted = (starts.end - starts.start) * weights
        ends = np.cumsum(counted)
        total = int(ends[-1]) if ends.size else 0
        if total == 0:
            longest = f"the longest has {self.regions.longest:,}; use a shorter length"
            raise InputError(f"no allowed region holds a window of {wanted:,} bases: {longest}")
        contig = np.empty(numbers.shape, dtype=np.int32)
        start = np.empty(numbers.shape, dtype=np.int64)
        pending = np.arange(numbers.size)
        for attempt in range(_ATTEMPTS):
            draws = Draws(self.seed, stream, _POSITION, attempt)
            place = draws.below(numbers[pending], total)
            region = np.searchsorted(ends, place, side="right")
            contig[pending] = starts.contig[region]
            into = (place - (ends - counted)[region]) // weights[region]
            start[pending] = starts.start[region] + into
            if self.max_n_fraction >= 1.0 or self.store is None:
                break
            codes = self.store.fetch_many(contig[pending], start[pending], wanted)
            codes &= np.uint8(alphabet.BASE_BITS)
            count = np.count_nonzero(codes == alphabet.N, axis=1)
            pending = pending[count > self.max_n_fraction * wanted]
            if pending.size == 0:
                break
        else:
            raise InputError(
                f"no window of {wanted:,} bases with at most {self.max_n_fraction:.0%} N was found "
                f"in {_ATTEMPTS} attempts; exclude long runs of N or raise max_n_fraction"
            )
        return _WindowBatch(contig, start, wanted)


class TiledWindows(WindowSource):
    """Windows side by side over the allowed regions: an epoch reads each position once.

    Inputs do not overlap. With ``extra = 1`` the last base of a window, which is only a target, is
    the first input of the next, so that each base but the first of a region is a target once.
    `last` says what happens to the rest of a region that fills no window: "short" keeps it, with
    padding after it; "drop" leaves it out.
    """

    def __init__(
        self, regions: Regions, *, seed: int = 0, shuffle: bool = True,
        last: Literal["short", "drop"] = "short", reverse_complement: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(seed, shuffle, reverse_complement)
        self.regions, self.last = regions, last

    def _ends(self, length: int, extra: int) -> _Ints:
        positions = np.maximum(self.regions.end - self.regions.start - extra, 0)
        if self.last == "short":
            positions = positions + length - 1
        return np.cumsum(positions // length)

    def epoch_size(self, length: int, extra: int = 0) -> int:
        """Count the tiles of all regions."""
        ends = self._ends(length, extra)
        return int(ends[-1]) if ends.size else 0

    def _place(self, stream: int, numbers: _Ints, length: int, extra: int) -> _WindowBatch:
        ends, total = self._ends(length, extra), self.epoch_size(length, extra)
        if total == 0:
            raise InputError(
                f"the allowed regions hold no window of {length + extra:,} bases "
                f'(last="{self.last}"): the longest has {self.regions.longest:,}'
            )
        tile = self._in_epoch(stream, numbers, total)
        region = np.searchsorted(ends, tile, side="right")
        before = np.where(region > 0, ends[region - 1], 0)
        start = self.regions.start[region] + (tile - before) * length
        upper, contig = self.regions.end[region], self.regions.contig[region]
        return _WindowBatch(contig, start, length + extra, upper=upper)


class IntervalWindows(WindowSource):
    """One window for each row of a table of intervals: the published way (HyenaDNA paper, A.1).

    An interval shorter than the window is lengthened on both sides, the odd base on the right; of a
    longer one only the first bases are ever used. `shift` is the smallest and largest random shift
    of an interval in bases (kept on the contig). Where a lengthened interval leaves its contig, the
    missing positions are padding: "in_place" where the bases are missing, or "left", always before
    the sequence, as published. Lengthened windows may run into held-out regions: nothing of the
    published rule prevents it (see :meth:`touching`).
    """

    def __init__(
        self, intervals: Intervals, *, contig_lengths: npt.NDArray[np.integer], seed: int = 0,
        shuffle: bool = True, shift: tuple[int, int] | None = None, reverse_complement: float = 0.0,
        padding: Literal["in_place", "left"] = "in_place",
    ) -> None:  # fmt: skip
        super().__init__(seed, shuffle, reverse_complement)
        if shift is not None and not shift[0] <= 0 <= shift[1]:
            raise InputError(f"shift must be a range around 0, such as (-3, 3); found {shift}")
        self.intervals = intervals
        self.contig_lengths = np.asarray(contig_lengths, dtype=np.int64)
        contig, start, end = intervals
        if start.size == 0:
            raise InputError("the table of intervals has no row for this split")
        bad = (start < 0) | (end < start) | (start >= self.contig_lengths[contig])
        if bad.any():
            row = int(bad.argmax())
            raise InputError(
                f"interval {row + 1} [{start[row]:,}, {end[row]:,}) does not begin on "
                f"its contig, which has {self.contig_lengths[contig[row]]:,} bases, "
                "or ends before it begins"
            )
        self.shift, self.padding = shift, padding

    def epoch_size(self, length: int, extra: int = 0) -> int:
        """Count the rows."""
        return self.intervals.start.size

    def _start(self, row: _Ints, wanted: int) -> _Ints:
        length = (self.intervals.end - self.intervals.start)[row]
        return self.intervals.start[row] - np.maximum(wanted - length, 0) // 2

    def _place(self, stream: int, numbers: _Ints, length: int, extra: int) -> _WindowBatch:
        wanted = length + extra
        row = self._in_epoch(stream, numbers, self.intervals.start.size)
        contig = self.intervals.contig[row]
        start, end = self._start(row, wanted), self.intervals.end[row]
        if self.shift is not None:
            lowest = np.maximum(self.shift[0], -self.intervals.start[row])
            highest = np.minimum(self.shift[1], self.contig_lengths[contig] - end)
            number = np.maximum(highest, lowest) - lowest + 1
            start += lowest + Draws(self.seed, stream, _SHIFT).below(numbers, number)
        if self.padding == "in_place":
            return _WindowBatch(contig, start, wanted)
        # The published loader keeps what lies on the contig and pads it on the left to full length.
        upper = np.minimum(start + wanted, self.contig_lengths[contig])
        return _WindowBatch(contig, upper - wanted, wanted, np.maximum(start, 0), upper)

    def touching(self, regions: Regions, length: int, extra: int = 0) -> int:
        """Count the rows whose windows (unshifted) share a position with regions to be avoided."""
        row = np.arange(self.intervals.start.size)
        start = self._start(row, length + extra)
        return int(regions.overlap(self.intervals.contig, start, start + length + extra).sum())


class GenomeWindows:
    """Windows of a genome by number, as batches of codes.

    A batch is a pure function of (stream, indices, length), the store and the source. `extra` is
    the number of bases beyond the model's input positions that the objective needs (its
    ``extra_bases``): 1 for next-token prediction, 0 for masked bases.
    """

    def __init__(self, store: Genome, source: WindowSource, extra: int = 1) -> None:
        self.store, self.source, self.extra = store, source, extra

    def epoch_size(self, length: int) -> int | None:
        """Count the windows of one epoch at a length; None when the source has no epochs."""
        return self.source.epoch_size(length, self.extra)

    def batch(self, stream: int, indices: _Ints, length: int) -> dict[str, Tensor]:
        """Read the windows with these int64 (n,) numbers in a stage, for `length` positions.

        ``codes`` uint8 (n, length + extra), forward strand, soft-mask bit kept, padding code
        outside the contig; ``reverse`` bool (n,), rows to read as their reverse complement (on the
        device, by :func:`megabase.data.vocabulary.reverse_complement_codes`); ``mask_seed`` int64
        (n,), random bits that belong to the sequence, for objectives that mask.
        """
        windows = self.source.draw(stream, indices, length, self.extra)
        codes = self.store.fetch_many(windows.contig, windows.start, windows.length)
        _pad_outside(codes, windows)
        seeds = Draws(self.source.seed, stream, _MASK_SEED).bits(indices)
        return {
            "codes": torch.from_numpy(codes),
            "reverse": torch.from_numpy(windows.reverse),
            "mask_seed": torch.from_numpy(seeds.view(np.int64)),
        }


def _pad_outside(codes: npt.NDArray[np.uint8], windows: _WindowBatch) -> None:
    """Overwrite positions outside [lower, upper) with padding; few windows have any."""
    stop = windows.start + windows.length
    if windows.upper is not None:
        for row in np.flatnonzero(windows.upper < stop).tolist():
            codes[row, max(int(windows.upper[row] - windows.start[row]), 0) :] = alphabet.PAD
    if windows.lower is not None:
        for row in np.flatnonzero(windows.lower > windows.start).tolist():
            codes[row, : int(windows.lower[row] - windows.start[row])] = alphabet.PAD
