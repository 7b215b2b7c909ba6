"""What a page about a place in a genome shows: stretches of sequence, tracks, logos, a table.

Coordinates are 0-based and half-open; the page shows them 1-based.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megabase.errors import ReportError

__all__ = [
    "Column",
    "Feature",
    "FeatureTrack",
    "Logo",
    "Segment",
    "SignalTrack",
    "Stretch",
    "TableRow",
    "VariantTable",
    "pack",
]

Floats = npt.NDArray[np.floating[Any]]
Cell = str | int | float | None
_STEPS = 65_534
_NOTHING = 65_535


@dataclass(frozen=True)
class Stretch:
    """Some sequence that the page carries.

    Parameters
    ----------
    contig
        Name of the contig.
    start
        0-based index of the first base.
    letters
        The bases, as letters.
    contig_length
        Length of the whole contig.
    """

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
    """Numbers along a genome.

    Parameters
    ----------
    name
        Shown beside the track.
    segments
        The numbers, without overlap.
    step
        Bases that one number is for.
    color, below
        CSS colours, for values above and below zero; the same when `below` is empty.
    height
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
                {"contig": s.contig, "start": s.start, "values": pack(s.values)}
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
    """Features in one track: genes, called stretches, variants."""

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
    """Four numbers for each position, drawn as letters.

    Parameters
    ----------
    name, note
        Heading, and a sentence that says what the letters mean.
    contig, start
        Where the first row stands, 0-based.
    values
        float (n, 4): A, C, G, T.
    kind
        ``probability``: rows that sum to 1, drawn as high as their information in bits.
        ``effects``: the effect of each substitution, NaN at the base that stands there; drawn as
        the mean loss, with a heat map below. ``signed``: letters as high as the numbers.
    row
        Number of the row of the table that the logo belongs to; None for all.
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
            "kind": self.kind, "length": len(self.values), "values": pack(self.values.ravel()),
        }  # fmt: skip
        return record if self.row is None else {**record, "row": self.row}


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Parameters
    ----------
    name
        Heading.
    kind
        ``text``, ``place`` (a position, already 1-based) or ``number``.
    digits
        Decimals of numbers.
    minor
        Leave it out on narrow screens.
    ascending
        The first click sorts the smallest to the top (numbers begin with the largest otherwise).
    """

    name: str
    kind: Literal["text", "place", "number"] = "text"
    digits: int = 3
    minor: bool = False
    ascending: bool = False

    def record(self) -> dict[str, Any]:
        """Give the column as the page reads it."""
        return {
            "name": self.name, "kind": self.kind, "digits": self.digits, "minor": self.minor,
            "ascending": self.ascending,
        }  # fmt: skip


@dataclass(frozen=True)
class TableRow:
    """A row of the table and the place it is about, 0-based half-open."""

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
            "columns": [column.record() for column in self.columns],
            "rows": [
                {"contig": row.contig, "start": row.start, "end": row.end,
                 "cells": [_finite(cell) for cell in row.cells]}
                for row in self.rows
            ],
        }  # fmt: skip


def _finite(cell: Cell) -> Cell:
    return None if isinstance(cell, float) and not np.isfinite(cell) else cell


def pack(values: Floats) -> dict[str, Any]:
    """Pack numbers into 16 bits each, as base64.

    The error is at most half of (largest - smallest) / 65,534: far less than a pixel of a picture.

    Parameters
    ----------
    values
        float (n,); what is not finite becomes "no value".
    """
    known = np.isfinite(values)
    low, high = (float(f(values[known])) if known.any() else 0.0 for f in (np.min, np.max))
    steps = np.full(values.shape, _NOTHING, dtype="<u2")
    width = (high - low) or 1.0
    steps[known] = np.rint((values[known].astype(np.float64) - low) / width * _STEPS)
    return {
        "low": low,
        "high": high,
        "data": base64.b64encode(steps.tobytes()).decode(),
    }
