"""Scoring a VCF or BCF file, chunk by chunk, into its INFO fields or into a table."""

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
import pysam.bcftools

from megabase.data.regions import Regions
from megabase.data.sources import genome_store, no_file
from megabase.errors import InputError, OutputError
from megabase.genome import vcf
from megabase.genome.consequences import vcf_text
from megabase.genome.interval import contig_aliases
from megabase.genome.left_out import REASONS, LeftOut
from megabase.genome.store import Genome
from megabase.inference.jobs import Work, check_run, map_file, split_options
from megabase.inference.parts import TABLE_SUFFIXES, Provenance, merge_tables, require_suffix
from megabase.inference.variants.calibration import DERIVED, columns
from megabase.inference.variants.methods import METHODS
from megabase.inference.variants.score_table import TableScorer, write_index
from megabase.inference.variants.scorer import AlleleScore, VariantOptions, VariantScorer
from megabase.models.loading import ModelSpec
from megabase.options import VariantFileScoring

_CHUNK = 512  # records: seconds of work, and few enough that many processes have a share
_VCF_SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz", ".bcf")  # endings that bcftools knows too
_INFO = 7  # the eighth column of a VCF
_EFFECTS = {
    "consequence": ("A", "Most severe consequence for a gene, in terms of the Sequence Ontology"),
    "gene": ("A", "Gene of the most severe consequence"),
    "csq": (".", "Consequences for all transcripts, the most severe first. Format: "
        "Allele|Consequence|Gene|Transcript|Strand|Protein"),
}  # fmt: skip
"""INFO keys of consequences; the last has the form that VEP and ``bcftools +split-vep`` know."""
_CONTIG = re.compile(r"[0-9A-Za-z!#$%&+./:;?@^_|~-][0-9A-Za-z!#$%&*+./:;=?@^_|~-]*")
"""The names that VCF 4.3 allows; htslib cannot read a header with others."""
_KEY = re.compile(r"[A-Za-z_][0-9A-Za-z_.]*")  # the INFO keys that VCF 4.3 allows


class _Survey(NamedTuple):
    """What a file of variants holds, found in one pass without a model."""

    records: int
    contigs: dict[str, int | None]
    """Lengths in bases by the names in the records, in order of appearance; None where the genome
    has no such contig."""
    in_order: bool  # whether contigs are not mixed and positions never go back


def _survey(
    path: Path, store: Genome, kept: Regions | None = None, *, allow_mismatches: bool = False,
    strict: bool = False,
) -> _Survey:  # fmt: skip
    """Read a file of variants once, against the genome, and report what can have no score."""
    contigs: dict[str, int | None] = {}
    left_out = LeftOut(path, vcf.row_unit(path), strict)
    records = usable = 0
    in_order, last, position = True, None, -2
    advice = None if allow_mismatches else ", or score the rest with allow_mismatches=True"
    for record, contig, reason in vcf.VcfRecord.checked(path, store, advice):
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


def _is_kept(record: vcf.VcfRecord, contig: int | None, kept: Regions | None) -> bool:
    """Tell whether REF overlaps the regions; without regions every record is kept."""
    if kept is None or contig is None:
        return kept is None
    return kept.touches(contig, record.position, record.position + max(1, len(record.ref)))


def score_variants_file(
    model: ModelSpec, variants: str | Path, genome: str | Path, output: str | Path, *,
    regions: Sequence[str] = (), **options: Unpack[VariantFileScoring],
) -> tuple[_Survey, Path | None] | Path:  # fmt: skip
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
        raise InputError(f"prefix {prefix!r} cannot begin an INFO key: letters, digits and _ can")
    if table is None and missing is not None:
        raise InputError("missing= is for scores= of a table")
    if table is not None:
        require_suffix(output, _VCF_SUFFIXES)
        if settings.calibration is not None:
            raise InputError("a calibration does not go with scores= of a table")
        if missing != "score":
            run.setdefault("workers", 1)  # chunks lie among one another: two would unpack all twice
    check_run(output, **run)
    found: _Survey | None = None
    scored: VariantScorer
    with genome_store(genome) as store:
        if not source.is_file():
            raise InputError(no_file(source))
        kept = Regions.read(store, regions) if regions else None
        header = vcf.read_vcf_header(source)
        as_vcf = output.name.lower().endswith(_VCF_SUFFIXES)
        if as_vcf:
            _require_new_keys(header, prefix, source)

        def describe(scorer: VariantScorer) -> Provenance:
            nonlocal found, scored
            scored = scorer
            found = _survey(source, store, kept, allow_mismatches=mismatches, strict=strict)
            for name in found.contigs if as_vcf else ():
                if not _CONTIG.fullmatch(name):
                    raise InputError(
                        f"{source}: the header of a VCF cannot hold the contig name {name!r} "
                        "(commas, brackets, quotes and blanks are not allowed in it); write a "
                        "table (.tsv, .parquet), or give the contig another name"
                    )
            more = {"regions": list(regions)} if regions else {}
            made = scorer.provenance("variants", prefix=prefix, **more)
            return replace(made, inputs={**made.inputs, **Provenance.digests(source, *regions)})

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
    if found is None or made != output:
        return made
    # A pipe has no index.
    if not output.name.lower().endswith((".gz", ".bgz", ".bcf")) or not output.is_file():
        return found, None
    longest = max((length or 0 for length in found.contigs.values()), default=0)
    return found, write_index(output, longest, found.in_order)


