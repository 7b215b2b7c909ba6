"""A page about a region of a genome or a set of variants: genome browser, logos, table; one file.

Tracks come from files: genes (GFF, GTF), intervals (BED), numbers (bedGraph, bigWig), VCF. The
browser is igv.js, inside the page with everything it shows, so the page works without a
network and asks no host (its content security policy would not let it). Coordinates are 0-based
and half-open; the page shows them 1-based.
"""

import base64
import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import polars as pl

from megabase import __version__
from megabase.data.regions import Regions
from megabase.errors import InputError, ReportError
from megabase.genome.alphabet import decode
from megabase.genome.consequences import SEVERITY
from megabase.genome.files import file_digest, without_nan
from megabase.genome.interval import Interval, one_based, union
from megabase.genome.signal import BEDGRAPH, BIGWIG, Signal
from megabase.genome.store import Genome
from megabase.genome.tables import read_bed, read_gff, read_vcf
from megabase.genome.vcf import read_vcf_header
from megabase.report.style import definitions, document, section, statistics

Floats = npt.NDArray[np.floating[Any]]

_STEPS = 65_534  # largest step of a number packed into 16 bits; one more stands for no value
_NOTHING = 65_535
"""Packed for what is not finite: the one number of 16 bits that _STEPS leaves over."""
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


class Segment(NamedTuple):
    """Numbers side by side: where the first stands (0-based), and float (n,), NaN for none."""

    contig: str
    start: int
    values: Floats


class _Feature(NamedTuple):
    """A feature of a contig: 0-based half-open; ``exons`` are (start, end) pairs inside it."""

    contig: str
    start: int
    end: int
    name: str = ""
    strand: str = "."
    exons: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Track:
    """One track: numbers in `segments`, one a base, which must not overlap; or `features`.

    `color` is for numbers above zero, `below` (empty: the same) for those below it; `height` is in
    CSS pixels.
    """

    name: str
    features: tuple[_Feature, ...] = ()
    segments: tuple[Segment, ...] = ()
    color: str = "#1a56c4"
    below: str = ""
    height: int = 64

    def _record(self, order: int) -> dict[str, Any]:
        segments = [one._asdict() | {"values": _pack(one.values)} for one in self.segments]
        kind = "signal" if segments else "features"
        return {**vars(self), "kind": kind, "order": order, "segments": segments}


@dataclass(frozen=True)
class Logo:
    """Four numbers for each position, drawn as letters: `values` is float (n, 4) for A, C, G, T.

    ``probability``: rows that sum to 1, drawn as high as their information in bits. ``effects``:
    the effect of each substitution, NaN at the base that stands there, drawn as the mean loss with
    a heat map below. `start` is 0-based; `row` is that of the table that the logo belongs to, None
    for all.
    """

    name: str
    note: str
    contig: str
    start: int
    values: Floats
    kind: Literal["probability", "effects"]
    row: int | None = None

    def _record(self) -> dict[str, Any]:
        return {**vars(self), "length": len(self.values), "values": _pack(self.values.ravel())}


class Overlay(NamedTuple):
    """Log-probabilities (natural) of the bases of both alleles of a variant, side by side.

    `ref` and `alt` are float (bases,) for `before`, the bases of the allele that differ, and
    `after`; `start` (0-based) is where `before` begins, `row` the row of the table.
    """

    row: int
    start: int
    before: str
    alleles: tuple[str, str]
    after: str
    ref: Floats
    alt: Floats


class _Column(NamedTuple):
    """A column of the table; ``place`` is a position, already 1-based.

    `minor` columns are left out on narrow screens.
    """

    name: str
    kind: Literal["text", "place", "number"] = "text"
    digits: int = 3
    minor: bool = False


class _TableRow(NamedTuple):
    """A row of the table and the region it is about, 0-based half-open."""

    contig: str
    start: int
    end: int
    cells: Sequence[str | int | float | None]


