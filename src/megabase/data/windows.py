"""Which stretch of the genome is item number i: pure functions of (seed, stream, index, length).

No rank, world size, micro-batch or history enters, so every split of the indices over processes
gives the same windows, and a resumed run needs nothing but its step. A stream is one stage of the
length warm-up; the index is the running number of the sequence inside that stage.

All coordinates are 0-based half-open. `length` counts the positions the model reads, and `extra`
the bases after them that only a target needs (1 for next-token prediction).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from megabase.data.hashing import derive_key, draw_bits, mix64, permute, uniform_below, unit_float
from megabase.data.regions import Regions
from megabase.errors import InputError

__all__ = [
    "NCounter",
    "RandomWindows",
    "TiledWindows",
    "WindowBatch",
    "WindowSource",
]

# What a draw is for; part of its key, so that draws for different purposes are independent.
POSITION, REVERSE, ORDER, SHIFT = range(4)
_ATTEMPTS = 100

NCounter = Callable[[npt.NDArray[np.int32], npt.NDArray[np.int64], int], npt.NDArray[np.int64]]
"""(contig, start, length) -> number of N in each window; contig and start are (n,)."""


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Windows of one length.

    Parameters
    ----------
    contig
        int32 (n,): index of the contig in the genome store.
    start
        int64 (n,): first position, 0-based; may be negative, positions off the contig are padding.
    length
        Bases in each window, with the extra ones.
    reverse
        bool (n,): read the window as its reverse complement.
    lower, upper
        int64 (n,) or None: only positions in [lower, upper) are read, the others are padding.
    """

    contig: npt.NDArray[np.int32]
    start: npt.NDArray[np.int64]
    length: int
    reverse: npt.NDArray[np.bool_]
    lower: npt.NDArray[np.int64] | None = None
    upper: npt.NDArray[np.int64] | None = None


class WindowSource(Protocol):
    """What a dataset needs: windows by number, and how many make an epoch."""

    seed: int

    def draw(
        self, stream: int, indices: npt.NDArray[np.int64], length: int, extra: int = 0
    ) -> WindowBatch:
        """Give the windows with these numbers; see the module's head."""
        ...

    def epoch_size(self, length: int, extra: int = 0) -> int | None:
        """Count the windows of one epoch; None when there is no such thing."""
        ...


def checked_numbers(
    indices: npt.NDArray[np.int64], length: int, extra: int
) -> npt.NDArray[np.int64]:
    numbers = np.asarray(indices, dtype=np.int64)
    if length < 1 or extra < 0:
        raise InputError(
            f"a window needs a length of at least 1 and no negative extra bases; "
            f"found length {length}, extra {extra}"
        )
    if numbers.ndim != 1 or bool((numbers < 0).any()):
        raise InputError("window numbers must be a one-dimensional array of integers >= 0")
    return numbers


def strand_coins(
    seed: int, stream: int, numbers: npt.NDArray[np.int64], probability: float
) -> npt.NDArray[np.bool_]:
    if probability <= 0.0:
        return np.zeros(numbers.shape, dtype=np.bool_)
    return unit_float(draw_bits(derive_key(seed, stream, REVERSE), numbers)) < probability


def place_in_epoch(
    seed: int, stream: int, numbers: npt.NDArray[np.int64], size: int, shuffle: bool
) -> npt.NDArray[np.int64]:
    """Place of each number in the epoch it falls into: every epoch its own permutation."""
    epoch, place = np.divmod(numbers, np.int64(size))
    if not shuffle:
        return place
    return permute(place, size, mix64(draw_bits(derive_key(seed, stream, ORDER), epoch)))


def check_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{name} must lie between 0 and 1, found {value}")


