"""Files as tracks of the genome page: genes (GFF, GTF), intervals (BED), numbers (bedGraph)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from megabase.errors import InputError, ReportError, UnknownContigError
from megabase.genome.files import numbered_lines
from megabase.genome.interval import Interval
from megabase.genome.store import GenomeStore
from megabase.genome.tables import read_bed, read_gff
from megabase.report.genome_page import Feature, FeatureTrack, Segment, SignalTrack

TRACK_ENDINGS = {
    ".bw": "bigwig", ".bigwig": "bigwig",
    ".bedgraph": "bedgraph", ".bdg": "bedgraph", ".bg": "bedgraph",
    ".bed": "bed", ".narrowpeak": "bed", ".broadpeak": "bed",
    ".gff": "genes", ".gff3": "genes", ".gtf": "genes",
}  # fmt: skip
"""What a file of a track is, by the ending of its name (in lower case, before .gz)."""

_GENES = ("gene", "pseudogene", "ncRNA_gene")
_PARTS = ("exon", "CDS")
_TRANSCRIPTS = (
    "mRNA", "transcript", "ncRNA", "rRNA", "tRNA", "snoRNA", "snRNA", "lnc_RNA",
    "primary_transcript",
)  # fmt: skip


def track_kind(path: str | Path, kinds: Sequence[str] = ()) -> str:
    """Give what a file of a track is, by its ending: one of `kinds`, or any.

    Raises
    ------
    ReportError
        For another ending, with those that are read.
    """
    name = Path(path).name.lower()
    plain = name.removesuffix(".gz").removesuffix(".bgz")
    kind = TRACK_ENDINGS.get(Path(plain).suffix)
    if kind == "bigwig" and plain != name:
        raise ReportError(f"{path}: bigWig is compressed already; decompress the file")
    if kind is None or (kinds and kind not in kinds):
        known = [end for end, what in TRACK_ENDINGS.items() if not kinds or what in kinds]
        raise ReportError(
            f"{path}: the ending does not name a format read here; expected a name ending in "
            f"{', '.join(known)} (text files may end in .gz too)"
        )
    return kind


def genes_track(
    path: str | Path,
    store: GenomeStore,
    places: Iterable[Interval],
    name: str = "genes",
    *,
    strict: bool = False,
) -> FeatureTrack:
    """Read the genes near places, each with the union of its exons (or coding parts).

    Parameters
    ----------
    path
        GFF3 or GTF, plain or gzip.
    store
        The genome, for the names of contigs.
    places
        Genes that share a base with one of these are kept.
    name
        Name of the track.
    strict
        Refuse rows that are not on the genome, which are left out otherwise.

    Raises
    ------
    InputError, UnknownContigError
        As :func:`megabase.genome.tables.read_gff`.
    """
    keys = ("ID", "Parent", "Name", "gene_id", "gene_name", "gene")
    kinds = (*_GENES, *_TRANSCRIPTS, *_PARTS)
    frame = read_gff(path, store, attributes=keys, types=kinds, strict=strict)
    wanted = _by_contig(places)
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
        Feature(
            row["contig"], row["start"], row["end"], row["label"], row["strand"],
            _union(found.get(key, ())),
        )
        for key, row in genes.items()
        if _touches(wanted, row["contig"], row["start"], row["end"])
    ]  # fmt: skip
    features.sort(key=lambda f: (f.contig, f.start, f.end))
    return FeatureTrack(name, tuple(features), height=60)


def bed_track(
    path: str | Path,
    store: GenomeStore,
    places: Iterable[Interval],
    name: str,
    *,
    strict: bool = False,
) -> FeatureTrack:
    """Read the rows of a BED file that share a base with one of the places."""
    wanted = _by_contig(places)
    frame = read_bed(path, store, strict=strict)
    features = [
        Feature(
            row["contig"], row["start"], row["end"], row.get("name") or "", row.get("strand") or "."
        )
        for row in frame.iter_rows(named=True)
        if _touches(wanted, row["contig"], row["start"], row["end"])
    ]
    return FeatureTrack(name, tuple(features), color="#2f7d4f", height=50)


def bedgraph_track(
    path: str | Path, store: GenomeStore, places: Sequence[Interval], name: str
) -> SignalTrack:
    """Read the numbers of a bedGraph file along places; bases without a row have none.

    Raises
    ------
    InputError
        Naming file and line of the first row that cannot be used: not four columns, a value that
        is not a finite number, or a base of the places that has a number already.
    """

    @cache
    def known(contig: str) -> str | None:
        try:
            return store.contig(contig).name
        except UnknownContigError:  # another chromosome of the same species
            return None

    segments = tuple(
        Segment(place.contig, place.start, np.full(place.length, np.nan, dtype=np.float32))
        for place in places
    )
    found = False
    for number, line in numbered_lines(Path(path)):
        cells = line.split()
        if not cells or cells[0].startswith("#") or cells[0] in ("track", "browser"):
            continue
        where = f"{path}, line {number:,}"
        if len(cells) != 4:
            raise InputError(
                f"{where}: a bedGraph row has four columns (contig, start, end, value), found "
                f"{len(cells)}: {line[:60]!r}"
            )
        try:
            start, end = int(cells[1]), int(cells[2])
        except ValueError:
            raise InputError(f"{where}: start and end are whole numbers: {line[:60]!r}") from None
        try:
            value = float(cells[3])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(
                f"{where}: the value must be a finite number, found {cells[3]!r}; leave bases "
                "without a value out"
            )
        if not 0 <= start < end:
            raise InputError(f"{where}: expected 0 <= start < end, found {start:,} and {end:,}")
        contig = known(cells[0])
        for segment in segments:
            if segment.contig != contig:
                continue
            found = True
            low, high = max(0, start - segment.start), end - segment.start
            if low < min(high, len(segment.values)):
                if not np.isnan(segment.values[low:high]).all():
                    raise InputError(f"{where}: a base of this row has a value already")
                segment.values[low:high] = value
    if not found:
        shown = ", ".join(dict.fromkeys(place.contig for place in places))
        raise InputError(f"{path}: has no row on the contigs shown ({shown})")
    return SignalTrack(name, segments, color="#2f7d4f", below="#b4530a")


def genes_at(track: FeatureTrack, contig: str, start: int, end: int) -> str:
    """Name the genes of a track that share a base with a place, with commas between."""
    names = [
        feature.name
        for feature in track.features
        if feature.contig == contig and feature.start < end and start < feature.end
    ]
    return ", ".join(dict.fromkeys(filter(None, names)))


def _by_contig(places: Iterable[Interval]) -> dict[str, list[tuple[int, int]]]:
    wanted: dict[str, list[tuple[int, int]]] = {}
    for place in places:
        wanted.setdefault(place.contig, []).append((place.start, place.end))
    return wanted


def _touches(wanted: dict[str, list[tuple[int, int]]], contig: str, start: int, end: int) -> bool:
    return any(low < end and start < high for low, high in wanted.get(contig, ()))


def _union(parts: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[list[int]] = []
    for start, end in sorted(parts):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return tuple((start, end) for start, end in joined)