def _chunks(
    source: Path, genome: Path, kept: Regions | None
) -> Iterator[list[tuple[int, vcf.VcfRecord]]]:
    """Read the records that are kept, with their numbers in the file; at least one chunk."""
    store = Genome(genome)
    records = (
        one
        for one in enumerate(vcf.VcfRecord.read(source))
        if kept is None or _is_kept(one[1], store.find_contig(one[1].contig), kept)
    )
    yield list(islice(records, _CHUNK))
    while chunk := list(islice(records, _CHUNK)):
        yield chunk


def _table(scorer: VariantScorer, chunk: list[tuple[int, vcf.VcfRecord]]) -> pl.DataFrame:
    return scorer.table([record for _, record in chunk], [number for number, _ in chunk])


def _lines(prefix: str, scorer: VariantScorer, chunk: list[tuple[int, vcf.VcfRecord]]) -> str:
    records = [record for _, record in chunk]
    scored = zip(records, scorer.score(records), strict=True)
    return "".join(f"{_line(prefix, scorer, *one)}\n" for one in scored)


def _info_key(prefix: str, name: str) -> str:
    return f"{prefix}_{name.upper()}"


def _require_new_keys(header: Sequence[str], prefix: str, path: Path) -> None:
    """Refuse a prefix whose keys the header of a file has already."""
    for name in (*columns(tuple(METHODS), True), "reason", "source", *_EFFECTS):
        key = _info_key(prefix, name)
        # Names of tracks follow those of their methods.
        if any(line.startswith((f"##INFO=<ID={key},", f"##INFO=<ID={key}_")) for line in header):
            raise InputError(
                f"{path}: has INFO field {key} already; score the original file, or choose "
                "another prefix=..."
            )


def _line(
    prefix: str, scorer: VariantScorer, record: vcf.VcfRecord, alleles: Sequence[AlleleScore]
) -> str:
    """Give a record's line with its scores at the end of INFO; all other columns as they were."""
    added: list[str] = [record.fields[_INFO]] if record.fields[_INFO] not in (".", "") else []

    def add(name: str, values: Iterable[str]) -> None:
        added.append(f"{_info_key(prefix, name)}={','.join(values)}")

    for number, name in enumerate(scorer.columns):
        values = [score.values[number] for score in alleles]
        if not all(map(math.isnan, values)):
            add(name, ("." if math.isnan(value) else f"{value:.6g}" for value in values))
    if any(score.reason for score in alleles):
        add("reason", (score.reason or "." for score in alleles))
    if any(effects := scorer.consequences(record)):
        terms, genes, _ = zip(*map(scorer.effect, effects), strict=True)
        named = [f"{alt}|{one}" for alt, found in zip(record.alts, effects, strict=True)
                 for one in found]  # fmt: skip
        texts = ([term or "." for term in terms], [vcf_text(gene or ".") for gene in genes], named)
        for name, values in zip(_EFFECTS, texts, strict=True):
            add(name, values)
    if any(score.source for score in alleles):
        add("source", (score.source or "." for score in alleles))
    info = ";".join(added) or record.fields[_INFO]
    return "\t".join((*record.fields[:_INFO], info, *record.fields[_INFO + 1 :]))


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

    def add(name: str, number: str, kind: str, text: str) -> None:
        key = _info_key(prefix, name)
        added.append(f'##INFO=<ID={key},Number={number},Type={kind},Description="{text}">')

    strands = scorer.options.strands
    strands = "mean of both strands" if strands == "both" else f"{strands} strand"
    said = {n: one.description for n, one in zip(scorer.names, scorer.methods, strict=True)}
    for name in scorer.columns[len(said) :]:
        method, _, kind = name.rpartition("_")
        said[name] = f"{method} {DERIVED[kind]}"
    for name, text in said.items():
        add(name, "A", "Float", f"{text}; {strands}; {scorer.placed}")
    reasons = "; ".join(f"{name}: {text}" for name, text in REASONS.items())
    add("reason", "A", "String", f"Why an allele has no score, or lacks one. {reasons}")
    for name, (number, text) in _EFFECTS.items() if scorer.annotation else ():
        add(name, number, "String", text)
    if isinstance(scorer, TableScorer):
        where = "Where the score comes from: table (of --scores) or model"
        add("source", "A", "String", where)
    added.append(f"##megabase={provenance.to_json()}")
    return [*header[:-1], *added, header[-1]]


def _merge_vcf(header: Sequence[str], parts: Sequence[Path], target: Path) -> None:
    """Write header and parts as VCF, bgzip VCF or BCF, by the ending of `target`."""
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
