"""Items exactly as the published loaders build them, from text to token ids.

For reproducing published runs and numbers. The training path of this library reads codes from a
store (:mod:`megabase.data.windows`); these functions work on text, because the published loaders
do, and what they make of letters other than A, C, G, T, N is part of what they are. Where a habit
is a defect it is an option that is off by default; ``published`` in its documentation says how the
repositories set it. Coordinates are 0-based half-open.

Sources: HazyResearch/hyena-dna and kuleshov-group/caduceus, ``src/dataloaders/datasets``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from megabase.data.vocabulary import N_ID, PAD_ID, SEP_ID, text_to_ids
from megabase.errors import MegabaseError
from megabase.genome.alphabet import BASES

__all__ = [
    "CADUCEUS_SEGMENT",
    "HG38_FIXED_RANGES",
    "CutInterval",
    "PublishedDataError",
    "TextWindow",
    "caduceus_item",
    "caduceus_window",
    "cut_interval",
    "fixed_item",
    "fixed_windows",
    "interval_item",
    "one_hot",
    "padded_item",
    "reverse_complement_text",
    "shift_bounds",
    "shift_targets",
]

_Ids = npt.NDArray[np.int64]

CADUCEUS_SEGMENT = 1 << 20
"""Bases from the start of an interval that the Caduceus loader uses, whatever its end."""

HG38_FIXED_RANGES: Mapping[str, tuple[int, int]] = {
    "chr14": (19_726_402, 106_677_047),
    "chrX": (2_825_622, 144_342_320),
}
"""Stretches of GRCh38 on which the HyenaDNA paper reports perplexity (chromosomes 14 and X)."""

_COMPLEMENT = str.maketrans("ACGTacgt", "TGCAtgca")


class PublishedDataError(MegabaseError):
    """Data that a published loader could not use either."""


def reverse_complement_text(text: str) -> str:
    """Reverse a text and complement A, C, G, T in either case; other characters stay."""
    return text.translate(_COMPLEMENT)[::-1]


def one_hot(text: str) -> npt.NDArray[np.float32]:
    """Give each letter as four numbers for A, C, G, T.

    Parameters
    ----------
    text
        Letters in either case. ``.`` (no base) is 0.25 in all four; N and anything else is 0.

    Returns
    -------
    numpy.ndarray
        float32 (len(text), 4). Reversing both axes gives the reverse complement.
    """
    letters = np.frombuffer(text.upper().encode("latin-1", "replace"), dtype=np.uint8)
    hot = letters[:, None] == np.frombuffer(BASES.encode(), dtype=np.uint8)
    return np.where((letters == ord("."))[:, None], 0.25, hot).astype(np.float32)


def padded_item(
    text: str,
    length: int,
    *,
    add_end: bool = False,
    padding: Literal["left", "right", "none"] = "right",
    case_sensitive: bool = False,
) -> tuple[_Ids, npt.NDArray[np.bool_]]:
    """Bring a text to one length: cut on the right, end with the separator, pad.

    Parameters
    ----------
    text
        DNA letters.
    length
        Ids to give, the separator among them.
    add_end
        End with the separator (1); a text too long loses its last bases for it.
    padding
        Side of the padding (4), or "none". HyenaDNA's loaders pad on the left.
    case_sensitive
        See :func:`text_to_ids`.

    Returns
    -------
    ids : numpy.ndarray
        int64 (length,), or shorter without padding.
    mask : numpy.ndarray
        bool of the same shape, False on padding.
    """
    ids = text_to_ids(text[: length - add_end], case_sensitive=case_sensitive)
    if add_end:
        ids = np.append(ids, SEP_ID)
    missing = 0 if padding == "none" else length - ids.size
    sides = (missing, 0) if padding == "left" else (0, missing)
    return (
        np.pad(ids, sides, constant_values=PAD_ID),
        np.pad(np.ones(ids.size, dtype=np.bool_), sides),
    )


def shift_targets(ids: _Ids, *, n_as_padding: bool = False) -> tuple[_Ids, _Ids]:
    """Split ids into the inputs and the next tokens.

    Parameters
    ----------
    ids
        int64 (length,).
    n_as_padding
        Replace N by padding first.

    Returns
    -------
    data, target : numpy.ndarray
        int64 (length - 1,) each: all but the last, all but the first.
    """
    if n_as_padding:
        ids = np.where(ids == N_ID, PAD_ID, ids)
    return ids[:-1], ids[1:]


class CutInterval(NamedTuple):
    """What is left of an interval on its contig, and how much is missing on each side."""

    start: int
    end: int
    left: int
    right: int


def cut_interval(start: int, end: int, length: int, contig_length: int) -> CutInterval:
    """Bring an interval to a length: lengthen both sides, or keep the first bases.

    Parameters
    ----------
    start, end
        The interval.
    length
        Wanted bases.
    contig_length
        Bases of the contig.

    Returns
    -------
    CutInterval
        The part on the contig; ``left`` and ``right`` count the positions that the interval, once
        lengthened, has outside the contig. As published, they are counted before an interval that
        is too long is cut.
    """
    missing = max(length - (end - start), 0)
    low, high = start - missing // 2, end + missing - missing // 2
    left, right = max(-low, 0), max(high - contig_length, 0)
    low, high = max(low, 0), min(high, contig_length)
    if end - start > length:
        high = min(low + length, contig_length)
    return CutInterval(low, high, left, right)


def shift_bounds(
    start: int, end: int, contig_length: int, shift: tuple[int, int]
) -> tuple[int, int]:
    """Give the range [low, high) of random shifts that the published loader draws from.

    The upper bound is kept on the contig after 1 was added to it, so an interval within reach of
    the contig's end is never moved as far as it could be; at the very end the range is empty on
    the right.

    Parameters
    ----------
    start, end
        The interval.
    contig_length
        Bases of the contig.
    shift
        Smallest and largest shift, both included.

    Returns
    -------
    tuple of int
        Bounds for ``random.randrange``.
    """
    return max(shift[0], -start), min(shift[1] + 1, contig_length - end)


def interval_item(
    contig: str,
    start: int,
    end: int,
    length: int,
    *,
    shift: int = 0,
    reverse: bool = False,
    add_end: bool = True,
    pad_interval: bool = False,
    n_as_padding: bool = False,
    case_sensitive: bool = False,
) -> tuple[_Ids, _Ids]:
    """Build a pretraining item of HyenaDNA: an interval as inputs and next tokens.

    Parameters
    ----------
    contig
        The whole contig as text.
    start, end
        The interval in the table.
    length
        The loader's ``max_length``; the item has one position less.
    shift
        Bases to move the interval by, drawn by the caller (see :func:`shift_bounds`).
    reverse
        Take the reverse complement.
    add_end
        End with the separator; published: True.
    pad_interval
        Write ``.`` where the lengthened interval leaves the contig; it becomes unknown (6).
        Published: False, and all padding goes to the left.
    n_as_padding
        Replace N by padding; published: False.
    case_sensitive
        Take lower case as unknown; published: True.

    Returns
    -------
    data, target : numpy.ndarray
        int64 (length - 1,) each.
    """
    cut = cut_interval(start + shift, end + shift, length, len(contig))
    text = contig[cut.start : cut.end]
    if reverse:
        text = reverse_complement_text(text)
    if pad_interval:
        text = "." * cut.left + text + "." * cut.right
    ids, _ = padded_item(
        text, length, add_end=add_end, padding="left", case_sensitive=case_sensitive
    )
    return shift_targets(ids, n_as_padding=n_as_padding)


class TextWindow(NamedTuple):
    """A stretch of a named contig, 0-based half-open."""

    contig: str
    start: int
    end: int


def fixed_windows(
    length: int, ranges: Mapping[str, tuple[int, int]] = HG38_FIXED_RANGES
) -> list[TextWindow]:
    """Cut ranges into windows side by side, the last of each shorter.

    Parameters
    ----------
    length
        Bases of a window.
    ranges
        Contig name to (start, end).

    Returns
    -------
    list of TextWindow
        In the order of the ranges.
    """
    return [
        TextWindow(contig, place, min(place + length, end))
        for contig, (start, end) in ranges.items()
        for place in range(start, end, length)
    ]


def fixed_item(text: str, length: int) -> tuple[_Ids, _Ids]:
    """Build an item of HyenaDNA's fixed test set: padding left, separator after, N as padding.

    Parameters
    ----------
    text
        The window's letters.
    length
        Bases of a full window.

    Returns
    -------
    data, target : numpy.ndarray
        int64 (length,) each; one more position than :func:`interval_item` gives.
    """
    ids, _ = padded_item(text, length, padding="left")
    return shift_targets(np.append(ids, SEP_ID), n_as_padding=True)


def caduceus_window(
    start: int, index: int, length: int, contig_length: int, segment: int = CADUCEUS_SEGMENT
) -> tuple[int, int]:
    """Give one of the windows that follow each other from an interval's start.

    Parameters
    ----------
    start
        Start of the interval; its end is not used.
    index
        Which window, from 0 to ``segment / length - 1``.
    length
        Bases of a window; divides `segment`.
    contig_length
        Bases of the contig; a window past its end is moved back onto it.
    segment
        Bases used of each interval.

    Returns
    -------
    tuple of int
        Start and end.

    Raises
    ------
    PublishedDataError
        When the length does not divide the segment, or the contig is shorter than a window.
    """
    if length < 1 or segment % length:
        raise PublishedDataError(
            f"the length must divide the segment of {segment:,} bases, found {length:,}"
        )
    if contig_length < length:
        raise PublishedDataError(
            f"a contig of {contig_length:,} bases holds no window of {length:,}"
        )
    low = max(min(start + index * length, contig_length - length), 0)
    return low, low + length


def caduceus_item(
    text: str, length: int, *, reverse: bool = False, add_end: bool = True
) -> tuple[_Ids, _Ids]:
    """Build a next-token pretraining item of Caduceus: every base kept, N always padding.

    Parameters
    ----------
    text
        The window's letters.
    length
        The loader's ``max_length``.
    reverse
        Take the reverse complement.
    add_end
        Append the separator after the bases; published: True.

    Returns
    -------
    data, target : numpy.ndarray
        int64 (length,) each, or (length - 1,) without the separator.
    """
    ids, _ = padded_item(reverse_complement_text(text) if reverse else text, length, padding="left")
    return shift_targets(np.append(ids, SEP_ID) if add_end else ids, n_as_padding=True)
