"""Genes of a GFF or GTF file, and stretches of a BED file, as tracks of the genome page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megabase.genome.interval import Interval
from megabase.genome.store import GenomeStore
from megabase.genome.tables import read_bed, read_gff
from megabase.report.genome_parts import Feature, FeatureTrack

__all__ = ["bed_track", "genes_at", "genes_track"]

_GENES = ("gene", "pseudogene", "ncRNA_gene")
_PARTS = ("exon", "CDS")
_TRANSCRIPTS = (
    "mRNA", "transcript", "ncRNA", "rRNA", "tRNA", "snoRNA", "snRNA", "lnc_RNA",
    "primary_transcript",
)  # fmt: skip


def genes_track(
    path: str | Path, store: GenomeStore, places: Iterable[Interval], name: str = "genes"
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

    Raises
    ------
    TableError, UnknownContigError
        Naming file and line of the first row that cannot be used.
    """
    keys = ("ID", "Parent", "Name", "gene_id", "gene_name", "gene")
    frame = read_gff(path, store, attributes=keys, types=(*_GENES, *_TRANSCRIPTS, *_PARTS))
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
    path: str | Path, store: GenomeStore, places: Iterable[Interval], name: str
) -> FeatureTrack:
    """Read the rows of a BED file that share a base with one of the places."""
    wanted = _by_contig(places)
    frame = read_bed(path, store)
    features = [
        Feature(
            row["contig"], row["start"], row["end"], row.get("name") or "", row.get("strand") or "."
        )
        for row in frame.iter_rows(named=True)
        if _touches(wanted, row["contig"], row["start"], row["end"])
    ]
    return FeatureTrack(name, tuple(features), color="#2f7d4f", height=50)


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
