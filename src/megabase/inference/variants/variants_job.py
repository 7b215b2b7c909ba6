"""Scoring a VCF or BCF file into VCF, BCF or a table, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from megabase.data.sources import chunked, no_file
from megabase.errors import InputError
from megabase.evaluate.provenance import Provenance, file_digest
from megabase.genome.left_out import LeftOut, require_assembly
from megabase.genome.store import GenomeStore
from megabase.genome.vcf import (
    VcfRecord,
    check_allele,
    check_record,
    find_contig,
    is_bcf,
    read_vcf_header,
    read_vcf_records,
    why_unusable,
)
from megabase.inference.tables import merge_tables, write_table_part
from megabase.inference.variants.scorer import (
    AlleleScore,
    VariantOptions,
    VariantScorer,
    variant_table,
)
from megabase.inference.variants.vcf_output import (
    VCF_SUFFIXES,
    annotated_line,
    header_lines,
    merge_vcf,
    require_names,
    require_new_keys,
    require_prefix,
)
from megabase.models.loading import load
from megabase.models.scored_model import choose_device

__all__ = ["Survey", "VariantsJob", "survey"]

_CHUNK = 512


@dataclass(frozen=True)
class Survey:
    """What a file of variants holds, found in one pass without a model.

    Parameters
    ----------
    records
        Number of records.
    contigs
        Names of the contigs, in order of appearance, with their lengths; None for contigs that the
        genome does not have.
    in_order
        Whether contigs are not mixed and positions never go back.
    """

    records: int
    contigs: dict[str, int | None]
    in_order: bool


def survey(
    path: Path, store: GenomeStore, *, allow_mismatches: bool = False, strict: bool = False
) -> Survey:
    """Read a file of variants once, against the genome.

    Parameters
    ----------
    path
        The file.
    store
        The genome.
    allow_mismatches
        Go on when REF differs from the genome in so many records that the file looks as if it was
        made for another assembly.
    strict
        Refuse the first allele that can have no score.

    Raises
    ------
    InputError
        When a record cannot be read, no allele can be scored, or the assembly is another.

    Warns
    -----
    LeftOutWarning
        With the number of alleles that can have no score, by reason.
    """
    contigs: dict[str, int | None] = {}
    index: dict[str, int | None] = {}
    unit = "record" if is_bcf(path) else "line"
    left_out = LeftOut(path, unit, strict)
    records = compared = mismatches = usable = 0
    in_order, last, position = True, None, -2
    for record in read_vcf_records(path, sites=True):
        records += 1
        name = record.contig
        if name not in index:
            number = find_contig(store, name, index)
            contigs[name] = None if number is None else int(store.lengths[number])
            in_order = in_order and name != last
        elif name != last or record.position < position:
            in_order = False
        last, position = name, record.position
        reason = check_record(record, store, index[name])
        compared += reason in (None, "NO_ALT", "REF_MISMATCH")
        mismatches += reason == "REF_MISMATCH"
        for alt in record.alts or (".",):
            why = reason or check_allele(record.ref, alt)
            if why is None:
                usable += 1
            else:
                left_out.add(why, record.line, partial(why_unusable, record, store, why))
    if not allow_mismatches:
        advice = ", or score the rest with allow_mismatches=True"
        require_assembly(path, mismatches, compared, store.name, advice)
    left_out.report(usable, "alleles", "have no score")
    return Survey(records, contigs, in_order)


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
    strict
        Refuse the first allele that can have no score.
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
    strict: bool = False
    batch_tokens: int = 1 << 16
    found: Survey | None = None
    _provenance: Provenance | None = None

    def __post_init__(self) -> None:
        require_prefix(self.prefix)

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
        InputError
            When the file looks as if it was made for another assembly.
        """
        if self._provenance is None:
            if not self.source.is_file():
                raise InputError(no_file(self.source))
            header = read_vcf_header(self.source)
            if self.as_vcf:
                require_new_keys(header, self.prefix, self.source)
            store = GenomeStore.open(self.genome)
            self.found = survey(
                self.source, store, allow_mismatches=self.allow_mismatches, strict=self.strict
            )
            if self.as_vcf:
                require_names(self.found.contigs, self.source)
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
