"""Target blocks: which bases are scored, and the windows of DNA around them.

Blocks tile regions, or are spread evenly over them; a model and its baselines are scored on the
same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megabase.genome.store import Genome

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Blocks:
    """Segments of target bases, in the order of the genome."""

    contig: npt.NDArray[np.int32]
    """Index of the contig in the genome store, (n,)."""
    start: _Ints
    """0-based, (n,)."""
    end: _Ints
    """Half-open, (n,)."""

    def __len__(self) -> int:
        return int(self.start.size)


class _Rows(NamedTuple):
    """Some blocks with the DNA around them."""

    number: _Ints
    """Number of each block, (n,)."""
    codes: npt.NDArray[np.uint8]
    """Base codes, (n, length); padding outside the contig."""
    lead: int
    """Position of the first target in every row."""
    wanted: npt.NDArray[np.bool_]
    """Which columns from ``lead`` on belong to the block, (n, targets)."""


def read_rows(
    store: Genome,
    blocks: Blocks,
    *,
    targets: int,
    before: int,
    after: int = 0,
    bases: int = 1 << 16,
) -> Iterator[_Rows]:
    """Read blocks with DNA before and after the widest, `targets`, about `bases` at a time.

    There are fewer bases in front where the contig begins sooner, and padding behind its end.
    """
    lead = np.minimum(blocks.start, before)
    for width in np.unique(lead).tolist():
        chosen = np.flatnonzero(lead == width)
        length = width + targets + after
        step = max(1, bases // length)
        for low in range(0, chosen.size, step):
            index = chosen[low : low + step]
            start = blocks.start[index]
            codes = store.fetch_many(blocks.contig[index], start - width, length)
            size = (blocks.end[index] - start)[:, None]
            yield _Rows(index, codes, width, np.arange(targets) < size)
