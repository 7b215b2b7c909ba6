"""Labeled examples cut out of a genome: intervals, a class for every base, numbers of tracks.

Coordinates are 0-based half-open; VCF and GFF are converted by their readers.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from megabase.data.labeled import IGNORED, LabeledSequences, LabelTable, Ragged
from megabase.data.regions import Regions
from megabase.errors import InputError, IntervalWarning, NoUsableRowError, warn
from megabase.genome import alphabet
from megabase.genome.interval import Interval, Strand
from megabase.genome.signal import Signal
from megabase.genome.store import Genome
from megabase.genome.tables import read_bed, read_gff, read_vcf

# Endings of the files that are read; .gz or .bgz may follow.
_GFF = (".gff", ".gff3", ".gtf")
_VCF = (".vcf", ".bcf")  # variants as intervals of their REF
_BED = (".bed", ".narrowpeak", ".broadpeak")  # the formats of the ENCODE peaks among them
INTERVAL_SUFFIXES = (*_BED, *_GFF, *_VCF)
"""Endings of the files that :func:`read_interval_text` reads (``.gz`` may follow)."""

_TRACK_NAME = re.compile(r"[0-9A-Za-z_]+")  # a part of file names and of the keys of a VCF
_PIECE = 1 << 20  # bases of a signal that are read at once: a few MB
_ALL = "feature"  # the class of all rows of a BED file when no types are named

FeatureStrand = Literal["either", "forward", "reverse"]
"""Which features count: those of both strands, or of one only (features without strand count for
each)."""

_Ints = npt.NDArray[np.int64]
_Read = Callable[[int, int], npt.NDArray[Any]]


def read_interval_text(
    path: str | Path, store: Genome, *, label: str | Sequence[str] | None = None,
    length: int | None = None, flank: int = 0, center: Literal["middle", "summit"] = "middle",
    orient: bool = False, strict: bool = False,
) -> LabelTable:  # fmt: skip
    """Read intervals with labels, and their sequences, from a genome, in the order of the file.

    The file is BED, narrowPeak, broadPeak, GFF3, GTF or VCF (one example for each alternative
    allele; the sequence is that of the genome), plain or gzip. Labels are columns: of a BED by the
    names of :func:`megabase.genome.tables.read_bed` (default ``name``); of a GFF its columns or
    keys of its attributes (default ``type``); of a VCF ``filter``, ``id``, ``qual`` or keys of
    INFO.

    `length` bases are read around the `center` (the ``middle``, of an even length the base after
    it, or the ``summit`` of a narrowPeak where it is known), and `flank` bases more on either side;
    N stands past the end of a contig, with an IntervalWarning. With `orient`, intervals on the
    strand ``-`` are read as their reverse complement. Rows that are not on the genome are left out
    with a LeftOutWarning, or refused when `strict`.
    """
    path = Path(path)
    label = (label,) if isinstance(label, str) else label
    table, columns = _read_intervals(path, store, label, strict)
    start, end = _bounds(path, table, length, flank, center)
    labels = list(zip(*(_cells(table[name]) for name in columns), strict=True))
    intervals: list[Interval] = []
    sequences: list[str] = []
    past = 0
    rows = zip(table["contig"], start.tolist(), end.tolist(), table["strand"], strict=True)
    for contig, first, last, strand in rows:
        turned = orient and strand == Strand.REVERSE
        wide = Interval(contig, first, last, Strand.REVERSE if turned else Strand.FORWARD)
        # An interval lies on its contig; the sequence keeps its full width.
        size = store.contig(contig).length
        past += first < 0 or last > size
        sequences.append(alphabet.decode(store.fetch(wide, "n")))
        intervals.append(replace(wide, start=max(0, first), end=min(last, size)))
    if past:
        where = f"{past:,} of {len(sequences):,} intervals of {path} reach past the end of their"
        what = "contig once they are widened; N stands for the missing bases"
        warn(f"{where} {what}", IntervalWarning)
    names = [f"{path}, row {i + 1:,} ({where})" for i, where in enumerate(intervals)]
    found = LabelTable(str(path), sequences, labels, columns, names, tuple(intervals))
    return found.checked()


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz").removesuffix(".bgz")).suffix


def _read_intervals(
    path: Path, store: Genome, label: Sequence[str] | None, strict: bool
) -> tuple[pl.DataFrame, tuple[str, ...]]:

    suffix = _suffix(path)
    if suffix not in INTERVAL_SUFFIXES:
        raise InputError(
            f"{path} is not a file of intervals; expected a name ending in "
            f"{', '.join(INTERVAL_SUFFIXES)} (.gz too)"
        )
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if label is None and suffix in _VCF:
        raise InputError(f"{path} is a VCF: name the label (table.label), a key of its INFO column")
    label = label or (("type",) if suffix in _GFF else ("name",))
    gff, vcf = ("source", "type", "score", "strand", "phase"), ("filter", "id", "qual")
    keys = [name for name in label if name not in (vcf if suffix in _VCF else gff)]
    if suffix in _VCF:
        table = read_vcf(path, store, info=keys, strict=strict)
    elif suffix in _GFF:
        table = read_gff(path, store, attributes=keys, strict=strict)
    else:
        table = read_bed(path, store, strict=strict)
    if table.is_empty():
        raise InputError(f"{path} holds no interval")
    for name in label:
        if name not in table.columns or (suffix not in _BED and table[name].is_null().all()):
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
    text: LabelTable, store: Genome, train: Regions | None, valid: Regions, test: Regions
) -> dict[str, LabelTable]:
    """Assign each example to the split whose regions its sequence touches.

    `train` None means all other regions. An example that touches held-out regions and others is
    held out: nothing of it is trained on. An IntervalWarning counts those in no split; an
    InputError when one touches both valid and test, or none is left for training.
    """
    intervals = text.intervals or ()
    contig = np.array([store.contig_index(i.contig) for i in intervals], dtype=np.int64)
    start = np.array([i.start for i in intervals], dtype=np.int64)
    end = np.array([i.end for i in intervals], dtype=np.int64)
    held, tested = valid.overlap(contig, start, end), test.overlap(contig, start, end)
    both = np.flatnonzero(held & tested)
    if len(both):
        raise InputError(
            f"{text.where(int(both[0]))}: the sequence touches both valid and test places "
            f"({len(both):,} rows do); leave a gap between them"
        )
    free = ~(held | tested)
    chosen = free if train is None else free & train.overlap(contig, start, end)
    left_out = int((free & ~chosen).sum())
    if left_out:
        rows = f"{left_out:,} of {len(intervals):,} intervals of {text.source}"
        warn(f"{rows} lie in no split and are left out", IntervalWarning)
    if not chosen.any():
        raise InputError(f"no interval of {text.source} is left for training")
    parts = {"train": chosen, "valid": held, "test": tested}
    return {name: text.take(np.flatnonzero(rows)) for name, rows in parts.items() if rows.any()}


class _Features(NamedTuple):
    """Intervals of a genome, sorted by contig (its index), with the number of their class, (n,)."""

    contig: _Ints
    start: _Ints
    end: _Ints
    label: npt.NDArray[np.int16]
    classes: tuple[str, ...]  # names by number; 0 is the background, the others are sorted
    priority: tuple[int, ...]  # class numbers, the one that wins where features overlap first
    kind = "nucleotides"
    bin = 1
    unknown = IGNORED

    def of_contig(self, store: Genome, index: int) -> _Read:
        painted = self.paint(index, int(store.lengths[index]))
        return lambda first, last: painted[first:last]

    def paint(self, contig: int, length: int) -> npt.NDArray[np.int16]:
        painted = np.zeros(length, dtype=np.int16)
        first, last = np.searchsorted(self.contig, [contig, contig + 1])
        for number in reversed(self.priority):
            chosen = first + np.flatnonzero(self.label[first:last] == number)
            for start, end in zip(self.start[chosen], self.end[chosen], strict=True):
                painted[start:end] = number
        return painted


def read_features(
    store: Genome, paths: Iterable[str | Path], types: Sequence[str] = (), *,
    background: str = "background", strand: FeatureStrand = "either", strict: bool = False,
) -> _Features:  # fmt: skip
    """Read features (BED, narrowPeak, broadPeak, GFF3 or GTF) and name their classes.

    `types` say which rows count: types of a GFF (its third column), names of a BED (its fourth).
    Each is a class of its own, or of another name: ``CDS=coding``. Where features overlap, the type
    that is named first wins. Empty, for BED files only: all rows are the class ``feature``.
    `background` names the class 0 of all other bases: one type is the second class, the positive
    one. Features that are not on the genome are left out (LeftOutWarning), or refused if `strict`.
    """
    names: dict[str, str] = {}
    for text in types or (_ALL,):
        kind, _, name = text.partition("=")
        names[kind] = name or kind
        if not kind or names[kind] == background:
            raise InputError(
                f"{text!r} is not a type of features; expected TYPE or TYPE=NAME, with a name "
                f"other than that of the background ({background})"
            )
    files = [Path(path) for path in paths]
    if not files:
        raise InputError("no file of features is named; expected BED or GFF files")
    classes = (background, *sorted(set(names.values())))
    number = {name: i for i, name in enumerate(classes)}
    tables: list[pl.DataFrame] = []
    found: set[str] = set()
    unusable: NoUsableRowError | None = None
    for path in files:
        try:
            table = _read_features(path, store, types_given=bool(types), strict=strict)
        except NoUsableRowError as error:  # features of another of several genomes
            unusable = error
            continue
        if types:
            table = table.filter(pl.col("type").is_in(list(names)))
        found.update(table["type"])
        if strand != "either":
            wanted = Strand.FORWARD if strand == "forward" else Strand.REVERSE
            table = table.filter(pl.col("strand").is_in([str(wanted), str(Strand.UNSTRANDED)]))
        tables.append(table)
    if unusable is not None and not tables:
        raise unusable
    if absent := [name for name in names if types and name not in found]:
        raise InputError(
            f"no row of {', '.join(map(str, files))} is of the type {absent[0]!r}; "
            "name types that the third column of the GFF (the fourth of the BED) has"
        )
    table = pl.concat(tables)
    contig = np.array([store.contig_index(name) for name in table["contig"]], dtype=np.int64)
    label = np.array([number[names[kind]] for kind in table["type"]], dtype=np.int16)
    order = np.argsort(contig, kind="stable")
    start, end = table["start"].to_numpy(), table["end"].to_numpy()
    priority = tuple(dict.fromkeys(number[name] for name in names.values()))
    return _Features(contig[order], start[order], end[order], label[order], classes, priority)


def _read_features(path: Path, store: Genome, *, types_given: bool, strict: bool) -> pl.DataFrame:
    suffix = _suffix(path)
    if suffix in _GFF:
        if not types_given:
            raise InputError(f"{path} is a GFF: name the types that count (genome.types)")
        table = read_gff(path, store, strict=strict)
        return table.select("contig", "start", "end", "strand", "type")
    if suffix not in _BED:
        raise InputError(
            f"{path} is not a file of features; expected a name ending in "
            f"{', '.join((*_BED, *_GFF))} (.gz too)"
        )
    table = read_bed(path, store, strict=strict)
    if types_given and "name" not in table.columns:
        raise InputError(f"{path} has no fourth column, so no row is of the types (genome.types)")
    strand = pl.col("strand") if "strand" in table.columns else pl.lit(str(Strand.UNSTRANDED))
    kind = pl.col("name") if types_given else pl.lit(_ALL)
    return table.select("contig", "start", "end", strand.alias("strand"), kind.alias("type"))


class _Tracks(NamedTuple):
    """Signals of a genome, and what the number of a bin is of the numbers of its bases."""

    classes: tuple[str, ...]
    signals: tuple[Signal, ...]
    bin: int
    statistic: str
    missing: str
    kind = "tracks"
    unknown = np.nan

    def of_contig(self, store: Genome, index: int) -> _Read:
        name = store.contigs[index].name
        step = max(1, _PIECE // self.bin) * self.bin

        def read(first: int, last: int) -> npt.NDArray[np.float32]:
            found = np.empty(((last - first) // self.bin, len(self.signals)), dtype=np.float32)
            for low in range(first, last, step):
                high = min(low + step, last)
                rows = slice((low - first) // self.bin, (high - first) // self.bin)
                for column, signal in enumerate(self.signals):
                    values = signal.values(name, low, high).reshape(-1, self.bin)
                    found[rows, column] = self._of_bins(values)
            return found

        return read

    def _of_bins(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        known = np.isfinite(values)
        total = np.where(known, values, 0).sum(1, dtype=np.float64)
        masked = self.missing == "masked"
        if self.statistic == "mean":
            total /= np.maximum(known.sum(1), 1) if masked else self.bin
        return np.where(known.any(1) | (not masked), total, np.nan)


def read_tracks(
    store: Genome, files: Iterable[str], *, bin: int = 1,
    statistic: Literal["mean", "sum"] = "mean", missing: Literal["zero", "masked"] = "zero",
) -> _Tracks:  # fmt: skip
    """Open tracks, each ``NAME=FILE`` of a bigWig or bedGraph file.

    The number of `bin` bases, counted from the start of a contig, is the `statistic` of the numbers
    of its bases. Bases without a number count as 0, or (masked) not at all, and neither does a bin
    of such bases only.
    """
    signals: dict[str, Signal] = {}
    for text in files:
        name, _, path = text.rpartition("=")
        if not _TRACK_NAME.fullmatch(name) or name.lower() in map(str.lower, signals):
            raise InputError(
                f"{text!r} is not a track; expected NAME=FILE with another name for each, of "
                "letters, digits and _"
            )
        signal = signals[name] = Signal(path, store)
        lacking = [contig.name for contig in store.contigs if contig.name not in signal.contigs]
        if lacking:
            where = f"{len(lacking):,} contigs of the genome, first {lacking[0]}"
            what = "count as 0" if missing == "zero" else "have no number"
            warn(f"{path} has nothing on {where}: their bases {what}", IntervalWarning)
    return _Tracks(tuple(signals), tuple(signals.values()), bin, statistic, missing)


def label_windows(
    store: Genome, regions: Regions, source: _Features | _Tracks, *, length: int, flank: int = 0
) -> LabeledSequences:
    """Cut regions into windows side by side, with the class of every base or the number of a bin.

    A window has `length` labeled bases (the last of a region fewer) and `flank` unlabeled bases on
    either side as context: fewer at the end of a contig, and possibly outside the regions. Bases
    that are N have no label, nor have bins of such bases only; windows of nothing else are left
    out. Of tracks, a region begins and ends with the first and last bin that lies in it whole.
    """
    intervals: list[Interval] = []
    codes: list[npt.NDArray[np.uint8]] = []
    labels: list[npt.NDArray[Any]] = []
    size, none = source.bin, source.unknown
    read: tuple[int, _Read] | None = None
    places = (regions.contig, regions.start, regions.end)
    for index, first, last in zip(*(column.tolist() for column in places), strict=True):
        contig, bases = store.contigs[index], store.view(index)
        if read is None or read[0] != index:
            read = index, source.of_contig(store, index)
        first, last = -(-first // size) * size, last // size * size
        found = read[1](first, max(first, last))
        for start in range(first, last, length):
            end = min(start + length, last)
            low, high = max(0, start - flank), min(contig.length // size * size, end + flank)
            known = (bases[start:end] & alphabet.BASE_BITS) <= alphabet.T
            known = known.reshape(-1, size).any(1).reshape(-1, *[1] * (found.ndim - 1))
            own = found[(start - first) // size : (end - first) // size]
            own = np.where(known, own, np.asarray(none, dtype=found.dtype))
            if not ((own != none) & (own == own)).any():  # NaN is not equal to itself
                continue
            intervals.append(Interval(contig.name, low, high))
            codes.append(np.array(bases[low:high]))
            shape = ((high - low) // size, *own.shape[1:])
            labels.append(np.full(shape, none, dtype=own.dtype))
            labels[-1][(start - low) // size :][: len(own)] = own
    if not codes:
        raise InputError(f"the regions of {store.path} hold no base with a label")
    values, offsets = Ragged.of(codes)
    text = LabelTable(str(store.path), [], [], ("label",), intervals=tuple(intervals))
    return LabeledSequences(
        values, offsets, np.concatenate(labels), cast("Any", source.kind), source.classes, text,
        np.arange(len(codes), dtype=np.int64), size,
    )  # fmt: skip
