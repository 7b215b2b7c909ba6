"""Tables of labeled variants in their published layouts, placed on a genome."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import polars as pl

from megabase.benchmarking.config import VariantsConfig
from megabase.data.label_files import read_frame
from megabase.errors import InputError, InputWarning, warn
from megabase.genome.alphabet import decode
from megabase.genome.consequences import SEVERITY
from megabase.genome.interval import one_based
from megabase.genome.left_out import LeftOut, Reason
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord, read_vcf_records
from megabase.untrusted import parsing


class _Layout(NamedTuple):
    """Where a layout has what."""

    columns: Mapping[str, str] = {}
    """Those that are named otherwise: chrom, pos (1-based), ref, alt, label, match_group, subset ->
    column."""
    positive: tuple[str, ...] = ("1", "true", "yes")
    negative: tuple[str, ...] = ()
    """Rows with neither label are left out; empty: all others are negative."""
    used: str | None = None
    """Column that is true for the rows that count."""


_ROLES = ("chrom", "pos", "ref", "alt", "label", "match_group", "subset")
"""Columns of a table."""
_OPTIONAL = ("match_group", "subset")
"""Those that a table need not have."""
_OF_VAR = {"ref": "var.allele1", "alt": "var.allele2"}
"""Alleles in the tables of QTL."""
LAYOUTS = {
    "table": _Layout(),
    "traitgym": _Layout({"subset": "consequence"}),
    "clinvar": _Layout(
        {}, ("pathogenic", "likely_pathogenic", "pathogenic/likely_pathogenic"),
        ("benign", "likely_benign", "benign/likely_benign"),
    ),
    "brca1": _Layout(
        {"chrom": "chromosome", "pos": "position (hg19)", "ref": "reference", "label": "func.class",
         "subset": "consequence"}, ("lof",), ("func", "int"),
    ),
    "brca2": _Layout(
        {"label": "class"}, ("lof", "p strong", "p moderate", "p supporting"),
        ("func/int", "b strong", "b moderate", "b supporting"),
    ),
    "caqtl": _Layout(
        {**_OF_VAR, "chrom": "var.chr", "pos": "var.pos_hg38", "label": "obs.label"},
        ("1",), ("0", "-1"), "var.isused",
    ),
    "dsqtl": _Layout(
        {**_OF_VAR, "chrom": "var.chrom", "pos": "var.pos", "label": "var.label"},
        ("1",), ("0", "-1"),
    ),
}  # fmt: skip
"""Layouts by name (docs/variants.md says of which release)."""
_STARS = (
    ("practice_guideline", 4), ("expert_panel", 3), ("multiple_submitters", 2), ("single", 1),
    ("conflicting", 1),
)  # fmt: skip
"""Words of CLNREVSTAT and the review stars that ClinVar gives them, the most first."""
_FOREIGN = 0.2
"""Share of rows with another REF above which a table is of another assembly, as for VCF files."""


class VariantTable(NamedTuple):
    """Labeled variants on a genome."""

    records: list[VcfRecord]
    frame: pl.DataFrame
    """A row for each record: label (Boolean), match_group and subset where there are such (text),
    and all columns of the file."""
    notes: list[str]


def read_variant_table(path: Path, store: Genome, chosen: VariantsConfig) -> VariantTable:
    """Read a table of labeled variants, and turn alleles that are exchanged.

    InputError when a column is missing, no row has either label, or REF is not that of the genome.
    """
    layout, notes = LAYOUTS[chosen.layout], list[str]()
    frame = _clinvar(path, chosen.min_stars) if chosen.layout == "clinvar" else read_frame(path)
    names = {role: role for role in _ROLES} | dict(layout.columns) | chosen.columns
    lacking = [
        column for role, column in names.items()
        if column not in frame.columns and (role not in _OPTIONAL or role in chosen.columns)
    ]  # fmt: skip
    strange = [role for role in chosen.columns if role not in _ROLES]
    if strange:
        raise InputError(
            f"variants.columns names {', '.join(strange)}; it is for {', '.join(_ROLES)}"
        )
    if lacking:
        raise InputError(
            f"{path} has no column {', '.join(lacking)}; it has {', '.join(frame.columns)[:200]}. "
            f"Name others by variants.columns ({', '.join(_ROLES)} -> column)"
        )
    own = {role: column for role, column in names.items() if column in frame.columns}

    def text(column: str) -> pl.Expr:
        return pl.col(column).cast(pl.String).str.to_lowercase().str.strip_suffix(".0")

    if layout.used is not None and layout.used in frame.columns:
        frame = frame.filter(text(layout.used).is_in(["true", "1"]))
    positive = [word.lower() for word in chosen.positive] or layout.positive
    frame = frame.with_columns(text(own["label"]).alias("_label"))
    if layout.negative:
        known = frame.filter(pl.col("_label").is_in([*positive, *layout.negative]))
    else:
        known = frame.drop_nulls("_label")
    if known.height < frame.height:
        notes.append(f"{frame.height - known.height:,} rows with other labels are left out")
    label = known["_label"].is_in(positive)
    if label.all() or not label.any():
        raise InputError(
            f"{path}: expected rows of both labels, found {int(label.sum()):,} positive ones "
            f"({', '.join(positive)}) among {known.height:,}; name them by variants.positive"
        )
    with parsing(path, InputError, "expected whole numbers as positions"):
        position = known[own["pos"]].cast(pl.Int64) - (0 if chosen.zero_based else 1)
    roles = {role: known[own[role]].cast(pl.String) for role in _OPTIONAL if role in own}
    known = known.drop("_label").with_columns(label=label, **roles)
    alleles = (known[own[role]].cast(pl.String).fill_null("") for role in ("chrom", "ref", "alt"))
    chrom, ref, alt = (series.to_list() for series in alleles)
    rows = list(zip(chrom, position.fill_null(-1).to_list(), ref, alt, strict=True))
    return _placed(path, store, rows, VariantTable([], known, notes), chosen.swapped)


def _placed(
    path: Path, store: Genome, rows: list[tuple[str, int, str, str]], table: VariantTable,
    swapped: str,
) -> VariantTable:  # fmt: skip
    """Keep the rows whose REF the genome has, of those with exchanged alleles turned."""
    left, kept, turned, moved = LeftOut(path, "row"), list[int](), 0, 0
    for number, (chrom, position, ref, alt) in enumerate(rows):
        contig = store.find_contig(chrom)
        record = _record(number, chrom, position, ref, alt)
        reason: Reason | None = record.check(store, contig) or record.check_allele(alt)
        if reason == "REF_MISMATCH" and contig is not None and len(ref) == len(alt):
            other = _record(number, chrom, position, alt, ref)
            if other.check(store, contig) is None:
                if swapped == "refuse":
                    raise InputError(
                        f"{path}, row {number + 1:,}: the genome has ALT {alt!r} and not REF "
                        f"{ref!r}; the alleles are exchanged (variants.swapped=turn exchanges them)"
                    )
                record, turned = other, turned + 1
                reason = other.check_allele(ref)
        if reason is None and contig is not None:
            name = store.contigs[contig].name
            table.records.append(_record(number, name, position, record.ref, record.alts[0]))
            kept.append(number)
            continue
        assert reason is not None
        if reason == "REF_MISMATCH" and contig is not None:
            around = decode(store.view(contig)[max(0, position - 1) : position + 2])
            moved += ref.upper() in (around[:1], around[2:])
        left.add(reason, number + 1, lambda r=record, why=reason: r.why_unusable(store, why))
    mismatches = left.counts.get("REF_MISMATCH", 0)
    if mismatches > max(1, _FOREIGN * len(rows)):
        near = f"; one base beside, {moved:,} of them agree (variants.zero_based?)" * (moved > 0)
        raise InputError(
            f"{path}: REF differs from genome {store.name!r} in {mismatches:,} of {len(rows):,} "
            f"rows{near}; is the table made for another assembly?"
        )
    left.report(len(kept))
    notes = [
        *table.notes,
        *(f"{count:,} rows left out: {why}" for why, count in left.counts.items()),
    ]
    if turned:
        said = f"{turned:,} of {len(kept):,} rows have REF and ALT exchanged, and were turned"
        warn(f"{path}: {said}; a model's score is of ALT against what the genome has", InputWarning)
        notes.append(said)
    return VariantTable(table.records, table.frame[kept], notes)


def _record(number: int, contig: str, position: int, ref: str, alt: str) -> VcfRecord:
    fields = (contig, str(one_based(position)), ".", ref, alt, ".", ".", ".")
    return VcfRecord(number + 1, fields, contig, position, ref, (alt,))


def _clinvar(path: Path, min_stars: int) -> pl.DataFrame:
    """Read a VCF of ClinVar: the label is CLNSIG, the subset the most severe consequence of MC."""
    rows: list[tuple[str, int, str, str, str, str]] = []
    for record in read_vcf_records(path, sites=True):
        info = dict(re.findall(r"(\w+)=([^;]*)", record.fields[7]))
        review = info.get("CLNREVSTAT", "").lower()
        stars = next((stars for word, stars in _STARS if word in review), 0)
        if stars < min_stars or "no_assertion" in review:
            continue
        terms = [one.partition("|")[2] for one in info.get("MC", "").split(",")]
        terms = ["stop_gained" if term == "nonsense" else term for term in terms]
        known = sorted((SEVERITY.index(term), term) for term in terms if term in SEVERITY)
        subset = known[0][1] if known else terms[0] or "other"
        for alt in record.alts:
            rows.append((record.contig, one_based(record.position), record.ref, alt,
                         info.get("CLNSIG", ""), subset))  # fmt: skip
    schema = ["chrom", "pos", "ref", "alt", "label", "subset"]
    return pl.DataFrame(rows, schema=schema, orient="row")
