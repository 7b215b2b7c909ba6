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

import numpy as np

from megabase.data.regions import Regions
from megabase.errors import MegabaseError
from megabase.genome.store import GenomeStore

__all__ = ["RegionError", "Split", "regions_of", "split_genome"]

_BED = (".bed", ".bed.gz", ".narrowpeak", ".narrowpeak.gz", ".broadpeak", ".broadpeak.gz")


class RegionError(MegabaseError):
    """Regions that cannot be used as given."""


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


def regions_of(store: GenomeStore, places: Iterable[str | os.PathLike[str]]) -> Regions:
    """Give the positions of named places.

    Parameters
    ----------
    store
        The genome.
    places
        Contig names, stretches of contigs and BED files, in any mixture.

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
            found = found.union(_read_bed(store, Path(text)))
        else:
            interval = store.region(text)
            index = store.contig_index(interval.contig)
            found = found.union(Regions.of([index], [interval.start], [interval.end]))
    return found


def _read_bed(store: GenomeStore, path: Path) -> Regions:
    from megabase.genome.tables import read_bed

    table = read_bed(path, store=store)
    contig = [store.contig_index(name) for name in table["contig"].to_list()]
    return Regions.of(contig, table["start"].to_numpy(), table["end"].to_numpy())


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
    RegionError
        When validation and test overlap, or nothing is left for training.
    """
    included, excluded = list(include), regions_of(store, exclude)
    lengths = np.array([contig.length for contig in store.contigs], dtype=np.int64)
    allowed = regions_of(store, included) if included else Regions.whole(lengths)
    held_out = regions_of(store, validation), regions_of(store, test)
    shared = held_out[0].intersect(held_out[1])
    if len(shared):
        name = store.contigs[int(shared.contig[0])].name
        raise RegionError(
            f"validation and test regions overlap, first at {name}:{int(shared.start[0]) + 1:,}-"
            f"{int(shared.end[0]):,}; a base can be held out for one of them only"
        )
    train = allowed.subtract(excluded).subtract(held_out[0]).subtract(held_out[1])
    if len(train) == 0:
        raise RegionError(
            "no position is left for training: the excluded, validation and test regions cover "
            "everything that is included"
        )
    return Split(train, held_out[0].subtract(excluded), held_out[1].subtract(excluded))
