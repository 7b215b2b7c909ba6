"""Scoring a VCF or BCF file into VCF, BCF or a table, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack, cast

import polars as pl

from megabase.data.sources import chunked, genome_store, no_file
from megabase.errors import InputError
from megabase.evaluate.provenance import Provenance, file_digest
from megabase.evaluate.score import Strands
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
from megabase.inference.jobs import BATCH_TOKENS, RunOptions, Work, check_run, map_file
from megabase.inference.tables import TABLE_SUFFIXES, merge_tables, require_table_suffix
from megabase.inference.variants.alleles import Placement
from megabase.inference.variants.scorer import (
    VariantOptions,
    VariantScorer,
    method_tuple,
    variant_table,
)
from megabase.inference.variants.vcf_output import (
    VCF_SUFFIXES,
    annotated_line,
    header_lines,
    index_vcf,
    merge_vcf,
    require_names,
    require_new_keys,
    require_prefix,
)
from megabase.models.loading import ModelSpec, load

__all__ = ["Survey", "VariantFile", "VariantRunOptions", "score_variants_file", "survey"]

_CHUNK = 512  # records: seconds of work, and few enough that many processes have a share


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


class VariantRunOptions(RunOptions, total=False):
    """How a file of variants is read and written, and how the work is done.

    Parameters
    ----------
    prefix
        Beginning of the INFO keys; ``MB`` unless given.
    allow_mismatches
        Go on when so many REF differ from the genome that it looks like another assembly.
    strict
        Refuse the first allele that can have no score.
    """

    prefix: str
    allow_mismatches: bool
    strict: bool


class VariantFile(NamedTuple):
    """What :func:`score_variants_file` wrote: the file, its records, and its index if it has one.

    There is none for a file without bgzip or a pipe, and for records out of order.
    """

    output: Path
    records: int
    index_file: Path | None


def score_variants_file(
    model: ModelSpec,
    variants: str | Path,
    genome: str | Path,
    output: str | Path,
    *,
    window: int | None = None,
    methods: Sequence[str] | None = None,
    strands: Strands = "both",
    placement: Placement = "centred",
    **running: Unpack[VariantRunOptions],
) -> VariantFile | None:
    """Score the records of a VCF or BCF file into VCF, BCF or a table.

    Parameters
    ----------
    model
        Model folder, run folder, preset or Hub name; None for the packaged model; or a model.
    variants
        The file.
    genome
        Genome store, or FASTA.
    output
        ``.vcf``, ``.vcf.gz``, ``.vcf.bgz`` or ``.bcf``: every record again, with scores in INFO.
        ``.parquet`` or ``.tsv``: a row for each alternative allele.
    window, methods, strands, placement
        As for :func:`megabase.inference.score_variants`.
    **running
        See :class:`VariantRunOptions`.

    Returns
    -------
    VariantFile or None
        None for a rank of ``torchrun`` other than the one that writes.

    Raises
    ------
    MegabaseError
        For input, a genome, a model or an output that cannot be used; when the file looks as if it
        was made for another assembly.
    """
    source, output = Path(variants), Path(output)
    prefix = running.get("prefix", "MB")
    require_table_suffix(output, (*VCF_SUFFIXES, *TABLE_SUFFIXES))
    require_prefix(prefix)
    options = VariantOptions(window, method_tuple(methods), strands, placement)
    check_run(output, **running)
    found: list[Survey] = []
    with genome_store(genome) as store:
        if not source.is_file():
            raise InputError(no_file(source))
        header = read_vcf_header(source)
        as_vcf = output.name.lower().endswith(VCF_SUFFIXES)
        if as_vcf:
            require_new_keys(header, prefix, source)

        def describe(ready: VariantScorer) -> Provenance:
            one = survey(
                source, store, allow_mismatches=running.get("allow_mismatches", False),
                strict=running.get("strict", False),
            )  # fmt: skip
            if as_vcf:
                require_names(one.contigs, source)
            found.append(one)
            return Provenance(
                "variants", ready.model.name, ready.model.digest,
                genome=store.name, genome_sha256=store.checksum,
                inputs={source.name: file_digest(source)},
                options={**asdict(ready.options), "prefix": prefix},
            )  # fmt: skip

        def merge(parts: list[Path], target: Path, provenance: Provenance) -> None:
            settings = VariantOptions(**{name: provenance.options[name] for name in _SETTINGS})
            if as_vcf:
                lines = header_lines(header, settings, prefix, provenance, found[0].contigs)
                merge_vcf(lines, parts, target)
            elif parts:
                merge_tables(parts, target, provenance)
            else:  # a table of no rows, as a VCF output would have no records
                _write_empty(settings, target, provenance)

        work = Work(
            partial(_lines, prefix) if as_vcf else _table,
            partial(_scorer, model, store.path, options, running.get("batch_tokens", BATCH_TOKENS)),
            partial(_chunks, source),
            _count,
            ".vcf" if as_vcf else ".parquet",
        )
        map_file(work, output, describe, merge, **_engine_options(running))
    if not found:
        return None
    return VariantFile(output, found[0].records, _index(output, found[0]))


_SETTINGS = tuple(field.name for field in fields(VariantOptions))
"""Names of the options of a score, under which the provenance has them."""


def _engine_options(running: VariantRunOptions) -> RunOptions:
    """Give what the engine takes."""
    own = VariantRunOptions.__annotations__.keys() - RunOptions.__annotations__.keys()
    return cast("RunOptions", {name: value for name, value in running.items() if name not in own})


def _scorer(
    model: ModelSpec, genome: Path, options: VariantOptions, batch_tokens: int,
    device: str | None = None,
) -> VariantScorer:  # fmt: skip
    """Load the model."""
    loaded = load(model, head="language", device=device)
    return VariantScorer(loaded, GenomeStore.open(genome), options, batch_tokens)


def _chunks(source: Path) -> Iterator[tuple[int, list[VcfRecord]]]:
    """Read the records, with the number of the first one of each chunk."""
    first = 0
    for records in chunked(read_vcf_records(source), _CHUNK):
        yield first, records
        first += len(records)


def _count(chunk: tuple[int, list[VcfRecord]]) -> int:
    """Count records."""
    return len(chunk[1])


def _table(ready: VariantScorer, chunk: tuple[int, list[VcfRecord]]) -> pl.DataFrame:
    """Score a chunk into the rows of a table."""
    first, records = chunk
    return variant_table(records, ready.score(records), ready.options.methods or (), first)


def _lines(prefix: str, ready: VariantScorer, chunk: tuple[int, list[VcfRecord]]) -> str:
    """Score a chunk into lines of VCF."""
    records, methods = chunk[1], ready.options.methods or ()
    scored = zip(records, ready.score(records), strict=True)
    return "".join(f"{annotated_line(one, alleles, methods, prefix)}\n" for one, alleles in scored)


def _write_empty(options: VariantOptions, target: Path, provenance: Provenance) -> None:
    """Write a table without rows."""
    empty = target.with_name(f".{target.name}.empty")
    variant_table([], [], options.methods or ()).write_parquet(empty)
    try:
        merge_tables([empty], target, provenance)
    finally:
        empty.unlink()


def _index(output: Path, found: Survey) -> Path | None:
    """Write the index of an output that takes one; an old one goes away."""
    if not output.name.lower().endswith((".gz", ".bgz", ".bcf")) or not output.is_file():
        return None
    for old in (".tbi", ".csi"):
        output.with_name(output.name + old).unlink(missing_ok=True)
    if not found.in_order:
        return None
    return index_vcf(output, max((length or 0 for length in found.contigs.values()), default=0))
