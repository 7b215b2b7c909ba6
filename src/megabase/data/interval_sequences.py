"""Intervals over a genome store as labelled sequences.

Coordinates are 0-based half-open; VCF and GFF are converted by their readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from megabase.data.labelled_files import LabelledText, check_rows
from megabase.data.regions import Regions
from megabase.errors import InputError, IntervalWarning, warn
from megabase.genome import alphabet
from megabase.genome.interval import Interval, Strand
from megabase.genome.store import GenomeStore

if TYPE_CHECKING:
    import polars as pl

__all__ = ["INTERVAL_SUFFIXES", "divide_rows", "read_interval_text"]

_GFF = (".gff", ".gff3", ".gtf")
_VCF = (".vcf", ".bcf")
_BED = (".bed", ".narrowpeak", ".broadpeak")
INTERVAL_SUFFIXES = (*_BED, *_GFF, *_VCF)
"""Endings of the files that :func:`read_interval_text` reads (``.gz`` may follow)."""


def read_interval_text(
    path: str | Path,
    store: GenomeStore,
    *,
    label: str | Sequence[str] | None = None,
    length: int | None = None,
    flank: int = 0,
    center: Literal["middle", "summit"] = "middle",
    orient: bool = False,
    strict: bool = False,
) -> LabelledText:
    """Read intervals with labels, and their sequences from a genome.

    Parameters
    ----------
    path
        BED, narrowPeak, broadPeak, GFF3, GTF or VCF (one row for each alternative allele; the
        sequence is that of the genome), plain or gzip.
    store
        The genome.
    label
        Column or columns of the labels: of a BED by the names of
        :func:`megabase.genome.tables.read_bed`, None takes ``name``; of a GFF its columns or keys
        of its attributes, None takes ``type``; of a VCF ``filter``, ``id``, ``qual`` or keys of
        INFO.
    length
        Bases to read around the center; None takes the interval as it is.
    flank
        Bases to read besides on either side.
    center
        ``middle`` of the interval (of an even length, the base after it), or ``summit`` of a
        narrowPeak (the middle where it is not known).
    orient
        Whether rows of the strand ``-`` are read as their reverse complement.
    strict
        Refuse rows that are not on the genome, which are left out otherwise.

    Returns
    -------
    LabelledText
        Rows in the order of the file, with their intervals.

    Raises
    ------
    MegabaseError
        With file and row or line: for a broken file, one without a row on the genome, a missing
        label column, an empty label, or a summit outside its peak.

    Warns
    -----
    LeftOutWarning
        With the number of rows that are not on the genome, by reason.
    IntervalWarning
        With their number, when windows reach past the end of a contig: N stands there.
    """
    path = Path(path)
    table, columns = _read(path, store, (label,) if isinstance(label, str) else label, strict)
    start, end = _bounds(path, table, length, flank, center)
    labels = list(zip(*(_cells(table[name]) for name in columns), strict=True))
    reverse = [value == str(Strand.REVERSE) for value in table["strand"]] if orient else None
    size = {contig.name: contig.length for contig in store.contigs}
    intervals: list[Interval] = []
    sequences: list[str] = []
    past = 0
    for row, contig in enumerate(table["contig"]):
        first, last = int(start[row]), int(end[row])
        turned = reverse is not None and reverse[row]
        strand = Strand.REVERSE if turned else Strand.FORWARD
        past += first < 0 or last > size[contig]
        # An interval begins on its contig; the sequence keeps its full width.
        codes = _fetch(store, contig, first, last)
        sequences.append(alphabet.decode(alphabet.reverse_complement(codes) if turned else codes))
        intervals.append(Interval(contig, max(0, first), min(last, size[contig]), strand))
    if past:
        warn(
            f"{past:,} of {len(sequences):,} intervals of {path} reach past the end of their "
            "contig once they are widened; N stands for the missing bases",
            IntervalWarning,
        )
    names = [f"{path}, row {i + 1:,} ({where})" for i, where in enumerate(intervals)]
    return check_rows(
        LabelledText(str(path), sequences, labels, tuple(columns), names, tuple(intervals))
    )


def _fetch(store: GenomeStore, contig: str, first: int, last: int) -> npt.NDArray[np.uint8]:
    index = np.array([store.contig_index(contig)])
    codes = store.fetch_many(index, np.array([first]), last - first)[0]
    return np.where(codes == alphabet.PAD, np.uint8(alphabet.N), codes)


def _read(
    path: Path, store: GenomeStore, label: Sequence[str] | None, strict: bool
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Read the table, and find the label columns."""
    import polars as pl

    from megabase.genome.tables import read_bed, read_gff, read_vcf

    suffix = Path(path.name.lower().removesuffix(".gz").removesuffix(".bgz")).suffix
    if suffix not in INTERVAL_SUFFIXES:
        raise InputError(
            f"{path} is no file of intervals; expected a name ending in "
            f"{', '.join(INTERVAL_SUFFIXES)} (.gz too)"
        )
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if suffix in _VCF:
        if label is None:
            raise InputError(
                f"{path} is a VCF: name the label (table.label), a key of its INFO column"
            )
        keys = [name for name in label if name not in ("filter", "id", "qual")]
        table = read_vcf(path, store, info=keys, strict=strict)
    elif suffix in _GFF:
        label = label or ("type",)
        own = ("source", "type", "score", "strand", "phase")
        keys = [name for name in label if name not in own]
        table = read_gff(path, store, attributes=keys, strict=strict)
    else:
        label = label or ("name",)
        table = read_bed(path, store, strict=strict)
    if table.is_empty():
        raise InputError(f"{path} holds no interval")
    for name in label:
        missing = name not in table.columns
        if missing or (suffix not in _BED and table[name].is_null().all()):
            there = "attributes or INFO keys" if suffix not in _BED else "columns"
            raise InputError(
                f"{path} has no label {name!r} in its {there}; it has "
                f"{', '.join(table.columns)}: name the right one (table.label)"
            )
    if "strand" not in table.columns:
        table = table.with_columns(strand=pl.lit(str(Strand.UNSTRANDED)))
    return table, tuple(label)