def _pack(values: Floats) -> dict[str, Any]:
    """Pack numbers into 16 bits each, as base64; what is not finite becomes "no value"."""
    known = np.isfinite(values)
    low, high = (float(f(values[known])) if known.any() else 0.0 for f in (np.min, np.max))
    steps = np.full(values.shape, _NOTHING, dtype="<u2")
    width = (high - low) or 1.0
    steps[known] = np.rint((values[known].astype(np.float64) - low) / width * _STEPS)
    return {"low": low, "high": high, "data": base64.b64encode(steps.tobytes()).decode()}


@dataclass
class GenomePage:
    """Everything a page shows; with `columns` a table of variants, `rows`.

    The page carries the sequence of `regions`, on the forward strand, which must not overlap; the
    first one is in view. Tracks go from top to bottom, logos below the browser. `numbers` are
    (number, what stands next to it, what it is), `facts` name and value of what the page was made
    from.
    """

    store: Genome
    regions: Sequence[Interval]
    title: str = ""
    lead: str = ""
    tracks: list[Track] = field(default_factory=list)
    logos: list[Logo] = field(default_factory=list)
    overlays: list[Overlay] = field(default_factory=list)
    columns: Sequence[_Column] = ()
    rows: Sequence[_TableRow] = ()
    numbers: list[tuple[str, str, str]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)

    def html(self) -> str:
        """Make the page, without any reference to other files or hosts."""
        logos = [logo._record() for logo in self.logos]
        content = {
            "genome": {"name": self.store.name, "fasta": self._fasta_uri()},
            "contigs": len({region.contig for region in self.regions}),
            "locus": str(self.regions[0]).replace(",", ""),
            "tracks": [track._record(order) for order, track in enumerate(self.tracks, start=1)],
            "logos": [logo for logo in logos if logo["row"] is None],
            "variant_logos": [logo for logo in logos if logo["row"] is not None],
            "overlays": [
                one._asdict() | {"ref": _pack(one.ref), "alt": _pack(one.alt)}
                for one in self.overlays
            ],
            "table": None,
        }
        if self.columns:
            columns, rows = ([one._asdict() for one in part] for part in (self.columns, self.rows))
            content["table"] = {"columns": columns, "rows": rows}
        text = json.dumps(without_nan(content), separators=(",", ":"))
        # Inside a script element "<" could end it or begin a comment; JSON can write it otherwise.
        data = text.replace("<", "\\u003c")
        return document(
            f"{self.title} - megabase",
            [
                f'<header><p class="kicker">megabase genome page</p><h1>{escape(self.title)}</h1>'
                f'<p class="lead">{escape(self.lead)}</p></header>',
                statistics(self.numbers) if self.numbers else "",
                '<div id="browser" class="browser" aria-label="genome browser"></div>',
                '<div id="logos" class="panel" aria-live="polite"></div>' if logos else "",
                _table(self.columns, self.rows) if self.columns else "",
                section("What this was made from", [definitions(self.facts)]) if self.facts else "",
                f"<footer>Made by megabase {escape(__version__)} with igv.js (MIT license). "
                "This page asks no other host.</footer>",
                f'<script type="application/json" id="page-data">{data}</script>',
            ],
            styles=["browser.css"],
            scripts=["igv.min.js", "browser.js"],
        )

    def _fasta_uri(self) -> str:  # "@len" tells igv.js that a record is a part of a contig
        text = "".join(
            f">{region.contig}:{one_based(region.start)}-{region.end} "
            f"@len={self.store.contig(region.contig).length}\n{decode(self.store.fetch(region))}\n"
            for region in sorted(self.regions)
        )
        packed = gzip.compress(text.encode(), mtime=0)
        return "data:application/gzip;base64," + base64.b64encode(packed).decode()


