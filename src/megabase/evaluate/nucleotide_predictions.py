"""What a model says of every labelled base of a genome, beside the truth, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megabase.data.labeled import IGNORED, LabeledSequences
from megabase.genome.files import atomic_file

__all__ = ["NucleotidePredictions"]


class NucleotidePredictions:
    """Collects the outputs for windows of a genome, and writes them.

    Parameters
    ----------
    windows
        Of the kind ``nucleotides``, cut out of a genome.
    left
        Whether the rows of a batch are padded on the left.
    """

    def __init__(self, windows: LabeledSequences, *, left: bool = False) -> None:
        self._windows, self._left = windows, left
        self._rows: list[int] = []
        self._parts: list[npt.NDArray[np.float32]] = []

    def __call__(self, rows: npt.NDArray[np.int64], found: Any) -> None:
        """Take the ``outputs`` (n, length, K) of the windows with these numbers."""
        probabilities = found.outputs.softmax(dim=2).float().cpu().numpy()
        width = probabilities.shape[1]
        for row, values in zip(rows.tolist(), probabilities, strict=True):
            size = min(int(self._windows.lengths[row]), width)
            start = width - size if self._left else 0
            self._rows.append(row)
            self._parts.append(values[start : start + size].astype(np.float32))

    def write(self, path: Path) -> None:
        """Write one row for each labelled base, replacing an earlier file.

        Columns: ``contig``, ``position`` (0-based), ``label`` (class name) and ``p_CLASS``, the
        probability of each class.
        """
        import polars as pl

        windows = self._windows
        contigs: list[str] = []
        positions: list[npt.NDArray[np.int64]] = []
        labels: list[npt.NDArray[np.int16]] = []
        chosen: list[npt.NDArray[np.float32]] = []
        counts: list[int] = []
        for row, values in zip(self._rows, self._parts, strict=True):
            interval = (windows.text.intervals or ())[int(windows.rows[row])]
            first = int(windows.offsets[row])
            truth = windows.labels[first : first + len(values)]
            known = np.flatnonzero(truth != IGNORED)
            contigs.append(interval.contig)
            counts.append(len(known))
            positions.append(interval.start + known)
            labels.append(truth[known])
            chosen.append(values[known])
        names = np.array(windows.classes)
        table = np.concatenate(chosen)
        frame = pl.DataFrame(
            {
                "contig": np.repeat(np.array(contigs), counts),
                "position": np.concatenate(positions),
                "label": names[np.concatenate(labels)],
                **{f"p_{name}": table[:, i] for i, name in enumerate(windows.classes)},
            }
        )
        with atomic_file(path, overwrite=True) as file:
            frame.write_parquet(file)
