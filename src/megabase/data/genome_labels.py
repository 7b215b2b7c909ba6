"""A class for every base of a genome, from the features of BED and GFF files, cut into windows.

A base has the class of the feature that covers it, and else the background class. Coordinates are
0-based half-open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from megabase.data.base_labels import IGNORED
from megabase.data.labelled import LabelledSequences
from megabase.data.labelled_files import LabelledText
from megabase.data.regions import Regions
from megabase.errors import InputError, NoUsableRowError
from megabase.genome import alphabet
from megabase.genome.interval import Interval, Strand
from megabase.genome.store import GenomeStore

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "FeatureStrand",
    "Features",
    "cut_tail",
    "label_windows",
    "read_features",
]

FeatureStrand = Literal["either", "forward", "reverse"]
"""Which features count: those of both strands, or of one only (features without strand count for
each)."""

_GFF = (".gff", ".gff3", ".gtf")
_BED = (".bed", ".narrowpeak", ".broadpeak")
_ALL = "feature"


@dataclass(frozen=True)
class Features:
    """Stretches of a genome with a class."""

    contig: npt.NDArray[np.int64]
    """Index of the contig, (n,), in increasing order."""
    start: npt.NDArray[np.int64]
    """First base, (n,)."""
    end: npt.NDArray[np.int64]
    """Base after the last, (n,)."""
    label: npt.NDArray[np.int16]
    """Class number, (n,)."""
    classes: tuple[str, ...]
    """Names by number; 0 is the background, the others are sorted."""
    priority: tuple[int, ...]
    """Class numbers, the one that wins where features overlap first."""

    def paint(self, contig: int, length: int) -> npt.NDArray[np.int16]:
        """Give the class of every base of a contig, (length,)."""
        painted = np.zeros(length, dtype=np.int16)
        first, last = np.searchsorted(self.contig, [contig, contig + 1])
        starts, ends, labels = (x[first:last] for x in (self.start, self.end, self.label))
        for number in reversed(self.priority):
            chosen = labels == number
            for start, end in zip(starts[chosen], ends[chosen], strict=True):
                painted[start:end] = number
        return painted


def read_features(
    store: GenomeStore,
    paths: Iterable[str | Path],
    types: Sequence[str] = (),
    *,
    background: str = "background",
    strand: FeatureStrand = "either",
    strict: bool = False,
) -> Features:
    """Read features and name their classes.

    Parameters
    ----------
    store
        The genome.
    paths
        BED, narrowPeak, broadPeak, GFF3 or GTF files, plain or gzip.
    types
        Which rows count: types of a GFF (its third column), names of a BED (its fourth). Each is a
        class of its own, or of another name: ``CDS=coding``. Where features overlap, the type that
        is named first wins. Empty, for BED files only: all rows are the class ``feature``.
    background
        Name of the class of all other bases; its number is 0, so with one type the feature is the
        second class, which metrics take as the positive one.
    strand
        Which features count.
    strict
        Refuse features that are not on the genome, which are left out otherwise.

    Returns
    -------
    Features
        Those on the genome.

    Raises
    ------
    MegabaseError
        For a file of another kind, a row that cannot be used (with file and line), GFF files
        without types, a type without rows, or features that all lie on other contigs.

    Warns
    -----
    LeftOutWarning
        With the number of features that are not on the genome, by reason.
    """
    names = _class_of_type(types, background)
    files = [Path(path) for path in paths]
    if not files:
        raise InputError("no file of features is named; expected BED or GFF files")
    classes = (background, *sorted(set(names.values())))
    number = {name: i for i, name in enumerate(classes)}
    parts: list[tuple[npt.NDArray[np.int64], ...]] = []
    found: set[str] = set()
    unusable: NoUsableRowError | None = None
    for path in files:
        try:
            table = _read(path, store, types_given=bool(types), strict=strict)
        except NoUsableRowError as error:  # features of another of several genomes
            unusable = error
            continue
        kinds = table["type"].to_list()
        if types:
            table = table.filter([kind in names for kind in kinds])
            kinds = table["type"].to_list()
        found.update(kinds)
        if strand != "either":
            wanted = Strand.FORWARD if strand == "forward" else Strand.REVERSE
            kept = [value in (str(wanted), str(Strand.UNSTRANDED)) for value in table["strand"]]
            table = table.filter(kept)
            kinds = table["type"].to_list()
        labels = np.array([number[names.get(kind, _ALL)] for kind in kinds], dtype=np.int64)
        contig = np.array([store.contig_index(name) for name in table["contig"]], dtype=np.int64)
        parts.append((contig, table["start"].to_numpy(), table["end"].to_numpy(), labels))
    if unusable is not None and not parts:
        raise unusable
    absent = [name for name in names if name not in found] if types else []
    if absent:
        raise InputError(
            f"no row of {', '.join(map(str, files))} is of the type {absent[0]!r}; "
            "name types that the third column of the GFF (the fourth of the BED) has"
        )
    contig, start, end, label = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    priority = tuple(dict.fromkeys(number[name] for name in names.values()))
    order = np.argsort(contig, kind="stable")
    contig, start, end, label = (column[order] for column in (contig, start, end, label))
    return Features(contig, start, end, label.astype(np.int16), classes, priority)


def _class_of_type(types: Sequence[str], background: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for text in types or (_ALL,):
        kind, _, name = text.partition("=")
        names[kind] = name or kind
        if not kind or names[kind] == background:
            raise InputError(
                f"{text!r} is no type of features; expected TYPE or TYPE=NAME, with a name other "
                f"than that of the background ({background})"
            )
    return names


def _read(path: Path, store: GenomeStore, *, types_given: bool, strict: bool) -> pl.DataFrame:
    """Read a file into contig, start, end, strand and type, with the row's place in the file."""
    import polars as pl

    from megabase.genome.tables import read_bed, read_gff

    suffix = Path(path.name.lower().removesuffix(".gz").removesuffix(".bgz")).suffix
    if suffix in _GFF:
        if not types_given:
            raise InputError(
                f"{path} is a GFF: name the types that count (genome.types), such as CDS"
            )
        return read_gff(path, store, strict=strict).select(
            "contig", "start", "end", "strand", "type"
        )
    if suffix not in _BED:
        raise InputError(
            f"{path} is no file of features; expected a name ending in "
            f"{', '.join((*_BED, *_GFF))} (.gz too)"
        )
    table = read_bed(path, store, strict=strict)
    if types_given and "name" not in table.columns:
        raise InputError(
            f"{path} has no fourth column, so no row is of one of the types (genome.types)"
        )
    strand = pl.col("strand") if "strand" in table.columns else pl.lit(str(Strand.UNSTRANDED))
    kind = pl.col("name") if types_given else pl.lit(_ALL)
    return table.select("contig", "start", "end", strand.alias("strand"), kind.alias("type"))


