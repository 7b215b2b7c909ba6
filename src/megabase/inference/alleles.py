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

from megabase.genome.alphabet import BASE_BITS, N, encode, reverse_complement
from megabase.genome.store import GenomeStore
from megabase.genome.vcf import VcfRecord

__all__ = ["PLACEMENTS", "REASONS", "Placed", "Placement", "Reason", "check_allele", "check_record",
           "place"]  # fmt: skip

Reason = Literal[
    "UNKNOWN_CONTIG", "OUTSIDE_CONTIG", "REF_NOT_BASES", "REF_MISMATCH", "NO_ALT", "SYMBOLIC_ALT",
    "ALT_NOT_BASES", "ALT_IS_REF", "CONTIG_TOO_SHORT", "TOO_NEAR_END", "ALLELE_TOO_LONG",
]  # fmt: skip
REASONS: dict[Reason, str] = {
    "UNKNOWN_CONTIG": "the genome has no such contig",
    "OUTSIDE_CONTIG": "POS lies outside the contig, or REF reaches past its end",
    "REF_NOT_BASES": "REF holds something else than A, C, G, T",
    "REF_MISMATCH": "REF differs from the genome",
    "NO_ALT": "the record has no alternative allele",
    "SYMBOLIC_ALT": "a symbolic allele, breakend or *, not a sequence",
    "ALT_NOT_BASES": "ALT holds something else than A, C, G, T",
    "ALT_IS_REF": "ALT is REF",
    "CONTIG_TOO_SHORT": "the contig is shorter than a window around the variant",
    "TOO_NEAR_END": "the end of the contig leaves no window that holds both alleles",
    "ALLELE_TOO_LONG": "the allele does not fit into the window",
}
"""Why a record or an allele has no score."""

Placement = Literal["centred", "grid"]
PLACEMENTS: tuple[Placement, ...] = ("centred", "grid")
"""Ways to place a window: around each variant, or where its neighbours can have the same one."""

_BASES = frozenset("ACGTacgt")
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


def check_record(record: VcfRecord, store: GenomeStore, contig: int | None) -> Reason | None:
    """Say why no allele of a record can be scored, or None.

    Parameters
    ----------
    record
        The record.
    store
        The genome.
    contig
        Index of its contig; None when the genome does not have it.
    """
    if contig is None:
        return "UNKNOWN_CONTIG"
    end = record.position + len(record.ref)
    if record.position < 0 or end > int(store.lengths[contig]):
        return "OUTSIDE_CONTIG"
    if not record.ref or not _BASES.issuperset(record.ref):
        return "REF_NOT_BASES"
    there = store.view(contig)[record.position : end] & np.uint8(BASE_BITS)
    if not np.array_equal(there, encode(record.ref) & np.uint8(BASE_BITS)):
        # A genome with N does not say which base there is: nothing contradicts REF, but the
        # window would not hold it either.
        return "REF_NOT_BASES" if (there == N).any() else "REF_MISMATCH"
    return "NO_ALT" if not record.alts else None


def check_allele(ref: str, alt: str) -> Reason | None:
    """Say why an alternative allele can have no score, or None."""
    if alt[:1] in "<*" or not alt or set(alt) & set("<>[]*"):
        return "SYMBOLIC_ALT"
    if not _BASES.issuperset(alt):
        return "ALT_NOT_BASES"
    return "ALT_IS_REF" if alt.upper() == ref.upper() else None


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
