"""Items of published downstream benchmarks, exactly as their loaders build them.

Companion of :mod:`published`, with the same rule: habits that are defects are options
that are off by default. Coordinates are 0-based half-open.

Sources: HazyResearch/hyena-dna, ``src/dataloaders/datasets/{genomic_bench,chromatin_profile,
icl_genomics,species,nucleotide_transformer}_dataset.py``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from published import (
    PublishedDataError,
    cut_interval,
    shift_targets,
)

from megabase.benchmarking.suites.chromatin import CHROMATIN_WINDOW
from megabase.data.vocabulary import SEP_ID, text_to_ids

__all__ = [
    "ChromatinWindow",
    "LabelTable",
    "SpeciesSampler",
    "chromatin_item",
    "chromatin_windows",
    "label_of_record",
    "read_folder",
    "species_item",
]

_Ids = npt.NDArray[np.int64]


class LabelTable(NamedTuple):
    """A sequence of a folder data set: its name inside the split, its letters, its class."""

    name: str
    text: str
    label: int


def read_folder(root: Path, split: str) -> tuple[tuple[str, ...], list[LabelTable]]:
    """Read a data set kept as ``root/split/class/name.txt`` (GenomicBenchmarks).

    The published loader numbers classes in the order in which the directory happens to list them,
    for each split on its own. Here the numbers are those of the sorted class names of all splits
    together, so that they agree everywhere.

    Parameters
    ----------
    root
        Folder with one subfolder for each split.
    split
        Which one to read.

    Returns
    -------
    classes : tuple of str
        Sorted names; a label is an index into it.
    items : list of LabelTable
        Sorted by name.

    Raises
    ------
    PublishedDataError
        When the split's folder is missing or has no class.
    """
    base = root / split
    if not base.is_dir():
        raise PublishedDataError(
            f"{base} is no folder; expected {root}/SPLIT/CLASS/NAME.txt with a split {split!r}"
        )
    classes = tuple(sorted({path.name for path in root.glob("*/*") if path.is_dir()}))
    items = [
        LabelTable(f"{name}/{path.name}", path.read_text(), label)
        for label, name in enumerate(classes)
        for path in sorted((base / name).glob("*.txt"))
    ]
    if not items:
        raise PublishedDataError(f"{base} holds no file CLASS/NAME.txt")
    return classes, items


def label_of_record(name: str) -> int:
    """Give the label of a Nucleotide Transformer record: the last character of its name.

    Raises
    ------
    PublishedDataError
        When that is no digit.
    """
    if not name[-1:].isdigit():
        raise PublishedDataError(
            f"the record name {name!r} does not end with a digit, which is its label"
        )
    return int(name[-1])


class ChromatinWindow(NamedTuple):
    """A row of the chromatin table: the resized window and its labels."""

    contig: str
    start: int
    end: int
    labels: tuple[int, ...]


def chromatin_windows(path: Path, length: int) -> tuple[tuple[str, ...], list[ChromatinWindow]]:
    """Read the coordinates and labels of the chromatin profile, resized about their centers.

    Parameters
    ----------
    path
        CSV with columns ``Chr_No`` (0-based number), ``Start``, ``End`` and one ``y_...`` column
        of booleans for each profile.
    length
        Bases wanted, an even number.

    Returns
    -------
    profiles : tuple of str
        Names of the label columns.
    windows : list of ChromatinWindow
        In the order of the file; may reach past the contig on either side.

    Raises
    ------
    PublishedDataError
        For an odd length, or a table without the named columns.
    """
    import polars as pl

    if length % 2:
        raise PublishedDataError(f"the length must be even, found {length:,}")
    table = pl.read_csv(path)
    lacking = {"Chr_No", "Start", "End"} - set(table.columns)
    if lacking:
        raise PublishedDataError(f"{path} has no column {', '.join(sorted(lacking))}")
    profiles = tuple(name for name in table.columns if name.startswith("y_"))
    # int(x / 2) as in the loader: towards zero when the window shrinks.
    margin = int((length - CHROMATIN_WINDOW) / 2)
    labels = table.select(pl.col(profiles).cast(pl.Boolean).cast(pl.Int64)).rows()
    places = table.select("Chr_No", "Start", "End").rows()
    return profiles, [
        ChromatinWindow(f"chr{number + 1}", start - margin, end + margin, tuple(row))
        for (number, start, end), row in zip(places, labels, strict=True)
    ]


def chromatin_item(contig: str, start: int, end: int) -> _Ids:
    """Build the ids of a chromatin window: unknown (6) off the contig, separator at the end.

    Parameters
    ----------
    contig
        The whole contig as text, in any case.
    start, end
        The window; may reach past the contig.

    Returns
    -------
    numpy.ndarray
        int64 (end - start + 1,).
    """
    cut = cut_interval(start, end, end - start, len(contig))
    text = "." * cut.left + contig[cut.start : cut.end] + "." * cut.right
    return np.append(text_to_ids(text), SEP_ID)


class _Sample(NamedTuple):
    species: int
    text: str


@dataclass
class SpeciesSampler:
    """Draw stretches of random chromosomes of random species.

    Parameters
    ----------
    genomes
        Species name to its chromosomes of one split, as (name to text) in order. The order of the
        species gives their labels.
    length
        Bases of a sample.
    weighted_by_bp
        Draw species and chromosomes by their number of bases, instead of each alike. The published
        loader weighs a species by the number of its files, one for each chromosome.
    cutoff
        None, or the share cut off at both ends of a chromosome (published: 0.1 in training and
        0.2 else, when ``remove_tail_ends`` is set).
    published_end
        Stop reading where the last sample may start, and fill with N on the left: the published
        way, which gives samples with few or no bases. Otherwise samples lie within the bounds, and
        only a chromosome too short is filled, on the right.
    """

    genomes: Mapping[str, Mapping[str, str]]
    length: int
    weighted_by_bp: bool = False
    cutoff: float | None = None
    published_end: bool = False

    def chromosome_weights(self, species: str) -> list[float]:
        """Give the share of each chromosome of a species in its bases."""
        sizes = [len(text) for text in self.genomes[species].values()]
        return [size / sum(sizes) for size in sizes]

    def species_weights(self) -> list[float]:
        """Give the weight of each species, summing to 1."""
        sizes = [
            len(chromosomes) if self.published_end else sum(map(len, chromosomes.values()))
            for chromosomes in self.genomes.values()
        ]
        return [size / sum(sizes) for size in sizes]

    def _bounds(self, size: int) -> tuple[int, int]:
        """First and last start."""
        if self.cutoff is None:
            return 0, max(size - self.length, 0)
        left, right = int(size * self.cutoff), int(size * (1 - self.cutoff))
        return left, right if self.published_end else max(right - self.length, left)

    def sample(self, rng: random.Random) -> _Sample:
        """Draw the next sample.

        Parameters
        ----------
        rng
            Source of random numbers; the published loader uses Python's global one in this order:
            species, chromosome, start.

        Returns
        -------
        tuple
            Index of the species, and `length` letters in upper case.
        """
        names = list(self.genomes)
        weights = self.species_weights() if self.weighted_by_bp else [1.0] * len(names)
        name = rng.choices(names, weights=weights, k=1)[0]
        chromosomes = self.genomes[name]
        weights = self.chromosome_weights(name) if self.weighted_by_bp else [1.0] * len(chromosomes)
        chromosome = rng.choices(list(chromosomes), weights=weights, k=1)[0]
        contig = chromosomes[chromosome]
        first, last = self._bounds(len(contig))
        start = rng.randint(first, last)
        if self.published_end:
            text = contig[start : min(start + self.length, last)].rjust(self.length, "N")
        else:
            text = contig[start : start + self.length].ljust(self.length, "N")
        return _Sample(names.index(name), text.upper())


def species_item(text: str, *, next_token: bool = False) -> tuple[_Ids, _Ids | None]:
    """Build the ids of a species sample: no special token among the inputs.

    Parameters
    ----------
    text
        Letters of the sample.
    next_token
        Also give the next tokens, the last of them the separator.

    Returns
    -------
    data, target : numpy.ndarray
        int64 (len(text),); the target is None unless asked for.
    """
    data, target = shift_targets(np.append(text_to_ids(text), SEP_ID))
    return data, target if next_token else None
