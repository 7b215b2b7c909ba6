"""VCF and BCF as streams of records: the one reader of every verb, and what a record lacks."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pysam

from megabase.errors import InputError, UnknownContigError
from megabase.genome.alphabet import AMBIGUITY_LETTERS, decode
from megabase.genome.files import beginning, numbered_lines
from megabase.genome.interval import one_based, zero_based
from megabase.genome.left_out import REASONS, Reason
from megabase.genome.store import Genome

_BASES = frozenset("ACGTacgt")  # what a model can read as an allele
_IUPAC = frozenset("ACGTN" + AMBIGUITY_LETTERS)  # what VCF allows in REF
_SYMBOLS = frozenset("<>[]*")  # of symbolic alleles, breakends and overlapping deletions
_BREAKEND = re.compile(r"\.[A-Za-z]+|[A-Za-z]+\.")  # a single breakend: .C or T.
_PLACELESS = ("UNKNOWN_CONTIG", "OUTSIDE_CONTIG", "REF_MISMATCH")
"""Reasons for which a record is about no locus of the genome."""
_SITES = 8  # columns before FORMAT and the samples
_LONGEST_POSITION = 18  # digits of a number that fits into 64 bits
_MANY = 0.2
"""Share of records with another REF: by chance three of four differ, errors are far rarer."""
_ONE = 1  # a single odd record says nothing about the assembly


@dataclass(frozen=True, slots=True)
class VcfRecord:
    """One record; of a BCF as it is written as text.

    `line` is its 1-based line in the file (of a BCF: the record), `position` the 0-based index of
    the first base of REF (POS - 1; -1 is the telomere); `alts` are empty for a record without any.
    """

    line: int
    fields: tuple[str, ...]
    contig: str
    position: int
    ref: str
    alts: tuple[str, ...]

    @classmethod
    def of(cls, line: int, contig: str, position: int, ref: str, *alts: str) -> Self:
        """Make a record that has nothing but these."""
        fields = (contig, str(one_based(position)), ".", ref, ",".join(alts) or ".", *"...")
        return cls(line, fields, contig, position, ref, alts)

    @classmethod
    def read(cls, path: str | Path, *, sites: bool = False) -> Iterator[Self]:
        """Stream the records of a VCF (plain, gzip, bgzip) or BCF file, in file order.

        `sites` drops the columns of the genotypes at once. An InputError names file and line of the
        first record that has no eight columns or no position.
        """
        path = Path(path)
        read_vcf_header(path)
        unit = row_unit(path)
        for number, text in _lines(path):
            if text.startswith("#") or not text.strip():
                continue
            fields = tuple(text.split("\t", _SITES)[:_SITES] if sites else text.split("\t"))
            contig, position, _, ref, alt = fields[:5] if len(fields) >= _SITES else ("",) * 5
            wrong = ""
            if len(fields) < _SITES:
                found = f"{len(fields)}: {text[:60]!r}"
                wrong = f"expected 8 columns or more separated by tabs, found {found}"
            elif not contig.strip():
                wrong = "the first column, the contig, is empty"
            elif not re.fullmatch(r"-?[0-9]+", position) or len(position) > _LONGEST_POSITION:
                wrong = f"POS must be a whole number, found {position[:40]!r}"
            if wrong:
                raise InputError(f"{path}, {unit} {number:,}: {wrong}")
            alts = () if alt == "." else tuple(alt.split(","))
            yield cls(number, fields, contig, zero_based(int(position)), ref, alts)

    @classmethod
    def checked(
        cls, path: Path, store: Genome | None, advice: str | None = ""
    ) -> Iterator[tuple[Self, int | None, Reason | None]]:
        """Stream the sites of a file with what a genome says: record, contig index and reason.

        The reason is why no allele can be used (:meth:`check`); without a genome, only ``NO_ALT``
        is known. Once the whole file was read, an InputError for REF of another assembly, with
        `advice` on what can be done besides taking another genome; None accepts such a file.
        """
        compared = mismatches = 0
        for record in cls.read(path, sites=True):
            if store is None:
                yield record, None, None if record.alts else "NO_ALT"
                continue
            contig = store.find_contig(record.contig)
            reason = record.check(store, contig)
            compared += reason in (None, "NO_ALT", "REF_MISMATCH")
            mismatches += reason == "REF_MISMATCH"
            yield record, contig, reason
        if store and advice is not None and mismatches > max(_ONE, _MANY * compared):
            raise InputError(
                f"{path}: REF differs from genome {store.name!r} in {mismatches:,} of {compared:,} "
                f"records; is the file made for another assembly? Use its genome{advice}"
            )

    def check(self, store: Genome, contig: int | None) -> Reason | None:
        """Say why no allele can be used; `contig` is its index in the store, if any."""
        if contig is None:
            return "UNKNOWN_CONTIG"
        end = self.position + len(self.ref)
        if self.position < 0 or end > int(store.lengths[contig]):
            return "OUTSIDE_CONTIG"
        if not self.ref or not _BASES.issuperset(self.ref):
            return "REF_NOT_BASES"
        there = decode(store.view(contig)[self.position : end])
        if there != self.ref.upper():
            # A genome with N does not say which base there is: nothing contradicts REF, but the
            # window would not hold it either.
            return "REF_NOT_BASES" if "N" in there else "REF_MISMATCH"
        return "NO_ALT" if not self.alts else None

    def check_allele(self, alt: str) -> Reason | None:
        """Say why an alternative allele is not a sequence that replaces REF, or None."""
        if alt and _BASES.issuperset(alt):
            return "ALT_IS_REF" if alt.upper() == self.ref.upper() else None
        symbolic = not alt or not _SYMBOLS.isdisjoint(alt) or _BREAKEND.fullmatch(alt)
        return "SYMBOLIC_ALT" if symbolic else "ALT_NOT_BASES"

    def why_unplaced(self, reason: Reason | None) -> Reason | None:
        """Say why there is no locus at all; `reason` is what :meth:`checked` gave."""
        if reason in _PLACELESS:
            return reason
        if self.position < 0:
            return "OUTSIDE_CONTIG"
        usable = self.ref and _IUPAC.issuperset(self.ref.upper())
        return None if usable else "REF_NOT_BASES"

    def why_unusable(self, store: Genome | None, reason: Reason) -> str:
        """Say in words what is wrong with the record (:meth:`check`) or its alleles."""
        if reason == "OUTSIDE_CONTIG" and self.position < 0:
            return f"POS must be 1 or more, found {one_based(self.position)}"
        if reason == "REF_NOT_BASES" and not (self.ref and _BASES.issuperset(self.ref)):
            return f"REF must be one base or more, found {self.ref[:20]!r}"
        if store is None or reason not in _PLACELESS:
            alts = ",".join(self.alts)[:40] or "."
            return f"REF {self.ref[:20]!r}, ALT {alts!r}: {REASONS[reason]}"
        try:
            contig = store.contig(self.contig)
        except UnknownContigError as error:
            return str(error)
        end = self.position + len(self.ref)
        if reason == "OUTSIDE_CONTIG":
            return (
                f"the row ends at {end:,}, past the end of contig {contig.name!r}, which has "
                f"{contig.length:,} bases in genome {store.name!r}; is it made for this genome "
                "build?"
            )
        there = decode(store.view(contig.name)[self.position : end][:20])
        return (
            f"REF is {self.ref[:20]!r}, and genome {store.name!r} has {there!r} at {contig.name}:"
            f"{one_based(self.position):,}; is the file made for this genome build?"
        )


def row_unit(path: Path) -> str:
    """Name a row of a file: record of a BCF, line of any other, missing and damaged ones too."""
    return "record" if beginning(path, 3) == b"BCF" else "line"


@contextlib.contextmanager
def _open_bcf(path: Path) -> Iterator[pysam.VariantFile]:
    """Open a BCF (or VCF) file without a word on standard error about an index it does not need."""
    before = pysam.set_verbosity(0)
    try:
        file = pysam.VariantFile(str(path))
    except NotImplementedError as error:  # of a file that htslib takes for another format
        raise ValueError(str(error)) from error
    finally:
        pysam.set_verbosity(before)
    with file:
        yield file


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give the lines of the text form, numbered; of a BCF the records from 1, the header as 0."""
    if row_unit(path) == "line":
        yield from numbered_lines(path)
        return
    try:
        with _open_bcf(path) as file:
            for line in str(file.header).splitlines():
                yield 0, line
            for number, record in enumerate(file, start=1):
                yield number, str(record).rstrip("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is cut short or damaged ({error}); copy it again") from None


def read_vcf_header(path: str | Path) -> list[str]:
    """Give the header lines of a VCF or BCF file, the line ``#CHROM`` last."""
    path, header = Path(path), []
    for number, text in _lines(path):
        if not text.startswith("#"):
            break
        header.append(text)
        if text.startswith("#CHROM\t"):
            return header
        if number > 1 and not header[0].startswith("##fileformat=VCF"):
            break
    raise InputError(
        f"{path} is not VCF: expected a header ('##fileformat=VCF...' first, '#CHROM...' last) "
        "before the first record"
    )
