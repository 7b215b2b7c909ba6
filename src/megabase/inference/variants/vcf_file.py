"""Scoring a VCF or BCF file, chunk by chunk, into its INFO fields or into a table."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import polars as pl

from megabase.data.regions import Regions, regions_of
from megabase.data.sources import genome_store, no_file
from megabase.errors import InputError, OutputError
from megabase.genome.consequences import Consequence, vcf_text
from megabase.genome.interval import contig_aliases
from megabase.genome.left_out import REASONS, LeftOut
from megabase.genome.store import Genome
from megabase.genome.vcf import (
    VcfRecord,
    checked_records,
    is_bcf,
    read_vcf_header,
    read_vcf_records,
)
from megabase.inference.jobs import Work, check_run, map_file, split_options
from megabase.inference.parts import Provenance
from megabase.inference.variants.calibration import DERIVED, columns
from megabase.inference.variants.methods import METHODS
from megabase.inference.variants.prescored.look_up import TableScorer
from megabase.inference.variants.scorer import (
    AlleleScore,
    VariantOptions,
    VariantScorer,
    columns_of,
)
from megabase.inference.writers import TABLE_SUFFIXES, merge_tables, require_suffix
from megabase.models.loading import ModelSpec
from megabase.options import VariantFileScoring

_CHUNK = 512  # records: seconds of work, and few enough that many processes have a share
_VCF_SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz", ".bcf")
"""Endings that bcftools knows too."""
_INFO = 7  # the eighth column of a VCF
_TBI_LIMIT = 1 << 29
"""Longest contig of a tabix index, by its format; csi takes longer ones."""
_EFFECTS = {
    "consequence": ("A", "Most severe consequence for a gene, in terms of the Sequence Ontology"),
    "gene": ("A", "Gene of the most severe consequence"),
    "csq": (".", "Consequences for all transcripts, the most severe first. Format: "
        "Allele|Consequence|Gene|Transcript|Strand|Protein"),
}  # fmt: skip
"""INFO keys of consequences; the last has the form that VEP and ``bcftools +split-vep`` know."""
_CONTIG = re.compile(r"[0-9A-Za-z!#$%&+./:;?@^_|~-][0-9A-Za-z!#$%&*+./:;=?@^_|~-]*")
"""The names that VCF 4.3 allows; htslib cannot read a header with others."""
_KEY = re.compile(r"[A-Za-z_][0-9A-Za-z_.]*")
"""The INFO keys that VCF 4.3 allows."""


class _Survey(NamedTuple):
    """What a file of variants holds, found in one pass without a model."""

    records: int
    """Number of records."""
    contigs: dict[str, int | None]
    """Lengths in bases of the contigs, in order of appearance, by the names that the records have;
    None for those that the genome does not have."""
    in_order: bool
    """Whether contigs are not mixed and positions never go back."""


def _survey(
    path: Path, store: Genome, kept: Regions | None = None, *, allow_mismatches: bool = False,
    strict: bool = False,
) -> _Survey:  # fmt: skip
    """Read a file of variants once, against the genome, and report what can have no score.

    InputError when a record cannot be read, no allele can be scored, or REF differs from the genome
    in more records than a file for this assembly would have.
    """
    contigs: dict[str, int | None] = {}
    left_out = LeftOut(path, "record" if is_bcf(path) else "line", strict)
    records = usable = 0
    in_order, last, position = True, None, -2
    advice = None if allow_mismatches else ", or score the rest with allow_mismatches=True"
    for record, contig, reason in checked_records(path, store, advice):
        if not _is_kept(record, contig, kept):
            continue
        records += 1
        name = record.contig
        if name not in contigs:
            contigs[name] = None if contig is None else int(store.lengths[contig])
        elif name != last or record.position < position:
            in_order = False
        last, position = name, record.position
        for alt in record.alts or (".",):
            why = reason or record.check_allele(alt)
            if why is None:
                usable += 1
            else:
                left_out.add(why, record.line, partial(record.why_unusable, store, why))
    left_out.report(usable, "alleles", "have no score")
    return _Survey(records, contigs, in_order)


def _is_kept(record: VcfRecord, contig: int | None, kept: Regions | None) -> bool:
    """Tell whether REF overlaps the regions; without regions every record is kept."""
    if kept is None or contig is None:
        return kept is None
    return kept.touches(contig, record.position, record.position + max(1, len(record.ref)))


def score_variants_file(
    model: ModelSpec,
    variants: str | Path,
    genome: str | Path,
    output: str | Path,
    *,
    regions: Sequence[str] = (),
    **options: Unpack[VariantFileScoring],
) -> tuple[_Survey, Path | None] | Path:
    """Score the records of a VCF or BCF file, as :mod:`megabase.inference.variants.scorer`.

    The output is VCF or BCF, every record again with scores in INFO, or a table, a row for each
    alternative allele. Gives what the file holds, and the index of the output, which bgzip VCF and
    BCF in order have; of a shard its folder. An InputError when the file looks as if it was made
    for another assembly.
    """
    source, output = Path(variants), Path(output)
    own, run = split_options(options, VariantFileScoring)
    prefix, strict = own.pop("prefix", "MB"), own.pop("strict", False)
    table, missing = own.pop("scores", None), own.pop("missing", None)
    mismatches, genes = own.pop("allow_mismatches", False), own.pop("genes", None)
    settings = VariantOptions(**own)
    require_suffix(output, (*_VCF_SUFFIXES, *TABLE_SUFFIXES))
    if not _KEY.fullmatch(prefix):
        raise InputError(
            f"prefix {prefix!r} cannot begin an INFO key; expected letters, digits and _"
        )
    if table is not None and missing in (None, "leave"):
        run.setdefault("workers", 1)  # chunks lie among one another: two would unpack all twice
    if table is None and missing is not None:
        raise InputError("missing= is for scores= of a table")
    if table is not None and require_suffix(output, _VCF_SUFFIXES) and settings.calibration:
        raise InputError("a calibration does not go with scores= of a table")
    check_run(output, **run)
    found: _Survey | None = None
    scored: VariantScorer
    with genome_store(genome) as store:
        if not source.is_file():
            raise InputError(no_file(source))
        kept = regions_of(store, regions) if regions else None
        header = read_vcf_header(source)
        as_vcf = output.name.lower().endswith(_VCF_SUFFIXES)
        if as_vcf:
            _require_new_keys(header, prefix, source)

        def describe(scorer: VariantScorer) -> Provenance:
            nonlocal found, scored
            scored = scorer
            found = _survey(source, store, kept, allow_mismatches=mismatches, strict=strict)
            if as_vcf:
                _require_names(found.contigs, source)
            more = {"regions": list(regions)} if regions else {}
            made = scorer.provenance("variants", prefix=prefix, **more)
            inputs = Provenance.digests(source, *regions)
            return replace(made, inputs={**made.inputs, **inputs})

        def merge(parts: list[Path], target: Path, provenance: Provenance) -> None:
            assert found is not None
            if as_vcf:
                lines = _header_lines(header, scored, prefix, provenance, found.contigs)
                _merge_vcf(lines, parts, target)
            else:
                merge_tables(parts, target, provenance)

        make: Any = partial(VariantScorer.load, model, store.path, settings, genes=genes)
        if table is not None:
            given = Path(table), missing or "leave"
            make = partial(TableScorer.load, model, store.path, settings, given, genes=genes)
        work = Work(
            partial(_lines, prefix) if as_vcf else _table, make,
            partial(_chunks, source, store.path, kept), suffix=".vcf" if as_vcf else ".parquet",
        )  # fmt: skip
        made = map_file(work, output, describe, merge, **run)
    return made if found is None or made != output else (found, _index(output, found))


def _chunks(
    source: Path, genome: Path, kept: Regions | None
) -> Iterator[list[tuple[int, VcfRecord]]]:
    """Read the records that are kept, with their numbers in the file; at least one chunk."""
    store = Genome(genome)
    records = (
        (number, record)
        for number, record in enumerate(read_vcf_records(source))
        if kept is None or _is_kept(record, store.find_contig(record.contig), kept)
    )
    yield list(islice(records, _CHUNK))
    while chunk := list(islice(records, _CHUNK)):
        yield chunk


def _table(scorer: VariantScorer, chunk: list[tuple[int, VcfRecord]]) -> pl.DataFrame:
    """Score a chunk into the rows of a table."""
    return scorer.table([record for _, record in chunk], [number for number, _ in chunk])


def _lines(prefix: str, scorer: VariantScorer, chunk: list[tuple[int, VcfRecord]]) -> str:
    """Score a chunk into lines of VCF."""
    records, methods = [record for _, record in chunk], scorer.columns
    scored = zip(records, scorer.score(records), strict=True)
    return "".join(
        f"{_annotated_line(one, alleles, methods, prefix, scorer.consequences(one))}\n"
        for one, alleles in scored
    )


def _index(output: Path, found: _Survey) -> Path | None:
    """Write the index of a bgzip VCF or BCF in order; an old one goes away."""
    name = output.name.lower()
    if not name.endswith((".gz", ".bgz", ".bcf")) or not output.is_file():
        return None  # a pipe has no index
    for old in (".tbi", ".csi"):
        output.with_name(output.name + old).unlink(missing_ok=True)
    if not found.in_order:
        return None
    import pysam
    import pysam.bcftools

    longest = max((length or 0 for length in found.contigs.values()), default=0)
    kind = "csi" if name.endswith(".bcf") or longest > _TBI_LIMIT else "tbi"
    pysam.bcftools.index("--force", f"--{kind}", str(output), catch_stdout=False)  # pyright: ignore[reportAttributeAccessIssue]
    return output.with_name(f"{output.name}.{kind}")


def _info_key(prefix: str, name: str) -> str:
    """Give the INFO key of a method, or of the reason."""
    return f"{prefix}_{name.upper()}"


def _require_new_keys(header: Sequence[str], prefix: str, path: Path) -> None:
    """Refuse a prefix whose keys the header of a file has already, with an InputError."""
    for name in (*columns(tuple(METHODS), True), "reason", "source", *_EFFECTS):
        key = _info_key(prefix, name)
        # Names of tracks follow those of their methods.
        if any(line.startswith((f"##INFO=<ID={key},", f"##INFO=<ID={key}_")) for line in header):
            raise InputError(
                f"{path}: has INFO field {key} already; score the original file, or choose "
                "another prefix=..."
            )


def _require_names(contigs: Iterable[str], path: Path) -> None:
    """Refuse names of contigs that the header of a VCF cannot hold, with an InputError."""
    for name in contigs:
        if not _CONTIG.fullmatch(name):
            raise InputError(
                f"{path}: the header of a VCF cannot hold the contig name {name!r} (commas, "
                "brackets, quotes and blanks are not allowed in it); write a table (.tsv, "
                ".parquet), or give the contig another name"
            )


def _annotated_line(
    record: VcfRecord, alleles: Sequence[AlleleScore], methods: Sequence[str], prefix: str,
    effects: Sequence[Sequence[Consequence]] = (),
) -> str:  # fmt: skip
    """Give a record's line with its scores at the end of INFO; all other columns as they were."""
    added = []
    for number, name in enumerate(methods):
        values = [score.values[number] for score in alleles]
        if not all(math.isnan(value) for value in values):
            texts = ("." if math.isnan(value) else f"{value:.6g}" for value in values)
            added.append(f"{_info_key(prefix, name)}={','.join(texts)}")
    if any(score.reason for score in alleles):
        reasons = ",".join(score.reason or "." for score in alleles)
        added.append(f"{_info_key(prefix, 'reason')}={reasons}")
    if any(effects):
        terms, genes, _ = zip(*map(columns_of, effects), strict=True)
        named = [f"{alt}|{one}" for alt, found in zip(record.alts, effects, strict=True)
                 for one in found]  # fmt: skip
        texts = ([term or "." for term in terms], [vcf_text(gene or ".") for gene in genes], named)
        for name, values in zip(_EFFECTS, texts, strict=True):
            added.append(f"{_info_key(prefix, name)}={','.join(values)}")
    if any(score.source for score in alleles):
        sources = ",".join(score.source or "." for score in alleles)
        added.append(f"{_info_key(prefix, 'source')}={sources}")
    fields = list(record.fields)
    if added:
        kept = [] if fields[_INFO] in (".", "") else [fields[_INFO]]
        fields[_INFO] = ";".join((*kept, *added))
    return "\t".join(fields)


