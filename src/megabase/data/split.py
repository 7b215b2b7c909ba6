"""Which positions of a genome are for training, validation and test.

A place is named by a contig (``chr20``), a stretch of one as people write it
(``chr20:45,000,001-50,000,000``, 1-based with both ends), or a BED file (``gaps.bed``,
``gaps.bed.gz``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from megabase.data.regions import Regions
from megabase.errors import InputError
from megabase.genome.store import GenomeStore

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Intervals", "Split", "read_intervals", "regions_of", "split_genome"]

_BED = (".bed", ".bed.gz", ".narrowpeak", ".narrowpeak.gz", ".broadpeak", ".broadpeak.gz")


class Intervals(NamedTuple):
    """Rows of a table of intervals: contig indices, and 0-based half-open coordinates."""

    contig: npt.NDArray[np.int32]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Disjoint parts of a genome.

    Parameters
    ----------
    train, validation, test
        Positions of each part; any may be empty but ``train``.
    """

    train: Regions
    validation: Regions
    test: Regions


def regions_of(
    store: GenomeStore, places: Iterable[str | os.PathLike[str]], *, strict: bool = True
) -> Regions:
    """Give the positions of named places.

    Parameters
    ----------
    store
        The genome.
    places
        Contig names, stretches of contigs and BED files, in any mixture.
    strict
        Refuse rows of BED files that are not on the genome: a place that is to be held out must not
        vanish. False: they are left out and counted.

    Returns
    -------
    Regions
        Their union; empty for no places.

    Raises
    ------
    MegabaseError
        For an unknown contig, a place past the end of its contig, or a BED file that is missing
        or broken.
    """
    found = Regions.of([], [], [])
    for place in places:
        text = os.fspath(place)
        if text.lower().endswith(_BED) or isinstance(place, Path):
            found = found.union(_read_bed(store, Path(text), strict))
        else:
            interval = store.region(text)
            index = store.contig_index(interval.contig)
            found = found.union(Regions.of([index], [interval.start], [interval.end]))
    return found


def _read_bed(store: GenomeStore, path: Path, strict: bool) -> Regions:
    from megabase.genome.tables import read_bed

    return Regions.of(*_columns(store, read_bed(path, store, columns=3, strict=strict)))


def _columns(store: GenomeStore, table: pl.DataFrame) -> Intervals:
    number = {contig.name: index for index, contig in enumerate(store.contigs)}
    contig = [number[name] for name in table["contig"].to_list()]
    return Intervals(
        np.array(contig, dtype=np.int32), table["start"].to_numpy(), table["end"].to_numpy()
    )


def read_intervals(store: GenomeStore, path: str | os.PathLike[str], split: str) -> Intervals:
    """Read the rows of one split from a BED file whose fourth column names the split.

    Parameters
    ----------
    store
        The genome.
    path
        The table; the published ones have ``train``, ``valid`` and ``test``.
    split
        Which rows to read.

    Returns
    -------
    Intervals
        In the order of the file, for :class:`megabase.data.intervals.IntervalWindows`.

    Raises
    ------
    MegabaseError
        When the file is missing or broken, a row does not lie on the genome, or no row is of this
        split.
    """
    from megabase.genome.tables import read_bed

    table = read_bed(Path(path), store, columns=4, strict=True)
    names = table["name"].to_list() if "name" in table.columns else []
    rows = table.filter([name == split for name in names]) if names else table.clear()
    if rows.is_empty():
        found = ", ".join(sorted({str(name) for name in names})) or "none: no fourth column"
        raise InputError(f"{path} has no interval of split {split!r}; its splits are {found}")
    return _columns(store, rows)


def split_genome(
    store: GenomeStore,
    *,
    include: Iterable[str | os.PathLike[str]] = (),
    exclude: Iterable[str | os.PathLike[str]] = (),
    validation: Iterable[str | os.PathLike[str]] = (),
    test: Iterable[str | os.PathLike[str]] = (),
) -> Split:
    """Split a genome: training gets everything allowed that is not held out.

    Parameters
    ----------
    store
        The genome.
    include
        Places that may be used; none named means the whole genome. Held-out places need not be
        among them.
    exclude
        Places in no part.
    validation, test
        Held-out places; the two must not overlap.

    Returns
    -------
    Split

    Raises
    ------
    InputError
        When validation and test overlap, or nothing is left for training.
    """
    included, excluded = list(include), regions_of(store, exclude)
    allowed = regions_of(store, included) if included else Regions.whole(store.lengths)
    held_out = regions_of(store, validation), regions_of(store, test)
    shared = held_out[0].intersect(held_out[1])
    if len(shared):
        name = store.contigs[int(shared.contig[0])].name
        raise InputError(
            f"validation and test regions overlap, first at {name}:{int(shared.start[0]) + 1:,}-"
            f"{int(shared.end[0]):,}; a base can be held out for one of them only"
        )
    train = allowed.subtract(excluded).subtract(held_out[0]).subtract(held_out[1])
    if len(train) == 0:
        raise InputError(
            "no position is left for training: the excluded, validation and test regions cover "
            "everything that is included"
        )
    return Split(train, held_out[0].subtract(excluded), held_out[1].subtract(excluded))
