"""A page about a region of a genome or a set of variants: genome browser, logos, table; one file.

The browser is igv.js, inside the page with everything it shows, so the page works without a
network and asks no host (its content security policy would not let it). Coordinates are 0-based
and half-open; the page shows them 1-based.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from html import escape
from importlib import resources
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megabase import __version__
from megabase.errors import ReportError
from megabase.report.page import definitions, document, json_island, section, statistics

MOST_BASES = 2_000_000
"""Bases a page carries at most; beyond that browsers become slow."""

Floats = npt.NDArray[np.floating[Any]]
Cell = str | int | float | None

_STEPS = 65_534
"""Largest step of a number packed into 16 bits; one more stands for no value."""
_NOTHING = 65_535
"""Packed for what is not finite: the one number of 16 bits that _STEPS leaves over."""


@dataclass(frozen=True)
class Region:
    """Sequence that the page carries: letters of a contig from the 0-based position `start` on."""

    contig: str
    start: int
    letters: str
    contig_length: int

    @property
    def end(self) -> int:
        """0-based index after the last base."""
        return self.start + len(self.letters)


@dataclass(frozen=True)
class Segment:
    """Numbers side by side: where the first stands (0-based), and float (n,), NaN for none."""

    contig: str
    start: int
    values: Floats


@dataclass(frozen=True)
class SignalTrack:
    """Numbers along a genome, one for `step` bases; segments must not overlap.

    `color` is for values above zero, `below` (empty: the same) for those below it; `height` is in
    CSS pixels.
    """

    name: str
    segments: tuple[Segment, ...]
    step: int = 1
    color: str = "#1a56c4"
    below: str = ""
    height: int = 64

    def record(self, order: int) -> dict[str, Any]:
        """Give the track as the page reads it."""
        return {
            "kind": "signal", "name": self.name, "step": self.step, "color": self.color,
            "below": self.below, "height": self.height, "order": order,
            "segments": [
                {"contig": s.contig, "start": s.start, "values": _pack(s.values)}
                for s in self.segments
            ],
        }  # fmt: skip


@dataclass(frozen=True)
class Feature:
    """A feature of a contig: 0-based half-open; ``exons`` are (start, end) pairs inside it."""

    contig: str
    start: int
    end: int
    name: str = ""
    strand: str = "."
    exons: tuple[tuple[int, int], ...] = ()
    color: str = ""


@dataclass(frozen=True)
class FeatureTrack:
    """Features in one track: genes, called regions, variants."""

    name: str
    features: tuple[Feature, ...]
    color: str = "#3b5b7a"
    height: int = 70

    def record(self, order: int) -> dict[str, Any]:
        """Give the track as the page reads it."""
        rows = [
            [f.contig, f.start, f.end, f.name, f.strand, [list(e) for e in f.exons], f.color]
            for f in self.features
        ]
        return {
            "kind": "features", "name": self.name, "features": rows, "color": self.color,
            "height": self.height, "order": order,
        }  # fmt: skip


@dataclass(frozen=True)
class Logo:
    """Four numbers for each position, drawn as letters: `values` is float (n, 4) for A, C, G, T.

    ``probability``: rows that sum to 1, drawn as high as their information in bits. ``effects``:
    the effect of each substitution, NaN at the base that stands there, drawn as the mean loss with
    a heat map below. ``signed``: letters as high as the numbers. `start` is 0-based; `row` is that
    of the table that the logo belongs to, None for all.
    """

    name: str
    note: str
    contig: str
    start: int
    values: Floats
    kind: Literal["probability", "effects", "signed"]
    row: int | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != 4:
            raise ReportError(
                f"a logo needs values of shape (positions, 4), found {self.values.shape}"
            )

    def record(self) -> dict[str, Any]:
        """Give the logo as the page reads it."""
        record: dict[str, Any] = {
            "name": self.name, "note": self.note, "contig": self.contig, "start": self.start,
            "kind": self.kind, "length": len(self.values), "values": _pack(self.values.ravel()),
        }  # fmt: skip
        return record if self.row is None else {**record, "row": self.row}


@dataclass(frozen=True)
class Column:
    """A column of the table; ``place`` is a position, already 1-based.

    `minor` columns are left out on narrow screens. With `ascending` the first click sorts the
    smallest to the top (numbers begin with the largest otherwise).
    """

    name: str
    kind: Literal["text", "place", "number"] = "text"
    digits: int = 3
    minor: bool = False
    ascending: bool = False


@dataclass(frozen=True)
class TableRow:
    """A row of the table and the region it is about, 0-based half-open."""

    contig: str
    start: int
    end: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class VariantTable:
    """The table of variants."""

    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]

    def record(self) -> dict[str, Any]:
        """Give the table as the page reads it; numbers that are not finite become empty."""
        return {
            "columns": [asdict(column) for column in self.columns],
            "rows": [
                {"contig": row.contig, "start": row.start, "end": row.end,
                 "cells": [_finite(cell) for cell in row.cells]}
                for row in self.rows
            ],
        }  # fmt: skip


def _finite(cell: Cell) -> Cell:
    return None if isinstance(cell, float) and not np.isfinite(cell) else cell


def _pack(values: Floats) -> dict[str, Any]:
    """Pack numbers into 16 bits each, as base64; what is not finite becomes "no value"."""
    known = np.isfinite(values)
    low, high = (float(f(values[known])) if known.any() else 0.0 for f in (np.min, np.max))
    steps = np.full(values.shape, _NOTHING, dtype="<u2")
    width = (high - low) or 1.0
    steps[known] = np.rint((values[known].astype(np.float64) - low) / width * _STEPS)
    return {"low": low, "high": high, "data": base64.b64encode(steps.tobytes()).decode()}


@dataclass(frozen=True)
class GenomePage:
    """Everything a page shows.

    `regions` (the sequence to carry) must not overlap. `locus`, such as ``chr1:1,001-2,000``, is
    shown first. Tracks go from top to bottom, logos below the browser. `numbers` are (number, what
    stands next to it, what it is), `facts` name and value of what the page was made from.
    """

    title: str
    lead: str
    genome: str
    regions: Sequence[Region]
    locus: str
    tracks: Sequence[SignalTrack | FeatureTrack] = ()
    logos: Sequence[Logo] = ()
    table: VariantTable | None = None
    numbers: Sequence[tuple[str, str, str]] = ()
    facts: Sequence[tuple[str, str]] = field(default=())


def build_genome_page(page: GenomePage) -> str:
    """Make the page: HTML without any reference to other files or hosts.

    A :class:`ReportError` when there is no sequence, or more than :data:`MOST_BASES`.
    """
    total = sum(len(region.letters) for region in page.regions)
    if not total:
        raise ReportError("a page needs some sequence to show")
    if total > MOST_BASES:
        raise ReportError(
            f"the page would carry {total:,} bases, more than {MOST_BASES:,}; "
            "take a smaller region, fewer variants or fewer bases around each"
        )
    logos = [logo.record() for logo in page.logos]
    tracks = [track.record(order + 1) for order, track in enumerate(page.tracks)]
    content = {
        "genome": {"name": page.genome, "fasta": _fasta_uri(page.regions)},
        "contigs": len({region.contig for region in page.regions}),
        "locus": page.locus.replace(",", ""),
        "tracks": tracks,
        "logos": [logo for logo in logos if "row" not in logo],
        "variant_logos": [logo for logo in logos if "row" in logo],
        "table": None if page.table is None else page.table.record(),
    }
    return document(
        f"{page.title} - megabase",
        [
            f'<header><p class="kicker">megabase genome page</p><h1>{escape(page.title)}</h1>'
            f'<p class="lead">{escape(page.lead)}</p></header>',
            statistics(page.numbers) if page.numbers else "",
            '<div id="browser" class="browser" aria-label="genome browser"></div>',
            '<div id="logos" class="panel" aria-live="polite"></div>' if logos else "",
            _table(page.table),
            section("What this was made from", [definitions(page.facts)]) if page.facts else "",
            f"<footer>Made by megabase {escape(__version__)} with igv.js (MIT license). "
            "This page asks no other host.</footer>",
            json_island("page-data", content),
        ],
        styles=_asset("browser.css"),
        scripts=[_asset("igv.min.js"), _asset("browser.js")],
    )


def _fasta_uri(regions: Sequence[Region]) -> str:
    """Give the sequence as a data URI; "@len" tells igv.js that a record is a part of a contig."""
    records: list[str] = []
    reached: dict[str, int] = {}
    for region in sorted(regions, key=lambda s: (s.contig, s.start)):
        if region.start < reached.get(region.contig, 0):
            raise ReportError(f"regions of {region.contig} overlap at {region.start + 1:,}")
        reached[region.contig] = region.end
        records.append(
            f">{region.contig}:{region.start + 1}-{region.end} @len={region.contig_length}\n"
            f"{region.letters}\n"
        )
    packed = gzip.compress("".join(records).encode(), mtime=0)
    return "data:application/gzip;base64," + base64.b64encode(packed).decode()


def _table(table: VariantTable | None) -> str:
    if table is None:
        return ""
    heads = "".join(
        f'<th scope="col" class="{_classes(column.kind, column.minor)}">'
        f'<button type="button">{escape(column.name)}</button></th>'
        for column in table.columns
    )
    columns = sorted(enumerate(table.columns), key=lambda pair: pair[1].minor)  # scores first
    numbers = [
        f'<option value="{number}">{escape(column.name)}</option>'
        for number, column in columns
        if column.kind == "number"
    ]
    limit = (
        '<label>size of <select id="score-column" aria-label="score to filter by">'
        f'{"".join(numbers)}</select> at least <input id="least" type="number" step="any" min="0"'
        ' aria-label="smallest size of the score"></label>'
        if numbers
        else ""
    )
    return section(
        "Alleles",
        [
            '<div class="controls"><input id="search" type="search" '
            'placeholder="filter by any word" aria-label="filter the alleles">'
            f'{limit}<button type="button" id="export">Save as CSV</button>'
            '<span id="count" class="count" aria-live="polite"></span></div>',
            f'<div id="rows" class="rows"><table><thead><tr>{heads}</tr></thead>'
            "<tbody></tbody></table></div>",
            '<p class="note">A click on a heading sorts, a click on a row (or Enter) goes there. '
            "Filters by size look at the absolute value. The CSV has the rows shown, in their "
            "order.</p>",
        ],
    )


def _classes(kind: str, minor: bool) -> str:
    return " ".join(filter(None, ["text" if kind == "text" else "", "minor" if minor else ""]))


@cache
def _asset(name: str) -> str:
    return resources.files("megabase.report").joinpath("assets", name).read_text(encoding="utf-8")