def cut_tail(regions: Regions, fraction: float, least: int) -> tuple[Regions, Regions]:
    """Cut the last part of every region off, for validation: one stretch each, no scattered rows.

    Parameters
    ----------
    regions
        Positions to divide.
    fraction
        Share to cut off, above 0 and below 1.
    least
        Fewest bases that are cut off a region; shorter regions are kept whole.

    Returns
    -------
    kept, cut : Regions

    Raises
    ------
    InputError
        When no region is long enough.
    """
    size = regions.end - regions.start
    tail = np.where(size >= 2 * least, np.maximum(np.round(size * fraction), least), 0)
    if not tail.any():
        raise InputError(
            f"no training region is long enough to cut {least:,} bases off for validation; name "
            "regions for it (genome.valid)"
        )
    middle = regions.end - tail.astype(np.int64)
    return (
        Regions.of(regions.contig, regions.start, middle),
        Regions.of(regions.contig, middle, regions.end),
    )


def label_windows(
    store: GenomeStore, regions: Regions, features: Features, *, length: int, flank: int = 0
) -> LabelledSequences:
    """Cut regions into windows side by side, with the class of every base.

    Parameters
    ----------
    store
        The genome.
    regions
        What to cut; the last window of each region is shorter.
    features
        Where the classes come from.
    length
        Labelled bases of a window.
    flank
        Bases that are read on either side besides, without labels: context for the outermost ones.
        Windows at the end of a contig have fewer; flanks may lie outside the regions.

    Returns
    -------
    LabelledSequences
        Of the kind ``nucleotides``. Bases that are N have no label; windows of nothing else are
        left out.
    """
    intervals: list[Interval] = []
    codes: list[npt.NDArray[np.uint8]] = []
    labels: list[npt.NDArray[np.int16]] = []
    painted: Mapping[int, npt.NDArray[np.int16]] = {}
    for contig, first, last in zip(regions.contig, regions.start, regions.end, strict=True):
        index, size = int(contig), int(store.lengths[contig])
        if index not in painted:
            painted = {index: features.paint(index, size)}
        bases = store.view(index)
        for start in range(int(first), int(last), length):
            end = min(start + length, int(last))
            low, high = max(0, start - flank), min(size, end + flank)
            window = np.array(bases[low:high])
            known = (window & alphabet.BASE_BITS) <= alphabet.T
            known[: start - low] = False
            known[end - low :] = False
            if not known.any():
                continue
            intervals.append(Interval(store.contigs[index].name, low, high))
            codes.append(window)
            labels.append(np.where(known, painted[index][low:high], IGNORED).astype(np.int16))
    if not codes:
        raise InputError(f"the regions of {store.path} hold no base with a label")
    offsets = np.concatenate([[0], np.cumsum([len(window) for window in codes])])
    text = LabelledText(str(store.path), [], [], ("label",), intervals=tuple(intervals))
    return LabelledSequences(
        np.concatenate(codes),
        offsets.astype(np.int64),
        np.concatenate(labels),
        "nucleotides",
        features.classes,
        text,
        np.arange(len(codes), dtype=np.int64),
    )
