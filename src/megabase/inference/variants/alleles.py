"""Windows around variants: the same number of bases for both alleles, on either strand.

REF and ALT are trimmed of what they share, first at the front (in reading direction) and then at
the back. Centered, the first base at which they differ stands at index ``window // 2``. On the
grid, windows begin at whole multiples of ``window // 2``, and the one is taken that has this base
in its middle half; alleles longer than an eighth of the window are centered. At the ends of a
contig the window is moved inside instead of being padded. The window of ALT begins at the same base
and has as many bases. The reverse strand is the same rule in the reverse complement of the contig.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megabase.genome.alphabet import BASE_BITS, encode, reverse_complement
from megabase.genome.left_out import Reason

Placement = Literal["centered", "grid"]
PLACEMENTS: tuple[Placement, ...] = ("centered", "grid")
"""Both ways to place a window: the first isolates a variant, in the second neighbors share one."""


class AlleleWindows(NamedTuple):
    """The windows of both alleles of a variant on one strand; they are equal before `offset`."""

    ref: NDArray[np.uint8]
    """Base codes without the soft-mask bit, (window,)."""
    alt: NDArray[np.uint8]
    """The same for ALT, (window,)."""
    offset: int
    """0-based index in the window of the first base that differs."""
    ref_bases: int
    """Length of REF after trimming; may be 0."""
    alt_bases: int
    """Length of ALT after trimming; may be 0."""
    name: str = ""
    """The variant, for messages."""


def cut_windows(
    contig: NDArray[np.uint8],
    position: int,
    ref: str,
    alt: str,
    window: int,
    reverse: bool,
    placement: Placement = "centered",
) -> AlleleWindows | Reason:
    """Cut the windows of both alleles, or give the reason why there are none.

    `position` is the 0-based index of the first base of `ref` in the codes of the whole contig; the
    alleles of A, C, G, T differ, and `ref` is what the contig has.
    """
    length = len(contig)
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
    longest, step = max(len(old), len(new)), window // 2
    start = first - step
    if placement == "grid" and longest <= window // 8:
        start = (first - window // 4) // step * step
    start = min(max(0, start), length - window - more)
    offset = first - start
    if offset + longest > window:
        return "ALLELE_TOO_LONG" if longest > window - step else "TOO_NEAR_END"
    end = start + window + more
    if reverse:
        span = reverse_complement(contig[length - end : length - start])
    else:
        span = contig[start:end]
    span = span & np.uint8(BASE_BITS)
    changed = np.concatenate((span[:offset], new, span[offset + len(old) :]))[:window]
    return AlleleWindows(span[:window], changed, offset, len(old), len(new))