def _cells(column: pl.Series) -> list[str]:
    """Give label cells as text; numbers without a fraction lose their point (scores 0 and 1)."""
    import polars as pl

    if column.dtype == pl.Float64:
        return ["" if x is None else f"{x:g}" if x % 1 == 0 else repr(x) for x in column]
    return column.cast(pl.String).fill_null("").str.strip_chars().to_list()


def _bounds(
    path: Path, table: pl.DataFrame, length: int | None, flank: int, center: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    start, end = table["start"].to_numpy(), table["end"].to_numpy()
    if length is not None:
        middle = (start + end) // 2
        if center == "summit":
            if "summit" not in table.columns:
                raise InputError(f"{path} has no summits; expected a narrowPeak (genome.center)")
            summit = table["summit"].fill_null(-1).to_numpy()
            outside = np.flatnonzero((summit < -1) | (summit >= end - table["start"].to_numpy()))
            if len(outside):
                row = table.row(int(outside[0]), named=True)
                raise InputError(
                    f"{path}: the summit of peak {row['contig']}:{row['start'] + 1:,}-"
                    f"{row['end']:,} is {row['summit']}, outside its {row['end'] - row['start']:,} "
                    f"bases ({len(outside):,} such rows); expected an offset from the start, or -1 "
                    "where it is not known"
                )
            middle = np.where(summit >= 0, start + summit, middle)
        start = middle - length // 2
        end = start + length
    return start - flank, end + flank


def divide_rows(
    text: LabelledText, store: GenomeStore, train: Regions | None, valid: Regions, test: Regions
) -> dict[str, LabelledText]:
    """Give each row to the split whose places its sequence touches.

    Parameters
    ----------
    text
        Rows with intervals.
    store
        The genome.
    train
        Places to train on; None: all others.
    valid, test
        Held-out places.

    Returns
    -------
    dict
        Split name to rows, for splits that have any. A row that touches held-out places and others
        is held out: nothing of it is trained on.

    Raises
    ------
    InputError
        When a row touches both valid and test, or no row is left for training.

    Warns
    -----
    IntervalWarning
        With the number of rows that lie in no split.
    """
    intervals = text.intervals or ()
    contig = np.array([store.contig_index(i.contig) for i in intervals], dtype=np.int64)
    start = np.array([i.start for i in intervals], dtype=np.int64)
    end = np.array([i.end for i in intervals], dtype=np.int64)
    touched = {
        "valid": valid.overlap(contig, start, end), "test": test.overlap(contig, start, end)
    }  # fmt: skip
    both = np.flatnonzero(touched["valid"] & touched["test"])
    if len(both):
        raise InputError(
            f"{text.where(int(both[0]))}: the sequence touches both valid and test places "
            f"({len(both):,} rows do); leave a gap between them"
        )
    free = ~(touched["valid"] | touched["test"])
    chosen = free if train is None else free & train.overlap(contig, start, end)
    left_out = int((free & ~chosen).sum())
    if left_out:
        warn(
            f"{left_out:,} of {len(intervals):,} intervals of {text.source} lie in no split and "
            "are left out",
            IntervalWarning,
        )
    parts = {"train": chosen, **touched}
    if not chosen.any():
        raise InputError(f"no interval of {text.source} is left for training")
    return {name: _take(text, np.flatnonzero(rows)) for name, rows in parts.items() if rows.any()}


def _take(text: LabelledText, rows: npt.NDArray[np.int64]) -> LabelledText:
    return replace(
        text,
        sequences=[text.sequences[i] for i in rows],
        labels=[text.labels[i] for i in rows],
        names=[text.where(int(i)) for i in rows],
        intervals=tuple((text.intervals or ())[i] for i in rows),
    )
