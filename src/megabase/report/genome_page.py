"""A page about a region of a genome or a set of variants: genome browser, logos, table; one file.

The browser is igv.js, inside the page with everything it shows, so the page works without a
network and asks no host (its content security policy would not let it). Coordinates are 0-based
and half-open; the page shows them 1-based.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from megabase import __version__
from megabase.genome.alphabet import decode
from megabase.genome.consequences import SEVERITY
from megabase.genome.files import without_nan
from megabase.genome.interval import Interval, one_based
from megabase.genome.store import Genome
from megabase.report.page import definitions, document, section, statistics

Floats = npt.NDArray[np.floating[Any]]

_STEPS = 65_534  # largest step of a number packed into 16 bits; one more stands for no value
_NOTHING = 65_535
"""Packed for what is not finite: the one number of 16 bits that _STEPS leaves over."""


class Segment(NamedTuple):
    """Numbers side by side: where the first stands (0-based), and float (n,), NaN for none."""

    contig: str
    start: int
    values: Floats


class Feature(NamedTuple):
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
    features: tuple[Feature, ...] = ()
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


class Column(NamedTuple):
    """A column of the table; ``place`` is a position, already 1-based.

    `minor` columns are left out on narrow screens.
    """

    name: str
    kind: Literal["text", "place", "number"] = "text"
    digits: int = 3
    minor: bool = False


class TableRow(NamedTuple):
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
    columns: Sequence[Column] = ()
    rows: Sequence[TableRow] = ()
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


def _table(columns: Sequence[Column], rows: Sequence[TableRow]) -> str:
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
