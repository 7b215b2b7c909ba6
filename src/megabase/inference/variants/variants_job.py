"""Scoring a VCF or BCF file into VCF, BCF or a table, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack

import polars as pl

from megabase.data.sources import chunked, genome_store, no_file
from megabase.errors import InputError
from megabase.evaluate.provenance import Provenance, file_digest
from megabase.genome.left_out import LeftOut
from megabase.genome.store import GenomeStore
from megabase.genome.vcf import (
    VcfRecord,
    check_allele,
    checked_records,
    is_bcf,
    read_vcf_header,
    read_vcf_records,
    why_unusable,
)
from megabase.inference.jobs import BATCH_TOKENS, RunOptions, Work, check_run, map_file
from megabase.inference.variants.scorer import VariantOptions, VariantScorer, variant_table
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
from megabase.inference.writers import TABLE_SUFFIXES, merge_tables, require_suffix
from megabase.models.loading import ModelSpec, load

__all__ = ["Survey", "score_variants_file", "survey"]

_CHUNK = 512  # records: seconds of work, and few enough that many processes have a share


class Survey(NamedTuple):
    """What a file of variants holds, found in one pass without a model."""

    records: int
    """Number of records."""
    contigs: dict[str, int | None]
    """Lengths in bases of the contigs, in order of appearance, by the names that the records have;
    None for those that the genome does not have."""
    in_order: bool
    """Whether contigs are not mixed and positions never go back."""


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
        Continue when REF differs from the genome in so many records that the file looks as if it
        was made for another assembly.
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
    left_out = LeftOut(path, "record" if is_bcf(path) else "line", strict)
    records = usable = 0
    in_order, last, position = True, None, -2
    advice = None if allow_mismatches else ", or score the rest with allow_mismatches=True"
    for record, contig, reason in checked_records(path, store, advice):
        records += 1
        name = record.contig
        if name not in contigs:
            contigs[name] = None if contig is None else int(store.lengths[contig])
        elif name != last or record.position < position:
            in_order = False
        last, position = name, record.position
        for alt in record.alts or (".",):
            why = reason or check_allele(record.ref, alt)
            if why is None:
                usable += 1
            else:
                left_out.add(why, record.line, partial(why_unusable, record, store, why))
    left_out.report(usable, "alleles", "have no score")
    return Survey(records, contigs, in_order)


def score_variants_file(
    model: ModelSpec,
    variants: str | Path,
    genome: str | Path,
    output: str | Path,
    options: VariantOptions | None = None,
    *,
    prefix: str = "MB",
    allow_mismatches: bool = False,
    strict: bool = False,
    **running: Unpack[RunOptions],
) -> tuple[Survey, Path | None] | None:
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
    options
        What changes a score.
    prefix
        Beginning of the INFO keys.
    allow_mismatches, strict
        As for :func:`survey`.
    **running
        See :class:`megabase.inference.jobs.RunOptions`.

    Returns
    -------
    (Survey, Path or None) or None
        What the file holds, and the index of the output: bgzip VCF and BCF in order have one. None
        for a rank of ``torchrun`` other than the one that writes.

    Raises
    ------
    MegabaseError
        For input, a genome, a model or an output that cannot be used; when the file looks as if it
        was made for another assembly.
    """
    source, output, options = Path(variants), Path(output), options or VariantOptions()
    require_suffix(output, (*VCF_SUFFIXES, *TABLE_SUFFIXES))
    require_prefix(prefix)
    check_run(output, **running)
    found: Survey | None = None
    with genome_store(genome) as store:
        if not source.is_file():
            raise InputError(no_file(source))
        header = read_vcf_header(source)
        as_vcf = output.name.lower().endswith(VCF_SUFFIXES)
        if as_vcf:
            require_new_keys(header, prefix, source)

        def describe(scorer: VariantScorer) -> Provenance:
            nonlocal found, options
            options = scorer.options
            found = survey(source, store, allow_mismatches=allow_mismatches, strict=strict)
            if as_vcf:
                require_names(found.contigs, source)
            return Provenance(
                "variants", scorer.model.name, scorer.model.digest,
                genome=store.name, genome_sha256=store.checksum,
                inputs={source.name: file_digest(source)},
                options={**asdict(options), "prefix": prefix},
            )  # fmt: skip

        def merge(parts: list[Path], target: Path, provenance: Provenance) -> None:
            assert found is not None
            assert options is not None
            if as_vcf:
                lines = header_lines(header, options, prefix, provenance, found.contigs)
                merge_vcf(lines, parts, target)
            elif parts:
                merge_tables(parts, target, provenance)
            else:  # a table without rows, as a VCF output would have no records
                empty = target.with_name(f".{target.name}.empty")
                variant_table([], [], options.methods or ()).write_parquet(empty)
                try:
                    merge_tables([empty], target, provenance)
                finally:
                    empty.unlink()

        batch_tokens = running.get("batch_tokens", BATCH_TOKENS)
        work = Work(
            partial(_lines, prefix) if as_vcf else _table,
            partial(_scorer, model, store.path, options, batch_tokens),
            partial(_chunks, source),
            _count,
            ".vcf" if as_vcf else ".parquet",
        )
        map_file(work, output, describe, merge, **running)
    return None if found is None else (found, _index(output, found))


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


def _table(scorer: VariantScorer, chunk: tuple[int, list[VcfRecord]]) -> pl.DataFrame:
    """Score a chunk into the rows of a table."""
    first, records = chunk
    return variant_table(records, scorer.score(records), scorer.options.methods or (), first)


def _lines(prefix: str, scorer: VariantScorer, chunk: tuple[int, list[VcfRecord]]) -> str:
    """Score a chunk into lines of VCF."""
    records, methods = chunk[1], scorer.options.methods or ()
    scored = zip(records, scorer.score(records), strict=True)
    return "".join(f"{annotated_line(one, alleles, methods, prefix)}\n" for one, alleles in scored)


def _index(output: Path, found: Survey) -> Path | None:
    """Write the index of an output that takes one; an old one goes away."""
    if not output.name.lower().endswith((".gz", ".bgz", ".bcf")) or not output.is_file():
        return None  # a pipe has no index
    for old in (".tbi", ".csi"):
        output.with_name(output.name + old).unlink(missing_ok=True)
    if not found.in_order:
        return None
    return index_vcf(output, max((length or 0 for length in found.contigs.values()), default=0))
