"""Scoring a VCF or BCF file into VCF, BCF or a table, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megabase.genome.errors import UnknownContigError
from megabase.genome.store import GenomeStore
from megabase.genome.vcf import VcfRecord, read_vcf_header, read_vcf_records
from megabase.inference.alleles import check_record
from megabase.inference.errors import InputFileError
from megabase.inference.loading import load
from megabase.inference.model import choose_device
from megabase.inference.provenance import Provenance, file_digest
from megabase.inference.sources import chunked, no_file
from megabase.inference.tables import merge_tables, write_table_part
from megabase.inference.variants import (
    AlleleScore,
    VariantOptions,
    VariantScorer,
    variant_table,
)
from megabase.inference.vcf_output import (
    VCF_SUFFIXES,
    annotated_line,
    header_lines,
    merge_vcf,
    require_new_keys,
)

__all__ = ["Survey", "VariantsJob", "survey"]

_CHUNK = 512
_MANY = 0.2
_FEW = 5


@dataclass(frozen=True)
class Survey:
    """What a file of variants holds, found in one pass without a model.

    Parameters
    ----------
    records
        Number of records.
    compared, mismatches
        Records whose REF could be compared with the genome, and those that differ.
    contigs
        Names of the contigs, in order of appearance, with their lengths; None for contigs that the
        genome does not have.
    in_order
        Whether contigs are not mixed and positions never go back.
    """

    records: int
    compared: int
    mismatches: int
    contigs: dict[str, int | None]
    in_order: bool


def survey(path: Path, store: GenomeStore) -> Survey:
    """Read a file of variants once, against the genome.

    Raises
    ------
    TableError
        When a record cannot be read.
    """
    contigs: dict[str, int | None] = {}
    index: dict[str, int | None] = {}
    records = compared = mismatches = 0
    in_order, last, position = True, None, -2
    for record in read_vcf_records(path):
        records += 1
        name = record.contig
        if name not in index:
            try:
                index[name] = store.contig_index(name)
            except UnknownContigError:
                index[name] = None
            number = index[name]
            contigs[name] = None if number is None else int(store.lengths[number])
            in_order = in_order and name != last
        elif name != last or record.position < position:
            in_order = False
        last, position = name, record.position
        reason = check_record(record, store, index[name])
        compared += reason in (None, "NO_ALT", "REF_MISMATCH", "OUTSIDE_CONTIG")
        mismatches += reason in ("REF_MISMATCH", "OUTSIDE_CONTIG")
    return Survey(records, compared, mismatches, contigs, in_order)


@dataclass
class VariantsJob:
    """Score the records of a VCF or BCF file.

    Parameters
    ----------
    source
        The file.
    target
        The output; its ending says the format.
    genome
        Genome store.
    model
        Name of the model.
    options
        What changes a score.
    prefix
        Beginning of the INFO keys.
    allow_mismatches
        Go on when so many REF differ from the genome that it looks like another assembly.
    batch_tokens
        Most positions of a batch.
    """

    source: Path
    target: Path
    genome: Path
    model: str | None = None
    options: VariantOptions = field(default_factory=VariantOptions)
    prefix: str = "MB"
    allow_mismatches: bool = False
    batch_tokens: int = 1 << 16
    found: Survey | None = None
    _provenance: Provenance | None = None

    @property
    def as_vcf(self) -> bool:
        """Whether the output is VCF or BCF."""
        return self.target.name.lower().endswith(VCF_SUFFIXES)

    @property
    def suffix(self) -> str:
        """Ending of the parts."""
        return ".vcf" if self.as_vcf else ".parquet"

    def provenance(self) -> Provenance:
        """Check input, genome and model, and give what is computed.

        Raises
        ------
        InputFileError
            When the file looks as if it was made for another assembly.
        """
        if self._provenance is None:
            if not self.source.is_file():
                raise InputFileError(no_file(self.source))
            header = read_vcf_header(self.source)
            if self.as_vcf:
                require_new_keys(header, self.prefix, self.source)
            store = GenomeStore.open(self.genome)
            self.found = survey(self.source, store)
            self._require_assembly(self.found, store)
            model = load(self.model, head="language")
            self.options = self.options.resolved(model)
            self._provenance = Provenance(
                "variants",
                model.name,
                model.digest,
                genome=store.name,
                genome_sha256=store.checksum,
                inputs={self.source.name: file_digest(self.source)},
                options={**asdict(self.options), "prefix": self.prefix},
            )
        return self._provenance

    def _require_assembly(self, found: Survey, store: GenomeStore) -> None:
        if found.contigs and all(length is None for length in found.contigs.values()):
            name = next(iter(found.contigs))
            try:
                store.contig_index(name)
            except UnknownContigError as error:
                raise InputFileError(
                    f"{self.source}: none of its contigs is in the genome ({error})"
                ) from None
        many = found.mismatches > max(_FEW, _MANY * found.compared)
        if many and not self.allow_mismatches:
            raise InputFileError(
                f"{self.source}: REF differs from genome {store.name!r} in {found.mismatches:,} of "
                f"{found.compared:,} records; is the file made for another assembly? Use its "
                "genome, or score the rest with --allow-mismatches"
            )

    def chunks(self) -> Iterator[tuple[int, list[VcfRecord]]]:
        """Read the records, with the number of the first one of each chunk."""
        first = 0
        for records in chunked(read_vcf_records(self.source), _CHUNK):
            yield first, records
            first += len(records)

    def items(self, chunk: tuple[int, list[VcfRecord]]) -> int:
        """Count records."""
        return len(chunk[1])

    def open(
        self, device: str | None
    ) -> Callable[
        [tuple[int, list[VcfRecord]]], tuple[int, list[VcfRecord], list[tuple[AlleleScore, ...]]]
    ]:
        """Load the model."""
        model = load(self.model, head="language", device=choose_device(device))
        store = GenomeStore.open(self.genome)
        scorer = VariantScorer(model, store, self.options, self.batch_tokens)
        return lambda chunk: (*chunk, scorer.score(chunk[1]))

    def write_part(
        self, result: tuple[int, list[VcfRecord], list[tuple[AlleleScore, ...]]], path: Path
    ) -> None:
        """Write the records of a chunk."""
        first, records, scores = result
        methods = self.options.methods or ()
        if not self.as_vcf:
            write_table_part(variant_table(records, scores, methods, first), path)
            return
        lines = [
            annotated_line(record, alleles, methods, self.prefix)
            for record, alleles in zip(records, scores, strict=True)
        ]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def merge(self, parts: list[Path], target: Path) -> None:
        """Write the output."""
        if not self.as_vcf:
            if not parts:  # a table of no rows, as a VCF output would have no records
                empty = target.with_name(f".{target.name}.empty")
                write_table_part(variant_table([], [], self.options.methods or ()), empty)
                try:
                    merge_tables([empty], target, self.provenance())
                finally:
                    empty.unlink()
                return
            merge_tables(parts, target, self.provenance())
            return
        provenance = self.provenance()
        contigs = {} if self.found is None else self.found.contigs
        header = header_lines(
            read_vcf_header(self.source), self.options, self.prefix, provenance, contigs
        )
        merge_vcf(header, parts, target)