class RandomWindows:
    """Windows uniform over everything allowed: each admissible start is equally likely.

    A window with its extra bases lies within one region, so it never touches a position outside
    the allowed ones.

    Parameters
    ----------
    regions
        The allowed positions.
    seed
        Seed of all draws.
    reverse_complement
        Probability that a window is read as its reverse complement.
    max_n_fraction
        Windows with a larger share of N are drawn again (with the number of the attempt in the
        hash, so the result stays a pure function). 1.0 takes every window.
    count_n
        Counts N in windows; needed when `max_n_fraction` is below 1.

    Raises
    ------
    InputError
        For no allowed positions, or options out of range.
    """

    def __init__(
        self,
        regions: Regions,
        *,
        seed: int,
        reverse_complement: float = 0.0,
        max_n_fraction: float = 1.0,
        count_n: NCounter | None = None,
    ) -> None:
        check_probability("reverse_complement", reverse_complement)
        check_probability("max_n_fraction", max_n_fraction)
        if max_n_fraction < 1.0 and count_n is None:
            raise InputError("max_n_fraction below 1 needs count_n, a function that counts N")
        if len(regions) == 0:
            raise InputError(
                "there are no positions to draw windows from: "
                "nothing is left after the held-out and excluded regions"
            )
        self.regions = regions
        self.seed = seed
        self.reverse_complement = reverse_complement
        self.max_n_fraction = max_n_fraction
        self.count_n = count_n

    def epoch_size(self, length: int, extra: int = 0) -> int | None:
        """Give None: random windows have no epoch."""
        checked_numbers(np.zeros(1, np.int64), length, extra)
        return None

    def draw(
        self, stream: int, indices: npt.NDArray[np.int64], length: int, extra: int = 0
    ) -> WindowBatch:
        """Give the windows with these numbers.

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
            When no region is long enough, or no window with few enough N turns up.
        """
        numbers = checked_numbers(indices, length, extra)
        wanted = length + extra
        starts = np.maximum(self.regions.end - self.regions.start - wanted + 1, 0)
        ends = np.cumsum(starts)
        total = int(ends[-1])
        if total == 0:
            raise InputError(
                f"no allowed region holds a window of {wanted:,} bases: "
                f"the longest has {self.regions.longest:,}; use a shorter length"
            )
        contig = np.empty(numbers.shape, dtype=np.int32)
        start = np.empty(numbers.shape, dtype=np.int64)
        pending = np.arange(numbers.size)
        for attempt in range(_ATTEMPTS):
            key = derive_key(self.seed, stream, POSITION, attempt)
            place = uniform_below(draw_bits(key, numbers[pending]), total)
            region = np.searchsorted(ends, place, side="right")
            contig[pending] = self.regions.contig[region]
            start[pending] = self.regions.start[region] + place - (ends - starts)[region]
            if self.max_n_fraction >= 1.0 or self.count_n is None:
                break
            count = self.count_n(contig[pending], start[pending], wanted)
            pending = pending[count > self.max_n_fraction * wanted]
            if pending.size == 0:
                break
        else:
            raise InputError(
                f"no window of {wanted:,} bases with at most {self.max_n_fraction:.0%} N was found "
                f"in {_ATTEMPTS} attempts; exclude long runs of N or raise max_n_fraction"
            )
        return WindowBatch(
            contig, start, wanted, strand_coins(self.seed, stream, numbers, self.reverse_complement)
        )


class TiledWindows:
    """Windows side by side over the allowed regions: an epoch reads each position once.

    Inputs do not overlap. With ``extra = 1`` the last base of a window, which is only a target, is
    the first input of the next, so that each base but the first of a region is a target once.

    Parameters
    ----------
    regions
        The allowed positions.
    seed
        Seed of the order and of the strand.
    shuffle
        Shuffle the order, anew in each epoch.
    last
        What to do with the rest of a region that fills no window: "short" keeps it, with padding
        after it; "drop" leaves it out.
    reverse_complement
        Probability that a window is read as its reverse complement.

    Raises
    ------
    InputError
        For options out of range.
    """

    def __init__(
        self,
        regions: Regions,
        *,
        seed: int = 0,
        shuffle: bool = True,
        last: Literal["short", "drop"] = "short",
        reverse_complement: float = 0.0,
    ) -> None:
        check_probability("reverse_complement", reverse_complement)
        if last not in ("short", "drop"):
            raise InputError(f'last must be "short" or "drop", found {last!r}')
        self.regions = regions
        self.seed = seed
        self.shuffle = shuffle
        self.last = last
        self.reverse_complement = reverse_complement

    def _ends(self, length: int, extra: int) -> npt.NDArray[np.int64]:
        """Count the tiles of all regions up to each."""
        positions = np.maximum(self.regions.end - self.regions.start - extra, 0)
        if self.last == "short":
            positions = positions + length - 1
        return np.cumsum(positions // length)

    def epoch_size(self, length: int, extra: int = 0) -> int | None:
        """Count the tiles of this length.

        Parameters
        ----------
        length, extra
            Positions the model reads, and target bases after them.

        Returns
        -------
        int
            0 when no region holds a tile.
        """
        checked_numbers(np.zeros(1, np.int64), length, extra)
        ends = self._ends(length, extra)
        return int(ends[-1]) if ends.size else 0

    def draw(
        self, stream: int, indices: npt.NDArray[np.int64], length: int, extra: int = 0
    ) -> WindowBatch:
        """Give the tiles with these numbers; numbers past an epoch go on in the next.

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
            Windows of ``length + extra`` bases; ``upper`` marks the end of the region.

        Raises
        ------
        InputError
            When no region holds a tile.
        """
        numbers = checked_numbers(indices, length, extra)
        ends = self._ends(length, extra)
        total = int(ends[-1]) if ends.size else 0
        if total == 0:
            raise InputError(
                f"the allowed regions hold no window of {length + extra:,} bases "
                f'(last="{self.last}"): the longest has {self.regions.longest:,}'
            )
        tile = place_in_epoch(self.seed, stream, numbers, total, self.shuffle)
        region = np.searchsorted(ends, tile, side="right")
        before = np.where(region > 0, ends[region - 1], 0)
        return WindowBatch(
            self.regions.contig[region],
            self.regions.start[region] + (tile - before) * length,
            length + extra,
            strand_coins(self.seed, stream, numbers, self.reverse_complement),
            upper=self.regions.end[region],
        )
