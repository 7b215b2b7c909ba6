"""The windows in which both alleles of a variant are read."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megabase.genome.alphabet import BASE_BITS, encode, reverse_complement
from megabase.genome.interval import shared_ends
from megabase.genome.left_out import Reason

Placement = Literal["centered", "grid"]
PLACEMENTS: tuple[Placement, ...] = ("centered", "grid")
"""Both ways to place a window: the first isolates a variant, in the second neighbors share one."""


class AlleleWindows(NamedTuple):
    """The windows of both alleles of a variant on one strand; they are equal before `offset`."""

    ref: NDArray[np.uint8]
    """Base codes without the soft-mask bit, (window,)."""
    alt: NDArray[np.uint8]
    offset: int
    """0-based index in the window of the first base that differs."""
    ref_bases: int
    """Length of REF after trimming, as `alt_bases` of ALT; may be 0."""
    alt_bases: int
    stop: int
    """Bases of each window that are read, from its start."""
    name: str = ""
    """The variant, for messages."""

    @classmethod
    def cut(
        cls, contig: NDArray[np.uint8], position: int, ref: str, alt: str, window: int,
        reverse: bool, placement: Placement = "centered",
    ) -> AlleleWindows | Reason:  # fmt: skip
        """Cut the windows of both alleles, or give the reason why there are none.

        `position` is the 0-based index of the first base of `ref` in the codes of the whole contig;
        the alleles of A, C, G, T differ, and `ref` is what the contig has.
        """
        length = len(contig)
        old, new = encode(ref) & np.uint8(BASE_BITS), encode(alt) & np.uint8(BASE_BITS)
        if reverse:
            position = length - position - len(old)
            old, new = reverse_complement(old), reverse_complement(new)
        front, back = shared_ends(old, new)
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
        span = contig[start:end]
        if reverse:
            span = reverse_complement(contig[length - end : length - start])
        span = span & np.uint8(BASE_BITS)
        changed = np.concatenate((span[:offset], new, span[offset + len(old) :]))[:window]
        return cls(span[:window], changed, offset, len(old), len(new), window)

    def named(self, name: str, horizon: int | None) -> AlleleWindows:
        """Name it; read no more bases than end `horizon` behind the longer allele, if given."""
        if horizon is None:
            return self._replace(name=name)
        stop = self.offset + horizon + max(self.ref_bases, self.alt_bases)
        return self._replace(name=name, stop=min(stop, self.stop))
