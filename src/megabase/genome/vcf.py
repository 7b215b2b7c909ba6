"""VCF and BCF as streams of whole records, for verbs that write every line out again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megabase.genome.errors import TableError
from megabase.genome.files import numbered_lines
from megabase.genome.interval import zero_based

if TYPE_CHECKING:
    from pysam import VariantFile

__all__ = ["VcfRecord", "is_bcf", "open_bcf", "read_vcf_header", "read_vcf_records"]


@dataclass(frozen=True, slots=True)
class VcfRecord:
    """One record.

    Parameters
    ----------
    line
        1-based number of its line in the file (in a BCF: of the record).
    fields
        Its columns, as they are in the file (of a BCF: as it is written as text).
    contig
        The column CHROM.
    position
        0-based index of the first base of REF (POS - 1; -1 is the telomere).
    ref
        REF, as it is.
    alts
        The alternative alleles, as they are; empty for a record without any.
    """

    line: int
    fields: tuple[str, ...]
    contig: str
    position: int
    ref: str
    alts: tuple[str, ...]


def is_bcf(path: Path) -> bool:
    """Whether a file is BCF; of a missing or damaged file False, its reader says what is wrong."""
    import gzip

    try:
        with path.open("rb") as raw:
            if raw.peek(3)[:2] != b"\x1f\x8b":
                return raw.read(3) == b"BCF"
            return gzip.GzipFile(fileobj=raw).read(3) == b"BCF"
    except (OSError, EOFError):
        return False


@contextlib.contextmanager
def open_bcf(path: Path) -> Iterator[VariantFile]:
    """Open a BCF (or VCF) file without a word on standard error about an index it does not need."""
    import pysam

    before = pysam.set_verbosity(0)
    try:
        file = pysam.VariantFile(str(path))
    finally:
        pysam.set_verbosity(before)
    with file:
        yield file


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give the lines of the text form, numbered; of a BCF the records from 1, the header as 0."""
    if not is_bcf(path):
        yield from numbered_lines(path)
        return
    try:
        with open_bcf(path) as file:
            for line in str(file.header).splitlines():
                yield 0, line
            for number, record in enumerate(file, start=1):
                yield number, str(record).rstrip("\n")
    except (OSError, ValueError) as error:
        raise TableError(f"{path} is cut short or damaged ({error}); copy it again") from None


def read_vcf_header(path: str | Path) -> list[str]:
    """Give the header lines of a VCF or BCF file, the line ``#CHROM`` last.

    Raises
    ------
    TableError
        When the file is missing, damaged, or has no header.
    """
    path, header = Path(path), []
    for number, text in _lines(path):
        if not text.startswith("#"):
            break
        header.append(text)
        if text.startswith("#CHROM\t"):
            return header
        if number > 1 and not header[0].startswith("##fileformat=VCF"):
            break
    raise TableError(
        f"{path} is not VCF: expected a header ('##fileformat=VCF...' first, '#CHROM...' last) "
        "before the first record"
    )


def read_vcf_records(path: str | Path) -> Iterator[VcfRecord]:
    """Stream the records of a VCF (plain, gzip, bgzip) or BCF file, in file order.

    Raises
    ------
    TableError
        Naming file and line of the first record that has no eight columns or no position.
    """
    path = Path(path)
    read_vcf_header(path)
    unit = "record" if is_bcf(path) else "line"
    for number, text in _lines(path):
        if text.startswith("#") or not text.strip():
            continue
        fields = tuple(text.split("\t"))
        if len(fields) < 8:
            raise TableError(
                f"{path}, {unit} {number:,}: expected 8 columns or more separated by tabs, found "
                f"{len(fields)}: {text[:60]!r}"
            )
        contig, position, _, ref, alt = fields[:5]
        if not position.isdecimal():
            raise TableError(
                f"{path}, {unit} {number:,}: POS must be a whole number, found {position!r}"
            )
        alts = () if alt == "." else tuple(alt.split(","))
        yield VcfRecord(number, fields, contig, zero_based(int(position)), ref, alts)
