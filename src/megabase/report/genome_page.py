"""A page about a place in a genome or a set of variants: genome browser, logos, table; one file.

The browser is igv.js, inside the page with everything it shows, so the page works without a
network and asks no host (its content security policy would not let it).
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib import resources

from megabase import __version__
from megabase.errors import ReportError
from megabase.report.genome_parts import (
    FeatureTrack,
    Logo,
    SignalTrack,
    Stretch,
    VariantTable,
)
from megabase.report.page import definitions, document, json_island, section, statistics

__all__ = ["MOST_BASES", "GenomePage", "build_genome_page"]

MOST_BASES = 2_000_000
"""Bases a page carries at most; beyond that browsers become slow."""


@dataclass(frozen=True)
class GenomePage:
    """Everything a page shows.

    Parameters
    ----------
    title, lead
        Heading, and a sentence below it.
    genome
        Name of the genome.
    stretches
        Sequence to carry; none may overlap another.
    locus
        What is shown first, such as ``chr1:1,001-2,000``.
    tracks
        From top to bottom.
    logos
        Drawn below the browser for what it shows.
    table
        Variants; None for none.
    numbers
        The row of large numbers: (number, what stands beside it, what it is).
    facts
        Name and value of what the page was made from.
    """

    title: str
    lead: str
    genome: str
    stretches: Sequence[Stretch]
    locus: str
    tracks: Sequence[SignalTrack | FeatureTrack] = ()
    logos: Sequence[Logo] = ()
    table: VariantTable | None = None
    numbers: Sequence[tuple[str, str, str]] = ()
    facts: Sequence[tuple[str, str]] = field(default=())


def build_genome_page(page: GenomePage) -> str:
    """Make the page.

    Returns
    -------
    str
        HTML without any reference to other files or hosts.

    Raises
    ------
    ReportError
        When there is no sequence, or more than :data:`MOST_BASES`.
    """
    total = sum(len(stretch.letters) for stretch in page.stretches)
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
        "genome": {"name": page.genome, "fasta": _fasta_uri(page.stretches)},
        "contigs": len({stretch.contig for stretch in page.stretches}),
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
            f"<footer>Made by megabase {escape(__version__)} with igv.js (MIT licence). "
            "This page asks no other host.</footer>",
            json_island("page-data", content),
        ],
        styles=_asset("browser.css"),
        scripts=[_asset("igv.min.js"), _asset("browser.js")],
    )


def _fasta_uri(stretches: Sequence[Stretch]) -> str:
    """Give the sequence as a data URI; "@len" tells igv.js that a record is a part of a contig."""
    records: list[str] = []
    reached: dict[str, int] = {}
    for stretch in sorted(stretches, key=lambda s: (s.contig, s.start)):
        if stretch.start < reached.get(stretch.contig, 0):
            raise ReportError(f"stretches of {stretch.contig} overlap at {stretch.start + 1:,}")
        reached[stretch.contig] = stretch.end
        records.append(
            f">{stretch.contig}:{stretch.start + 1}-{stretch.end} @len={stretch.contig_length}\n"
            f"{stretch.letters}\n"
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
