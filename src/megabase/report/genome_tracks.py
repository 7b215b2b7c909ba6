"""Files on the genome page: genes (GFF, GTF), intervals (BED), numbers (bedGraph, bigWig), VCF."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import polars as pl

from megabase.data.regions import Regions
from megabase.errors import InputError, ReportError
from megabase.genome.files import file_digest
from megabase.genome.interval import Interval, one_based, union
from megabase.genome.signal import BEDGRAPH, BIGWIG, Signal
from megabase.genome.store import Genome
from megabase.genome.tables import read_bed, read_gff, read_vcf
from megabase.genome.vcf import read_vcf_header
from megabase.report.genome_page import Column, Feature, Segment, TableRow, Track

_ENDINGS = {
    **dict.fromkeys(BIGWIG, "bigwig"), **dict.fromkeys(BEDGRAPH, "bedgraph"),
    ".bed": "bed", ".narrowpeak": "bed", ".broadpeak": "bed",
    ".gff": "genes", ".gff3": "genes", ".gtf": "genes",
}  # fmt: skip
"""What a file of a track is, by the ending of its name (in lower case, before .gz)."""

_TEXTS = {"MB_REASON": "reason", "MB_CONSEQUENCE": "consequence", "MB_GENE": "gene"}
"""INFO fields of megabase variants that are text: why an allele has no score, what it does."""
_PLACE = ("contig", "start", "end")  # of all frames
_VARIANT_COLUMNS = (*_PLACE, "ref", "alt", "id", "record", "qual", "filter", *_TEXTS.values())
"""Columns of a frame of variants before its scores."""
_GENES = ("gene", "pseudogene", "ncRNA_gene")
"""Types of GFF rows that are drawn as a gene (Ensembl and RefSeq)."""
_PARTS = ("exon", "CDS")
"""Types of rows drawn as thick parts of a gene; the second where the first is missing."""
_TRANSCRIPTS = ("mRNA", "transcript", "ncRNA", "rRNA", "tRNA", "snoRNA", "snRNA", "lnc_RNA",
                "primary_transcript")  # fmt: skip
"""Types of rows that join parts to their gene."""


def _track_kind(path: str | Path, kinds: Sequence[str] = ()) -> str:
    """Give what a file of a track is, by its ending: one of `kinds`, or any; else a ReportError."""
    name = Path(path).name.lower()
    plain = name.removesuffix(".gz").removesuffix(".bgz")
    kind = _ENDINGS.get(Path(plain).suffix)
    if kind == "bigwig" and plain != name:
        raise ReportError(f"{path}: bigWig is compressed already; decompress the file")
    if kind is None or (kinds and kind not in kinds):
        known = [end for end, what in _ENDINGS.items() if not kinds or what in kinds]
        raise ReportError(
            f"{path}: the ending does not name a format read here; expected a name ending in "
            f"{', '.join(known)} (text files may end in .gz too)"
        )
    return kind


def _place(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["contig"], row["start"], row["end"]


def genes_track(
    path: str, name: str, store: Genome, places: Sequence[Interval], *, strict: bool = False
) -> Track:
    """Read the genes that share a base with a region, each with the union of its exons.

    A gene without exons has its coding parts. `strict` refuses rows that are not on the genome,
    which are left out otherwise.
    """
    _track_kind(path, ["genes"])
    keys = ("ID", "Parent", "Name", "gene_id", "gene_name", "gene")
    kinds = (*_GENES, *_TRANSCRIPTS, *_PARTS)
    frame = read_gff(path, store, attributes=keys, types=kinds, strict=strict)
    frame = frame.filter(_on(places, store, frame) | ~frame["type"].is_in(_GENES))
    genes: dict[str, dict[str, Any]] = {}
    owner: dict[str, str] = {}  # transcript -> gene
    parts: dict[str, dict[str, set[tuple[int, int]]]] = {}
    for row in frame.iter_rows(named=True):
        kind, parent = row["type"], row["Parent"]
        key = row["ID"] or row["gene_id"] or f"{row['contig']}:{row['start']}"
        if kind in _GENES:
            label = row["Name"] or row["gene_name"] or row["gene"] or key
            genes[key] = {**row, "label": label.removeprefix("gene:")}
        elif kind in _TRANSCRIPTS:
            owner[key] = parent or row["gene_id"] or key
        else:
            mother = (parent or row["gene_id"] or "").split(",")[0]
            both = parts.setdefault(mother, {"exon": set(), "CDS": set()})
            both[kind].add((row["start"], row["end"]))
    found: dict[str, set[tuple[int, int]]] = {}
    for mother, both in parts.items():
        found.setdefault(owner.get(mother, mother), set()).update(both["exon"] or both["CDS"])
    features = [
        Feature(*_place(row), row["label"], row["strand"], union(found.get(key, ())))
        for key, row in genes.items()
    ]
    features.sort(key=lambda f: f[:3])
    return Track(name, tuple(features), color="#3b5b7a", height=60)


def _bed_track(
    path: str, name: str, store: Genome, places: Sequence[Interval], *, strict: bool = False
) -> Track:
    frame = read_bed(path, store, strict=strict)
    features = tuple(
        Feature(*_place(row), row.get("name") or "", row.get("strand") or ".")
        for row in frame.filter(_on(places, store, frame)).iter_rows(named=True)
    )
    return Track(name, features, color="#2f7d4f", height=50)


def _signal_track(path: str, name: str, store: Genome, places: Sequence[Interval]) -> Track:
    signal = Signal(path, store)
    segments = tuple(
        Segment(place.contig, place.start, signal.values(place.contig, place.start, place.end))
        for place in places
        if place.contig in signal.contigs
    )
    if not segments:
        shown = ", ".join(dict.fromkeys(place.contig for place in places))
        raise InputError(f"{path}: has no row on the contigs shown ({shown})")
    return Track(name, segments=segments, color="#2f7d4f", below="#b4530a")


def read_track(
    text: str, store: Genome, regions: Sequence[Interval], *, strict: bool = False
) -> tuple[Track, tuple[str, str]]:
    """Read a file of any kind of track, given as ``NAME=FILE`` or the file alone.

    Returns the track, and what the page says of the file: its name and checksum. `strict` refuses
    the first row that cannot be used, instead of leaving it out.
    """
    name, _, path = text.rpartition("=")
    path = path or text
    label = name or Path(path).name.removesuffix(".gz").rpartition(".")[0] or path
    if not Path(path).is_file():
        raise ReportError(f"there is no track {path}")
    kind = _track_kind(path)
    if kind in ("bigwig", "bedgraph"):
        track = _signal_track(path, label, store, regions)
    else:
        read = genes_track if kind == "genes" else _bed_track
        track = read(path, label, store, regions, strict=strict)
    return track, (f"track {label}", f"{Path(path).name}, sha256 {file_digest(path)}")


def read_variants(
    path: str | Path, store: Genome, region: Interval | None = None, *, info: Sequence[str] = (),
    strict: bool = False,
) -> pl.DataFrame:  # fmt: skip
    """Read the alleles of a VCF file with numbers from its INFO fields.

    Columns: contig, start, end (0-based half-open), ref, alt, id, record, qual, filter, reason (why
    an allele has no score), and one of numbers for each field of `info` (all fields of the header
    with a number for each allele when empty). A `region` leaves out what does not lie inside it; a
    :class:`ReportError` when no variant is left.
    """
    keys = list(info) or _float_info_keys(read_vcf_header(path))
    frame = read_vcf(path, store, info=[*keys, *_TEXTS], strict=strict)

    def of_allele(key: str) -> pl.Expr:
        """Take the value of the allele of the row where there is one for each."""
        values = pl.col(key).str.split(",")
        own = values.list.get(pl.col("allele"), null_on_oob=True)
        return pl.when(values.list.len() > 1).then(own).otherwise(values.list.first())

    numbers = [of_allele(key).cast(pl.Float64, strict=False).alias(key) for key in keys]
    texts = [
        of_allele(key).replace(".", None).map_elements(unquote, pl.String).alias(name)
        for key, name in _TEXTS.items()
    ]
    frame = frame.with_columns(*numbers, *texts)
    if region is not None:
        inside = pl.col("start") >= region.start, pl.col("end") <= region.end
        frame = frame.filter(pl.col("contig") == region.contig, *inside)
    if not frame.height:
        raise ReportError(f"{path}: has no variant" + (" in the region" * (region is not None)))
    return frame.select(*_VARIANT_COLUMNS, *keys)


def variants_track(
    variants: pl.DataFrame, genes: Track | None
) -> tuple[Track, list[Column], list[TableRow]]:
    """Make the track of variants, and their table with the genes they lie in."""
    # Of what every VCF file may hold, the table has what this one does.
    optional = ("qual", "filter", *_TEXTS.values())
    given = {name for name in optional if variants[name].is_not_null().any()}
    scores = variants.columns[len(_VARIANT_COLUMNS) :]
    columns = {
        "contig": Column("contig"), "first base": Column("position", "place"),
        "ref": Column("ref"), "alt": Column("alt"), "id": Column("id", minor=True),
        "consequence": Column("consequence"), "gene": Column("gene"),
        "genes here": Column("gene", minor=True),
        "qual": Column("qual", "number", 1, minor=True), "filter": Column("filter", minor=True),
        **{key: Column(key, "number", 1 if key.endswith("_PERCENTILE") else 3) for key in scores},
        "reason": Column("no score because"),
    }  # fmt: skip
    if genes is None or "gene" in given:
        del columns["genes here"]
    for name in {*optional} - given:
        del columns[name]
    rows: list[TableRow] = []
    features: list[Feature] = []
    for row in variants.iter_rows(named=True):
        locus = contig, start, end = row["contig"], row["start"], row["end"]
        row |= {name: row[name] or "" for name in ("alt", "id", *_TEXTS.values())}
        row["first base"], row["genes here"] = one_based(start), genes and _genes_at(genes, *locus)
        rows.append(TableRow(*locus, [row[name] for name in columns]))
        features.append(Feature(contig, start, end, f"{row['ref']}>{row['alt'] or '.'}"))
    track = Track("variants", tuple(features), color="#b4530a", height=50)
    return track, list(columns.values()), rows


def _float_info_keys(header: Sequence[str]) -> list[str]:
    """Give the INFO keys that hold one number for a record, or one for each alternative allele."""
    found = (re.match(r"##INFO=<(.*)>\s*$", line) for line in header)
    infos = [dict(re.findall(r"(\w+)=([^,\"]+|\"[^\"]*\")", match[1])) for match in found if match]
    floats = [one for one in infos if one.get("Type") == "Float" and "ID" in one]
    return [one["ID"] for one in floats if one.get("Number") in ("1", "A")]


def _genes_at(track: Track, contig: str, start: int, end: int) -> str:
    here = [f for f in track.features if f.contig == contig and f.start < end and start < f.end]
    return ", ".join(dict.fromkeys(feature.name for feature in here if feature.name))


def _on(places: Sequence[Interval], store: Genome, frame: pl.DataFrame) -> pl.Series:
    """Tell which rows of a frame share a base with one of the places."""
    starts, ends = [place.start for place in places], [place.end for place in places]
    shown = Regions.of([store.contig_index(place.contig) for place in places], starts, ends)
    contigs = np.array([store.contig_index(name) for name in frame["contig"]], dtype=np.int64)
    return pl.Series(shown.overlap(contigs, frame["start"].to_numpy(), frame["end"].to_numpy()))
