"""Rows of a text table: splitting, numbers, and checks that name the line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from megabase.genome.alphabet import BASE_BITS, N, decode, encode
from megabase.genome.errors import TableError, UnknownContigError
from megabase.genome.interval import Strand, one_based
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
        """Raise a TableError about the first row where ``wrong`` holds."""
        row = frame.filter(wrong).head(1)
        if row.height:
            found = row.row(0, named=True)
            raise TableError(f"{self.path}, {self.unit} {found['line']:,}: {describe(found)}")

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
        first = 1 if one_based_closed else 0
        self.refuse(
            frame,
            pl.col("start") < first,
            lambda row: f"start must be {first} or more, found {row['start']}",
        )
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

    def check_against(self, frame: pl.DataFrame, store: GenomeStore) -> pl.DataFrame:
        """Give contigs the names of the store, and refuse rows that are not on it."""
        first_lines = frame.group_by("contig", maintain_order=True).agg(pl.col("line").first())
        names: dict[str, str] = {}
        lengths: dict[str, int] = {}
        for name, line in first_lines.iter_rows():
            try:
                contig = store.contig(name)
            except UnknownContigError as error:
                raise UnknownContigError(f"{self.path}, {self.unit} {line:,}: {error}") from None
            names[name] = contig.name
            lengths[contig.name] = contig.length
        if not names:
            return frame
        frame = frame.with_columns(pl.col("contig").replace_strict(names, return_dtype=pl.String))
        limit = pl.col("contig").replace_strict(lengths, return_dtype=pl.Int64)
        self.refuse(
            frame,
            pl.col("end") > limit,
            lambda row: (
                f"the row ends at {row['end']:,}, past the end of contig {row['contig']!r}, which "
                f"has {lengths[row['contig']]:,} bases in genome {store.name!r}; is it made for "
                "this genome build?"
            ),
        )
        return frame

    def check_reference(self, frame: pl.DataFrame, store: GenomeStore) -> None:
        """Refuse rows whose column ``ref`` is not what the genome has from ``start`` on.

        Where either has N (or another ambiguity letter), nothing is compared.
        """
        index = {name: store.contig_index(name) for name in frame["contig"].unique()}
        mismatches: list[pl.DataFrame] = []
        rows = frame.with_columns(span=pl.col("end") - pl.col("start"))
        for (span,), group in rows.group_by("span", maintain_order=True):
            contigs = np.array([index[name] for name in group["contig"]], dtype=np.int64)
            starts = group["start"].to_numpy()
            genome = store.fetch_many(contigs, starts, int(str(span))) & np.uint8(BASE_BITS)
            given = encode("".join(group["ref"])).reshape(genome.shape)
            differ = ((genome != given) & (genome != N) & (given != N)).any(axis=1)
            mismatches.append(group.filter(pl.Series(differ)))
        wrong = pl.concat(mismatches).sort("line") if mismatches else rows
        if wrong.height:
            row = wrong.row(0, named=True)
            there = store.fetch_many([index[row["contig"]]], [row["start"]], row["span"])[0]
            raise TableError(
                f"{self.path}, {self.unit} {row['line']:,}: REF is {row['ref'][:20]!r}, and genome "
                f"{store.name!r} has {decode(there[:20])!r} at {row['contig']}:"
                f"{one_based(row['start']):,}; {wrong.height:,} of {frame.height:,} records "
                "differ: is the file made for this genome build?"
            )
