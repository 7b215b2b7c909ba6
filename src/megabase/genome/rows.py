"""Rows of a text table: splitting, numbers, and checks that name the line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from megabase.errors import InputError, UnknownContigError
from megabase.genome.interval import Strand
from megabase.genome.left_out import LeftOut
from megabase.genome.store import GenomeStore

__all__ = ["RowSource"]

_INTEGERS = ("start", "end", "thick_start", "thick_end", "block_count", "phase", "summit")
_FLOATS = ("score", "signal_value", "p_value", "q_value", "qual")
NULL = "."
"""How BED, GFF and VCF write that there is no value."""


@dataclass(frozen=True, slots=True)
class RowSource:
    """Where the rows of a frame come from, for messages.

    A frame on its way through these checks has an Int64 column ``line``: the number of each row's
    line in the file.

    Parameters
    ----------
    path
        The file.
    unit
        What ``line`` counts: lines, or the records of a binary file.
    """

    path: Path
    unit: str = "line"

    def refuse(
        self, frame: pl.DataFrame, wrong: pl.Expr, describe: Callable[[dict[str, Any]], str]
    ) -> None:
        """Raise a InputError about the first row where ``wrong`` holds."""
        row = frame.filter(wrong).head(1)
        if row.height:
            found = row.row(0, named=True)
            raise InputError(f"{self.path}, {self.unit} {found['line']:,}: {describe(found)}")

    def split(self, numbers: list[int], texts: list[str], names: Sequence[str]) -> pl.DataFrame:
        """Columns of text from tab-separated lines that have exactly these columns."""
        frame = pl.DataFrame(
            {"line": numbers, "text": texts}, {"line": pl.Int64, "text": pl.String}
        )
        found = pl.col("text").str.count_matches("\t", literal=True) + 1
        self.refuse(
            frame,
            found != len(names),
            lambda row: (
                f"expected {len(names)} columns separated by tabs, found "
                f"{row['text'].count(chr(9)) + 1}: {row['text'][:60]!r}"
            ),
        )
        fields = pl.col("text").str.split_exact("\t", len(names) - 1).alias("fields")
        frame = frame.with_columns(fields).select(
            "line", *(pl.col("fields").struct[i].alias(name) for i, name in enumerate(names))
        )
        no_contig = pl.col("contig").str.strip_chars() == ""
        self.refuse(frame, no_contig, lambda _: "the first column, the contig, is empty")
        return frame

    def cast_numbers(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Cast the columns that hold numbers; a dot is no value, except for coordinates."""
        for name in frame.columns:
            if name in _INTEGERS:
                dtype, what = pl.Int64, "a whole number"
            elif name in _FLOATS:
                dtype, what = pl.Float64, "a number"
            else:
                continue
            text, value = pl.col(name), pl.col(name).cast(dtype, strict=False)
            empty = pl.lit(False) if name in ("start", "end") else text.is_in([NULL, ""])
            label = {"start": "the start position", "end": "the end position"}.get(
                name, f"column {name!r}"
            )
            self.refuse(
                frame,
                value.is_null() & ~empty,
                lambda row, name=name, label=label, what=what: (
                    f"{label} must be {what}, found {row[name]!r}"
                ),
            )
            frame = frame.with_columns(value)
        return frame

    def check_strand(self, frame: pl.DataFrame) -> None:
        """Refuse a strand other than ``+``, ``-`` and ``.``."""
        self.refuse(
            frame,
            ~pl.col("strand").is_in([str(strand) for strand in Strand]),
            lambda row: f"a strand is '+', '-' or '.', found {row['strand']!r}",
        )

    def check_order(self, frame: pl.DataFrame, one_based_closed: bool = False) -> None:
        """Refuse coordinates that hold no base, as the file counts them."""
        if one_based_closed:
            wrong = pl.col("start") > pl.col("end")
            rule = "start <= end (1-based, both included)"
        else:
            wrong = pl.col("start") >= pl.col("end")
            rule = "start < end (0-based, half-open)"
        self.refuse(
            frame,
            wrong,
            lambda row: f"expected {rule}, found start {row['start']:,} and end {row['end']:,}",
        )

    def on_genome(
        self,
        frame: pl.DataFrame,
        store: GenomeStore | None,
        left_out: LeftOut,
        circular: Collection[str] = (),
    ) -> pl.DataFrame:
        """Keep the rows that lie on the genome, under the names that the store has for contigs.

        Parameters
        ----------
        frame
            The rows.
        store
            The genome; without one, rows only have to start at 0 or later.
        left_out
            Where the others are counted.
        circular
            Contigs without ends, as the file names them: a row over the origin ends there.
        """
        if store is None:
            limit: pl.Expr = pl.lit(None, dtype=pl.Int64)
            known: dict[str, str] = {}
        else:
            known, frame = self._known(frame, store, left_out)
            lengths = {given: store.contig(name).length for given, name in known.items()}
            limit = pl.col("contig").replace_strict(lengths, default=None, return_dtype=pl.Int64)
        frame = frame.with_columns(limit=limit)
        over = (
            pl.col("contig").is_in(list(circular))
            & (pl.col("start") < pl.col("limit"))
            & (pl.col("end") > pl.col("limit"))
        ).fill_null(False)
        clipped = frame.filter(over).height
        if clipped:
            left_out.note = (
                f"{clipped:,} over the origin of a circular contig "
                f"{'end' if clipped > 1 else 'ends'} there"
            )
            end = pl.when(over).then("limit").otherwise("end").alias("end")
            frame = frame.with_columns(end)
        outside = (pl.col("start") < 0) | (pl.col("end") > pl.col("limit")).fill_null(False)
        wrong = frame.filter(outside)
        if wrong.height:
            row = wrong.row(0, named=True)
            if row["start"] < 0 or store is None:
                detail = f"the row begins before the first base of contig {row['contig']!r}"
            else:
                detail = (
                    f"the row ends at {row['end']:,}, past the end of contig "
                    f"{known[row['contig']]!r}, which has {row['limit']:,} bases in genome "
                    f"{store.name!r}; is it made for this genome build?"
                )
            left_out.add("OUTSIDE_CONTIG", row["line"], lambda: detail, count=wrong.height)
            frame = frame.filter(~outside)
        left_out.report(frame.height)
        return frame.with_columns(pl.col("contig").replace(known)).drop("limit")

    def _known(
        self, frame: pl.DataFrame, store: GenomeStore, left_out: LeftOut
    ) -> tuple[dict[str, str], pl.DataFrame]:
        """Give the store's names of contigs by those of the file, and the rows that have one."""
        names: dict[str, str] = {}
        counts = frame.group_by("contig", maintain_order=True).agg(
            pl.col("line").first(), pl.len().alias("rows")
        )
        for name, line, count in counts.iter_rows():
            try:
                names[name] = store.contig(name).name
            except UnknownContigError as error:
                left_out.add(
                    "UNKNOWN_CONTIG",
                    line,
                    partial(str, error),
                    count=count,
                    error=UnknownContigError,
                )
        return names, frame.filter(pl.col("contig").is_in(list(names)))
