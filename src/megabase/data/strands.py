"""Whether sequences are read in a direction that means something, such as that of a transcript."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megabase.data.labeled import LabeledSequences
from megabase.genome.alphabet import pack_kmers

_K = 4  # long enough to tell a TATA box or a splice site from its complement, with 120 pairs
_ROWS = 20_000
"""Rows of a class that are counted: the first ones are enough, and a long table stays quick."""
_LEAST = 20  # rows of a class below which chance cannot be told from a direction
_CHANCE = 2.0
"""Mean squared z-score above which a difference is more than chance: 1 by chance alone, up to 1.8
in peaks of transcription factors, where k-mers overlap and rows repeat; 3 to 64 in promoters."""
ONE_STRAND = 0.05
"""Difference, as a share of the counts, from which the direction matters: at most 0.04 in peaks of
transcription factors and histone marks (GUE), 0.05 to 0.20 in promoters and splice sites."""


def oriented(rows: LabeledSequences) -> float:
    """Give how far k-mers differ from those of the other strand; 0 where chance explains it.

    The difference of the mean counts of 4-mers and of their reverse complements, as a share of the
    counts (Euclidean norms, what chance adds taken off): the largest of the classes, or of all rows
    where labels are numbers. From :data:`ONE_STRAND` on a model should read the rows as they
    are.
    """
    groups = [np.arange(len(rows))]
    if rows.kind == "classes":
        groups = [np.flatnonzero(rows.labels == label) for label in range(rows.outputs)]
    return max((_difference(rows, group[:_ROWS]) for group in groups), default=0.0)


def _difference(rows: LabeledSequences, group: npt.NDArray[np.int64]) -> float:
    if len(group) < _LEAST:
        return 0.0
    forward = np.arange(4**_K, dtype=np.uint64)
    bases = (forward[:, None] >> (np.uint64(2) * np.arange(_K, dtype=np.uint64))) & np.uint64(3)
    turned = ((np.uint64(3) - bases) << (2 * np.arange(_K - 1, -1, -1, dtype=np.uint64))).sum(1)
    counts = np.stack([_counts(rows.sequence(row)) for row in group.tolist()])
    differences = (counts - counts[:, turned])[:, forward < turned]
    mean, chance = differences.mean(0), differences.var(0, ddof=1) / len(group)
    seen = chance > 0
    if not seen.any() or (mean[seen] ** 2 / chance[seen]).mean() < _CHANCE:
        return 0.0
    return float(np.sqrt(max(0.0, (mean**2 - chance).sum()) / (counts.mean(0) ** 2).sum()))


def _counts(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    kmers, known = pack_kmers(codes, _K)
    return np.bincount(kmers[known].astype(np.int64), minlength=4**_K).astype(np.float32)