def _table(columns: Sequence[_Column], rows: Sequence[_TableRow]) -> str:
    heads = "".join(
        f'<th scope="col" class="{"text " * (column.kind == "text")}{"minor" * column.minor}">'
        f'<button type="button">{escape(column.name)}</button></th>'
        for column in columns
    )
    numbers = [(n, one) for n, one in enumerate(columns) if one.kind == "number"]
    numbers.sort(key=lambda pair: pair[1].minor)  # scores first
    names, controls = [column.name for column in columns], ""
    if "consequence" in names:
        found = {row.cells[names.index("consequence")] for row in rows}
        choices = _options([(term, term) for term in SEVERITY if term in found])
        controls += (
            '<select id="consequence" aria-label="consequence to show"><option value="">'
            f"any consequence</option>{choices}</select>"
        )
    if "gene" in names:
        controls += '<input id="gene" type="search" placeholder="gene" aria-label="gene to show">'
    if numbers:
        bounds = "".join(
            f'{word} <input id="{name}" type="number" step="any" aria-label="{what} score">'
            for word, name, what in (("from", "least", "least"), ("to", "most", "greatest"))
        )
        controls += (
            '<label><select id="score-column" aria-label="score to filter by">'
            f"{_options([(n, one.name) for n, one in numbers])}</select> {bounds}</label>"
        )
    return section(
        "Alleles",
        [
            '<div class="controls"><input id="search" type="search" '
            'placeholder="filter by any word" aria-label="filter the alleles">'
            f'{controls}<button type="button" id="export">Save as CSV</button>'
            '<span id="count" class="count" aria-live="polite"></span></div>',
            f'<div id="rows" class="rows"><table><thead><tr>{heads}</tr></thead>'
            "<tbody></tbody></table></div>",
            '<p class="note">A click on a heading sorts, a click on a row (or Enter) goes there. '
            "The CSV has the rows shown, in their order.</p>",
        ],
    )


def _options(pairs: Sequence[tuple[object, str]]) -> str:
    return "".join(f'<option value="{value}">{escape(name)}</option>' for value, name in pairs)


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
        _Feature(*_place(row), row["label"], row["strand"], union(found.get(key, ())))
        for key, row in genes.items()
    ]
    features.sort(key=lambda f: f[:3])
    return Track(name, tuple(features), color="#3b5b7a", height=60)


def _bed_track(
    path: str, name: str, store: Genome, places: Sequence[Interval], *, strict: bool = False
) -> Track:
    frame = read_bed(path, store, strict=strict)
    features = tuple(
        _Feature(*_place(row), row.get("name") or "", row.get("strand") or ".")
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
) -> tuple[Track, list[_Column], list[_TableRow]]:
    """Make the track of variants, and their table with the genes they lie in."""
    # Of what every VCF file may hold, the table has what this one does.
    optional = ("qual", "filter", *_TEXTS.values())
    given = {name for name in optional if variants[name].is_not_null().any()}
    scores = variants.columns[len(_VARIANT_COLUMNS) :]
    columns = {
        "contig": _Column("contig"), "first base": _Column("position", "place"),
        "ref": _Column("ref"), "alt": _Column("alt"), "id": _Column("id", minor=True),
        "consequence": _Column("consequence"), "gene": _Column("gene"),
        "genes here": _Column("gene", minor=True),
        "qual": _Column("qual", "number", 1, minor=True), "filter": _Column("filter", minor=True),
        **{key: _Column(key, "number", 1 if key.endswith("_PERCENTILE") else 3) for key in scores},
        "reason": _Column("no score because"),
    }  # fmt: skip
    if genes is None or "gene" in given:
        del columns["genes here"]
    for name in {*optional} - given:
        del columns[name]
    rows: list[_TableRow] = []
    features: list[_Feature] = []
    for row in variants.iter_rows(named=True):
        locus = contig, start, end = row["contig"], row["start"], row["end"]
        row |= {name: row[name] or "" for name in ("alt", "id", *_TEXTS.values())}
        row["first base"], row["genes here"] = one_based(start), genes and _genes_at(genes, *locus)
        rows.append(_TableRow(*locus, [row[name] for name in columns]))
        features.append(_Feature(contig, start, end, f"{row['ref']}>{row['alt'] or '.'}"))
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
