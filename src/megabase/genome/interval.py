"""Contig names, strands, intervals and variants.

Coordinates are 0-based and half-open everywhere in megabase; text for people is 1-based and closed:
``Interval("chr1", 1000, 2000)`` is shown as ``chr1:1,001-2,000``. Only :func:`zero_based` and
:func:`one_based` turn one into the other.
"""

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self, TypeVar

from megabase.errors import GenomeError
from megabase.genome.alphabet import BASES

_Number = TypeVar("_Number", bound=Any)

MITOCHONDRIAL = ("chrM", "MT", "M", "chrMT")
"""UCSC's name first: the others are Ensembl's and RefSeq's."""
_NUMBER = r"-?\d[\d,]*"
"""A position as people write it; negative ones are refused later, with a better message."""
# CONTIG:START-END(STRAND); a name in braces may hold colons.
_INTERVAL = re.compile(
    rf"(?:\{{(?P<braced>[^{{}}\s]+)\}}|(?P<contig>\S+)):(?P<start>{_NUMBER})(?:-(?P<end>{_NUMBER}))?(?:\((?P<strand>[-+.])\))?"
)
# CONTIG:POSITION:REF>ALT, or gnomAD's CONTIG-POSITION-REF-ALT.
_VARIANT = re.compile(
    r"(?P<contig>\S+)[:-](?P<position>\d[\d,]*)[:\s-](?P<ref>[A-Za-z]+)[->:](?P<alt>[A-Za-z]+)"
)


def zero_based(position: _Number) -> _Number:
    """0-based index of a 1-based position: an integer, an array or a polars expression.

    The start of a closed 1-based interval (VCF, GFF, ``chr1:1,001-2,000``) converts this way; its
    end is the same number in half-open 0-based coordinates.
    """
    return position - 1


def one_based(index: _Number) -> _Number:
    """1-based position of a 0-based index: the inverse of :func:`zero_based`."""
    return index + 1


def contig_aliases(name: str) -> tuple[str, ...]:
    """Return other spellings under which a contig is looked for; an exact name always wins.

    >>> contig_aliases("chr20"), contig_aliases("MT")
    (('20',), ('chrM', 'M', 'chrMT'))
    """
    if name in MITOCHONDRIAL:
        return tuple(other for other in MITOCHONDRIAL if other != name)
    if name.startswith("chr"):
        return (name[3:],) if len(name) > 3 else ()
    return (f"chr{name}",)


def shared_ends(ref: Any, alt: Any) -> tuple[int, int]:
    """Count what two alleles share at the front, and then of the rest at the back."""
    shared, front, back = min(len(ref), len(alt)), 0, 0
    while front < shared and ref[front] == alt[front]:
        front += 1
    while back < shared - front and ref[-1 - back] == alt[-1 - back]:
        back += 1
    return front, back


