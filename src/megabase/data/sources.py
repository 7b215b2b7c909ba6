"""Sequences as streams, from FASTA, tables, BED or VCF; and genomes by any name."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from megabase.data.label_files import TABLE_SUFFIXES, read_sequence_table
from megabase.data.regions import Regions
from megabase.errors import GenomeError, InputError, InputWarning, warn
from megabase.genome.alphabet import encode, warn_ambiguous
from megabase.genome.fasta import Header, read_fasta
from megabase.genome.files import beginning, numbered_lines
from megabase.genome.format import MAGIC
from megabase.genome.interval import Interval, Strand
from megabase.genome.store import Genome
from megabase.genome.tables import read_bed, read_vcf
from megabase.genome.vcf import row_unit

_Kind = Literal["auto", "fasta", "bed", "vcf", "table"]

_ENDINGS = {
    ".bed": "bed", ".narrowpeak": "bed", ".broadpeak": "bed",
    ".vcf": "vcf", ".bcf": "vcf",
    ".fa": "fasta", ".fasta": "fasta", ".fna": "fasta", ".ffn": "fasta", ".mfa": "fasta",
    **dict.fromkeys(TABLE_SUFFIXES, "table"),
}  # fmt: skip
"""Kinds of input by the ending of a file, compression left out."""

_OTHER_FORMATS = {
    ".bedgraph": "bedGraph", ".bdg": "bedGraph", ".bg": "bedGraph", ".bw": "bigWig",
    ".bigwig": "bigWig", ".wig": "wiggle", ".gff": "GFF", ".gff3": "GFF", ".gtf": "GTF",
    ".bam": "BAM", ".cram": "CRAM", ".mb": "a genome store",
}  # fmt: skip
"""Endings of formats that some verb knows and none reads sequences from."""
_CHUNK_BASES = 1 << 20  # seconds of work on a CPU: what an interrupted run loses at most
_CHUNK_SEQUENCES = 4096  # so that short sequences make chunks for several processes too


@dataclass(frozen=True)
class Sequence:
    """DNA to be read by a model: base codes in reading direction, uint8 (length,).

    `context` codes at the start and `after` at the end are read but not asked about; `interval` is
    where the rest comes from, None for a sequence of a FASTA file.
    """

    name: str
    codes: NDArray[np.uint8]
    context: int = 0
    interval: Interval | None = None
    after: int = 0

    @property
    def length(self) -> int:
        """Bases asked about."""
        return len(self.codes) - self.context - self.after

    @staticmethod
    def columns(sequences: "list[Sequence]") -> dict[str, Any]:
        """Give the columns that say where sequences come from: 0-based half-open, as BED."""
        columns: dict[str, Any] = {"name": [item.name for item in sequences]}
        places = [item.interval for item in sequences]
        if any(places):
            for name in ("contig", "start", "end"):
                columns[name] = [place and getattr(place, name) for place in places]
            columns["strand"] = [place and str(place.strand) for place in places]
        columns["length"] = np.array([item.length for item in sequences], dtype=np.int64)
        return columns

    @staticmethod
    def counted(sequences: "Iterable[Sequence]", where: object) -> "Iterator[Sequence]":
        """Pass sequences on; warn (InputWarning) at the end of those whose own bases are all N."""
        bare: list[str] = []
        for one in sequences:
            own = one.codes[one.context : len(one.codes) - one.after]
            if (own & np.uint8(4)).all():  # a bit that A, C, G, T do not have
                bare.append(one.name)
            yield one
        if bare:
            what = f"no A, C, G, T in {len(bare):,} of the sequences (the first: {bare[0]})"
            warn(f"{where}: {what}; a model can say nothing of them", InputWarning)


@dataclass(frozen=True)
class SequenceInput:
    """A file of sequences, intervals or variants: what every verb that reads sequences reads.

    Rows that cannot be used are left out, counted and reported in one line. An InputError when the
    kind is not clear, or a genome or regions are missing or of no use.
    """

    path: str | Path
    """The file, plain or gzip."""
    genome: str | Path | None = None
    """Genome store or FASTA that intervals and variants lie in."""
    kind: _Kind = "auto"
    """What the file is; ``auto`` goes by its ending, or else by how it begins."""
    window: int = 1024
    """Bases around a variant, for VCF: each allele is read with the same number of bases."""
    column: str | None = None
    """Column of the sequences, for a table; None takes ``sequence`` or ``seq``."""
    strict: bool = False
    """Refuse rows that cannot be used."""
    regions: tuple[str, ...] = ()
    """Contigs, regions (``chr1:1,001-2,000``) or BED files: intervals and variants that do not
    overlap them are left out; empty reads all."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(_Kind):
            raise InputError(f"kind is {', '.join(get_args(_Kind))}; found {self.kind!r}")
        if not Path(self.path).is_file():
            raise InputError(no_file(self.path))
        placed = self.found_kind in ("bed", "vcf")
        if placed and self.genome is None:
            what = {"bed": "a BED file, whose intervals lie", "vcf": "VCF, whose variants lie"}
            raise InputError(
                f"{self.path} is {what[self.found_kind]} on a genome: name a store or a FASTA file "
                "(genome=...)"
            )
        if not placed and self.genome is not None:
            what = "FASTA" if self.found_kind == "fasta" else "a table"
            raise InputError(
                f"{self.path} is {what}, which holds its sequences itself: leave {self.genome} out "
                "(genome=...), or say what it is (kind=...)"
            )
        if not placed and self.regions:
            raise InputError(
                f"{self.path} is not placed on a genome: leave out the regions, which restrict "
                "intervals and variants (regions=...)"
            )
        if self.column is not None and self.found_kind != "table":
            raise InputError(
                f"{self.path} has no columns: leave {self.column!r} out, which names "
                "that of the sequences in a table"
            )
        if self.window < 2:
            raise InputError(f"a window needs 2 bases or more, found {self.window}")

    @cached_property
    def found_kind(self) -> str:
        """What the file is."""
        if self.kind != "auto":
            return self.kind
        suffixes = [s.lower() for s in Path(self.path).suffixes if s.lower() not in (".gz", ".bgz")]
        ending = suffixes[-1] if suffixes else ""
        if ending in _OTHER_FORMATS:
            raise InputError(
                f"{self.path} is {_OTHER_FORMATS[ending]} by its ending; expected FASTA, a table, "
                "BED or VCF (kind= says what it is when the ending does not)"
            )
        if ending in _ENDINGS:
            return _ENDINGS[ending]
        path = Path(self.path)
        if row_unit(path) == "record":
            return "vcf"
        _, first = next(numbered_lines(path), (0, ""))
        if first.startswith("##fileformat=VCF"):
            return "vcf"
        if first.startswith((">", "@")):
            return "fasta"  # whose reader names FASTQ and SAM
        if self.genome is not None:
            return "bed"
        raise InputError(
            f"{path}: neither its ending nor its first line tells whether it is FASTA, a table, "
            "BED or VCF; say what it is (kind=...)"
        )

    def refuse_variants(self) -> None:
        """Refuse VCF, for a verb that reads sequences and intervals only."""
        if self.found_kind == "vcf":
            raise InputError(
                f"{self.path} is VCF, and here the input is FASTA, a table, or BED with a genome "
                "(variants are scored by megabase variants)"
            )

    def read(self, *, context: int = 0) -> Iterator[Sequence]:
        """Stream the sequences, in file order; intervals with `context` bases on both sides."""
        if self.found_kind == "fasta":
            yield from _read_fasta(self.path)
            return
        if self.found_kind == "table":
            yield from _read_table(Path(self.path), self.column)
            return
        with genome_store(str(self.genome)) as store:
            bed = self.found_kind == "bed"
            found = self._read_intervals(store, context) if bed else self._read_alleles(store)
            kept = Regions.read(store, self.regions) if self.regions else None
            for item in found:
                place = item.interval
                assert place is not None  # both kinds have one
                where = store.contig_index(place.contig), place.start, place.end
                if kept is None or kept.touches(*where):
                    yield item

    def _read_intervals(self, store: Genome, context: int) -> Iterator[Sequence]:
        """Read the intervals of a BED file in reading direction, with `context` on both sides."""
        frame = read_bed(self.path, store, strict=self.strict)
        strands = frame["strand"] if "strand" in frame.columns else ["."] * frame.height
        names = frame["name"] if "name" in frame.columns else [None] * frame.height
        rows = zip(frame["contig"], frame["start"], frame["end"], strands, names, strict=True)
        for contig, start, end, strand, name in rows:
            interval = Interval(contig, start, end, Strand(strand))
            left, right = min(context, start), min(context, store.contig(contig).length - end)
            codes = store.fetch(Interval(contig, start - left, end + right, interval.strand))
            before, after = (right, left) if interval.strand is Strand.REVERSE else (left, right)
            shown = name if name not in (None, ".", "") else str(interval)
            yield Sequence(shown, codes, before, interval, after)

    def _read_alleles(self, store: Genome) -> Iterator[Sequence]:
        """Give the window of REF and of each ALT, of the same number of bases, one after the other.

        The allele begins at index ``window // 2`` of its window; nearer to the end of a contig
        there is less on that side.
        """

        def between(contig: str, start: int, end: int) -> NDArray[np.uint8]:
            return store.fetch(Interval(contig, start, end)) if start < end else encode("")

        window = self.window
        frame = read_vcf(self.path, store, bases_only=True, strict=self.strict)
        alleles = frame.select("contig", "start", "end", "ref", "alt").iter_rows()
        for contig, start, end, ref, alt in alleles:
            before = between(contig, max(0, start - window // 2), start)
            after = between(contig, end, min(store.contig(contig).length, end + window))
            for which, letters in (("ref", ref), ("alt", alt)):
                codes = np.concatenate([before, encode(letters), after])[:window]
                name = f"{contig}:{start + 1}:{ref}>{alt}:{which}"
                yield Sequence(name, codes, 0, Interval(contig, start, end))

    def chunks(self, cost: int = 1, context: int = 0) -> Iterator[list[Sequence]]:
        """Cut the stream of :meth:`read` into lists, each some seconds of work.

        `cost` is how many times as much work as a forward pass a sequence is.
        """
        bases, most = _CHUNK_BASES // cost, _CHUNK_SEQUENCES // cost
        chunk: list[Sequence] = []
        size = 0
        for item in Sequence.counted(self.read(context=context), self.path):
            if chunk and (size + len(item.codes) > bases or len(chunk) >= most):
                yield chunk
                chunk, size = [], 0
            chunk.append(item)
            size += len(item.codes)
        if not chunk:
            raise InputError(f"{self.path}: holds no sequence")
        yield chunk


def _read_fasta(path: str | Path) -> Iterator[Sequence]:
    name, parts = "", []
    ambiguous: Counter[str] = Counter()
    for item in read_fasta(path):
        if isinstance(item, Header):
            if parts:  # every contig has bases
                yield Sequence(name, np.frombuffer(b"".join(parts), dtype=np.uint8))
            name, parts = item.name, []
        else:
            parts.append(item.codes)
            ambiguous.update(item.ambiguous)
    yield Sequence(name, np.frombuffer(b"".join(parts), dtype=np.uint8))
    warn_ambiguous(ambiguous, path)


def _read_table(path: Path, column: str | None) -> Iterator[Sequence]:
    ambiguous: Counter[str] = Counter()
    for row, (name, letters) in enumerate(zip(*read_sequence_table(path, column), strict=True)):
        try:
            yield Sequence(name, encode(letters, ambiguous))
        except GenomeError as error:
            raise InputError(f"{path.name}, row {row + 1:,}: {error}") from error
    warn_ambiguous(ambiguous, path)


@contextmanager
def genome_store(path: Genome | str | Path) -> Iterator[Genome]:
    """Open a genome: a store, or a FASTA file, which is turned into a store for the time being.

    One that is open is given as it is.
    """
    if isinstance(path, Genome):
        yield path
        return
    path = Path(path)
    if not path.is_file():
        why = no_file(path).replace("there is no file", "there is no genome")
        raise InputError(f"{why}; expected a genome store or a FASTA file")
    if beginning(path, 4) == MAGIC[:4]:
        yield Genome(path)
        return
    with tempfile.TemporaryDirectory(prefix="megabase-") as folder:
        store = Genome.build(path, Path(folder) / path.name)  # the name that messages say
        warn_ambiguous(store.metadata.iupac_letters, path)
        yield store


def no_file(path: str | Path) -> str:
    """Say why there is no file to read under this name: missing, a folder, or a pipe."""
    path = Path(path)
    if str(path) == "-" or (path.exists() and not path.is_dir()):
        return (
            f"{path} is a stream, not a file; the input is read more than once (for its checksum, "
            "and to go on after a kill): write it to a file first"
        )
    return f"{path} is a folder; expected a file" if path.is_dir() else f"there is no file {path}"