def _header_lines(
    header: Sequence[str], scorer: VariantScorer, prefix: str, provenance: Provenance,
    contigs: Mapping[str, int | None],
) -> list[str]:  # fmt: skip
    """Give a header with the lines for the new fields before its last line.

    A header of the column names alone gets the line of the format, without which nothing reads it.
    Contigs of the records that it lacks are declared, as an index and BCF need; a declaration under
    another name of such a contig (20 for chr20) is taken out.
    """
    if not header[0].startswith("##fileformat="):
        header = ["##fileformat=VCFv4.2", *header]
    declared = {
        match[1]: line
        for line in header
        if (match := re.match(r"##contig=<(?:.*,)?ID=([^,>]+)", line))
    }
    added = []
    for name, length in contigs.items():
        if name not in declared:
            added.append(f"##contig=<ID={name}{'' if length is None else f',length={length}'}>")
            others = [other for other in contig_aliases(name) if other not in contigs]
            replaced = {declared[other] for other in others if other in declared}
            header = [line for line in header if line not in replaced]
    options = scorer.options
    strands = "mean of both strands" if options.strands == "both" else f"{options.strands} strand"
    said = {n: one.description for n, one in zip(scorer.names, scorer.methods, strict=True)}
    for name in scorer.columns[len(said) :]:
        method, _, kind = name.rpartition("_")
        said[name] = f"{method} {DERIVED[kind]}"
    for name, text in said.items():
        added.append(
            f'##INFO=<ID={_info_key(prefix, name)},Number=A,Type=Float,Description="'
            f'{text}; {strands}; {scorer.placed}">'
        )
    reasons = "; ".join(f"{name}: {text}" for name, text in REASONS.items())
    added.append(
        f'##INFO=<ID={_info_key(prefix, "reason")},Number=A,Type=String,Description="Why an allele '
        f'has no score, or lacks one. {reasons}">'
    )
    for name, (number, text) in _EFFECTS.items() if scorer.annotation else ():
        key = _info_key(prefix, name)
        added.append(f'##INFO=<ID={key},Number={number},Type=String,Description="{text}">')
    if isinstance(scorer, TableScorer):
        added.append(
            f'##INFO=<ID={_info_key(prefix, "source")},Number=A,Type=String,Description="Where the '
            'score comes from: table (of --scores) or model">'
        )
    added.append(f"##megabase={provenance.to_json()}")
    return [*header[:-1], *added, header[-1]]


def _merge_vcf(header: Sequence[str], parts: Sequence[Path], target: Path) -> None:
    """Write header and parts as VCF, bgzip VCF or BCF, by the ending of `target`."""
    import pysam
    import pysam.bcftools

    name = target.name.lower()
    packed = name.endswith((".gz", ".bgz"))
    text = target.with_name(f"{target.name}.text") if name.endswith(".bcf") else target
    with pysam.BGZFile(str(text), "wb", None) if packed else text.open("wb") as file:
        file.write("".join(f"{line}\n" for line in header).encode())
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
    if text is target:
        return
    # Not through VariantFile: it gives symbolic alleles an END that the header may not declare.
    arguments = ("--no-version", "--output-type", "b", "--output", str(target), str(text))
    try:
        pysam.bcftools.view(*arguments, catch_stdout=False)  # pyright: ignore[reportAttributeAccessIssue]
    except pysam.SamtoolsError as error:
        raise OutputError(
            f"the records cannot be written as BCF ({' '.join(str(error).split())}): BCF needs a "
            "header line for every field; write .vcf.gz instead"
        ) from None
    finally:
        text.unlink(missing_ok=True)
