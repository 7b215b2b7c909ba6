"""Rows that lie in regions of a genome, found by their words: no coordinates needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from megabase.data.hashing import mix64
from megabase.data.labelled import LabelledSequences
from megabase.data.words import one_in, row_kmers
from megabase.genome.kmers import canonical_kmers

if TYPE_CHECKING:
    from megabase.data.regions import Regions
    from megabase.genome.store import GenomeStore

__all__ = ["Overlap", "genome_overlap"]

K_GENOME = 31
"""Bases of a word: a genome of a mammal holds few of them by chance."""
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Overlap:
    """Rows found in the regions a model was pretrained on."""

    genome: str
    """Genome and where."""
    rows: dict[str, int]
    """By split, rows with at least half of their 31-mers there, on either strand."""


def genome_overlap(
    splits: Mapping[str, LabelledSequences],
    store: GenomeStore,
    regions: Regions,
    share: float = 0.5,
) -> Overlap:
    """Count rows that lie in regions of a genome, by their 31-mers on either strand.

    The genome is read once; rows need no coordinates.

    Parameters
    ----------
    splits
        Rows by split.
    store
        The genome.
    regions
        Where the model was trained.
    share
        Share of a row's words that must lie there.
    """
    # Long genomes: one of eight words is plenty, every row has tens of them left.
    every = max(1 if regions.total < _CHUNK else 4, one_in(*splits.values()))
    indices = {name: row_kmers(rows, K_GENOME, every) for name, rows in splits.items()}
    wanted = np.unique(np.concatenate([words for words, _ in indices.values()]))
    present = np.zeros(len(wanted), dtype=bool)
    for codes in _stretches(store, regions):
        words, known = canonical_kmers(codes, K_GENOME)
        if every > 1:
            known &= mix64(words) % np.uint64(every) == 0
        words = words[known]
        if not len(wanted) or not len(words):
            continue
        place = np.searchsorted(wanted, words)
        place[place == len(wanted)] = 0
        present[place[wanted[place] == words]] = True
    found: dict[str, int] = {}
    for name, (words, row) in indices.items():
        inside = present[np.searchsorted(wanted, words)].astype(np.float64)
        hits = np.bincount(row, weights=inside, minlength=len(splits[name]))
        sizes = np.bincount(row, minlength=len(splits[name]))
        found[name] = int(((sizes > 0) & (hits >= share * sizes)).sum())
    return Overlap(f"{store.path.name} ({regions.total:,} bases of {store.name})", found)


def _stretches(store: GenomeStore, regions: Regions) -> Iterable[npt.NDArray[np.uint8]]:
    for contig, start, end in zip(regions.contig, regions.start, regions.end, strict=True):
        whole = store.view(int(contig))
        for low in range(int(start), int(end), _CHUNK):
            # Words across the cut belong to the earlier piece.
            yield whole[low : min(low + _CHUNK + K_GENOME - 1, int(end))]