def union(parts: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Join what overlaps or meets, in order."""
    joined: list[list[int]] = []
    for start, end in sorted(parts):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return tuple((start, end) for start, end in joined)


class Strand(StrEnum):
    """Strand of a feature, written as in BED and GFF."""

    FORWARD = "+"
    REVERSE = "-"
    UNSTRANDED = "."


def _index(value: object, what: str) -> int:
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        kind = type(value).__name__
        raise GenomeError(f"{what} must be a whole number, found {value!r} ({kind})") from None


def _contig_name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise GenomeError(f"a contig name must be a non-empty string, found {value!r}")
    return value


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """A segment of a contig, 0-based and half-open.

    A GenomeError when ``start >= end``, or a coordinate is not a whole number.

    >>> interval = Interval("chr1", 1000, 2000)
    >>> str(interval), interval.length
    ('chr1:1,001-2,000', 1000)
    >>> Interval.parse("chr1:1,001-2,000") == interval
    True
    """

    contig: str
    """Name of the contig."""
    start: int
    """0-based index of the first base. May be negative: a window that begins before its contig."""
    end: int
    """0-based index after the last base; greater than ``start``."""
    strand: Strand = Strand.UNSTRANDED
    """Fetching a ``Strand.REVERSE`` interval gives its reverse complement."""

    def __post_init__(self) -> None:
        _contig_name(self.contig)
        object.__setattr__(self, "start", _index(self.start, "start"))
        object.__setattr__(self, "end", _index(self.end, "end"))
        try:
            object.__setattr__(self, "strand", Strand(self.strand))
        except ValueError:
            raise GenomeError(f"a strand is '+', '-' or '.', found {self.strand!r}") from None
        if self.start >= self.end:
            raise GenomeError(
                f"an interval needs start < end, found start {self.start:,} and end {self.end:,} "
                f"(0-based, half-open) on contig {self.contig!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``chr1:1,001-2,000``: 1-based, both ends included, commas optional.

        A single position (``chr1:1,001``) is an interval of one base. A strand may follow in
        parentheses: ``chr1:1,001-2,000(-)``. Braces around the name of the contig show where it
        ends: ``{HLA-A*01:01}:1-100``. Any other text is a GenomeError.
        """
        match = _INTERVAL.fullmatch(text.strip())
        if match is None:
            raise GenomeError(
                f"cannot read {text!r} as an interval; expected CONTIG:START-END, 1-based with "
                "both ends included, such as chr1:1,001-2,000 or chr1:1001-2000(-)"
            )
        first = int(match["start"].replace(",", ""))
        last = int(match["end"].replace(",", "")) if match["end"] else first
        if first > last:
            raise GenomeError(
                f"interval {text!r} ends before it starts; expected START <= END (1-based, both "
                "included)"
            )
        return cls(
            match["braced"] or match["contig"],
            zero_based(first),
            last,
            Strand(match["strand"] or "."),
        )

    @property
    def length(self) -> int:
        """Number of bases."""
        return self.end - self.start

    @property
    def center(self) -> int:
        """0-based index of the middle base; of the right one of two when the length is even."""
        return (self.start + self.end) // 2

    def resize(self, length: int) -> Self:
        """Interval of another length around the same center.

        The base at :attr:`center` is at index ``length // 2`` of the new interval (on the forward
        strand). The result may reach past the ends of the contig.
        """
        length = _index(length, "length")
        if length < 1:
            raise GenomeError(f"an interval needs a length of 1 or more, found {length}")
        start = self.center - length // 2
        return replace(self, start=start, end=start + length)

    def contains(self, other: Self) -> bool:
        """Whether every base of ``other`` lies in this interval, on either strand."""
        return self.contig == other.contig and self.start <= other.start and other.end <= self.end

    def __str__(self) -> str:
        strand = "" if self.strand is Strand.UNSTRANDED else f"({self.strand})"
        return f"{self.contig}:{one_based(self.start):,}-{self.end:,}{strand}"


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """A substitution, insertion or deletion of bases, on the forward strand.

    A GenomeError when the position is negative or an allele is not made of A, C, G, T, N (symbolic
    alleles such as ``<DEL>`` are not sequences).

    >>> variant = Variant.parse("chr1:1,001:A>G")
    >>> variant.position, str(variant)
    (1000, 'chr1:1,001:A>G')
    """

    contig: str
    """Name of the contig."""
    position: int
    """0-based index of the first reference base (the VCF column POS minus one)."""
    ref: str
    alt: str
    """Reference bases and their replacement, one or more of A, C, G, T, N; stored in upper case."""

    def __post_init__(self) -> None:
        _contig_name(self.contig)
        object.__setattr__(self, "position", _index(self.position, "position"))
        if self.position < 0:
            raise GenomeError(
                f"a variant needs a 0-based position of 0 or more, found {self.position} on "
                f"contig {self.contig!r}"
            )
        for what in ("ref", "alt"):
            allele = getattr(self, what)
            upper = allele.upper() if isinstance(allele, str) else ""
            if not upper or set(upper) - {*BASES, "N"}:
                raise GenomeError(
                    f"the {what} allele of a variant must be made of A, C, G, T, N; found "
                    f"{allele!r} at {self.contig}:{one_based(self.position):,}"
                )
            object.__setattr__(self, what, upper)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``chr1:1,001:A>G`` or ``chr1-1001-A-G``; the position is 1-based, as in VCF.

        Any other text is a GenomeError.
        """
        match = _VARIANT.fullmatch(text.strip())
        if match is None or int(match["position"].replace(",", "")) < 1:
            raise GenomeError(
                f"cannot read {text!r} as a variant; expected CONTIG:POSITION:REF>ALT with a "
                "1-based position, such as chr1:1,001:A>G (or chr1-1001-A-G)"
            )
        position = zero_based(int(match["position"].replace(",", "")))
        return cls(match["contig"], position, match["ref"], match["alt"])

    @property
    def end(self) -> int:
        """0-based index after the last reference base."""
        return self.position + len(self.ref)

    @property
    def interval(self) -> Interval:
        """The reference bases that the variant replaces."""
        return Interval(self.contig, self.position, self.end)

    def __str__(self) -> str:
        return f"{self.contig}:{one_based(self.position):,}:{self.ref}>{self.alt}"
