"""Windows around variants: the same number of bases for both alleles, on either strand.

The rule. REF and ALT are trimmed of what they share, first at the front (in reading direction) and
then at the back. Centred, the first base at which they differ stands at index ``window // 2`` of
the window. On the grid, windows begin at whole multiples of ``window // 2``, and the one is taken
that has this base in its middle half; alleles longer than an eighth of the window are centred. At
the ends of a contig the window is moved inside instead of being padded. The window of ALT begins at
the same base and has as many bases: a deletion takes more from behind, an insertion fewer. The
reverse strand is the same rule in the reverse complement of the contig, so scores of a variant and
of its reverse complement are those of the other strand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megabase.genome.alphabet import BASE_BITS, encode, reverse_complement
from megabase.genome.left_out import Reason

__all__ = ["PLACEMENTS", "Placed", "Placement", "place"]

Placement = Literal["centred", "grid"]
PLACEMENTS: tuple[Placement, ...] = ("centred", "grid")
"""Ways to place a window: around each variant, or where its neighbours can have the same one."""

_Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class Placed:
    """A variant in its two windows, on one strand.

    Parameters
    ----------
    ref, alt
        Base codes without the soft-mask bit, uint8 (window,) each.
    offset
        Index of the first base that differs; the windows are equal before it.
    ref_bases, alt_bases
        Length of the alleles after trimming; one of them may be 0.
    name
        The variant, for messages.
    """

    ref: _Codes
    alt: _Codes
    offset: int
    ref_bases: int
    alt_bases: int
    name: str = ""


def _start(first: int, longest: int, window: int, placement: Placement) -> int:
    """Give where a window would begin on an endless contig."""
    step = window // 2
    if placement == "grid" and longest <= window // 8:
        return (first - window // 4) // step * step
    return first - step


def place(
    view: _Codes,
    position: int,
    ref: str,
    alt: str,
    window: int,
    reverse: bool,
    placement: Placement = "centred",
) -> Placed | Reason:
    """Cut the windows of both alleles.

    Parameters
    ----------
    view
        Codes of the contig.
    position
        0-based index of the first base of `ref`.
    ref, alt
        Alleles of A, C, G, T that differ; `ref` is what the contig has.
    window
        Bases of a window.
    reverse
        Whether to read the reverse complement.
    placement
        Where the window is put.

    Returns
    -------
    Placed or str
        The windows, or the reason why there are none.
    """
    length = len(view)
    old, new = encode(ref) & np.uint8(BASE_BITS), encode(alt) & np.uint8(BASE_BITS)
    if reverse:
        position = length - position - len(old)
        old, new = reverse_complement(old), reverse_complement(new)
    shared = min(len(old), len(new))
    front = 0
    while front < shared and old[front] == new[front]:
        front += 1
    back = 0
    while back < shared - front and old[len(old) - 1 - back] == new[len(new) - 1 - back]:
        back += 1
    old, new = old[front : len(old) - back], new[front : len(new) - back]
    first, more = position + front, max(0, len(old) - len(new))
    if length < window + more:
        return "CONTIG_TOO_SHORT"
    longest = max(len(old), len(new))
    start = min(max(0, _start(first, longest, window, placement)), length - window - more)
    offset = first - start
    if offset + longest > window:
        return "ALLELE_TOO_LONG" if longest > window - window // 2 else "TOO_NEAR_END"
    end = start + window + more
    if reverse:
        span = reverse_complement(view[length - end : length - start])
    else:
        span = view[start:end]
    span = span & np.uint8(BASE_BITS)
    changed = np.concatenate((span[:offset], new, span[offset + len(old) :]))[:window]
    return Placed(span[:window], changed, offset, len(old), len(new))
