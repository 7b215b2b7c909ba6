"""Batches of genome windows: codes read from the store, for any window numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megabase.data.hashing import derive_key, draw_bits
from megabase.data.windows import WindowBatch, WindowSource
from megabase.genome import alphabet
from megabase.genome.store import GenomeStore

__all__ = ["CountN", "GenomeWindows"]

_MASK_SEED = 0x6D61736B
"""Sets the seeds of masked positions apart from the draws of the windows."""


class CountN:
    """Count N in windows of a store, for :class:`megabase.data.windows.RandomWindows`.

    Parameters
    ----------
    store
        The genome.
    """

    def __init__(self, store: GenomeStore) -> None:
        self.store = store

    def __call__(
        self, contig: npt.NDArray[np.int32], start: npt.NDArray[np.int64], length: int
    ) -> npt.NDArray[np.int64]:
        """Count N in each window.

        Parameters
        ----------
        contig, start
            (n,) each: contig index and 0-based first position.
        length
            Bases in each window.

        Returns
        -------
        numpy.ndarray
            int64 (n,).
        """
        codes = self.store.fetch_many(contig, start, length)
        codes &= np.uint8(alphabet.BASE_BITS)
        return np.count_nonzero(codes == alphabet.N, axis=1).astype(np.int64)


class GenomeWindows:
    """Windows of a genome by number, as batches of codes.

    A batch is a pure function of (stream, indices, length), the store and the source: see
    :mod:`megabase.data.windows`.

    Parameters
    ----------
    store
        The genome.
    source
        Says which windows.
    extra
        Bases beyond the model's input positions that the objective needs (its ``extra_bases``): 1
        for next-token prediction, 0 for masked bases.
    """

    def __init__(self, store: GenomeStore, source: WindowSource, extra: int = 1) -> None:
        self.store = store
        self.source = source
        self.extra = extra

    def epoch_size(self, length: int) -> int | None:
        """Count the windows of one epoch at a length; None when there is no such thing."""
        return self.source.epoch_size(length, self.extra)

    def batch(self, stream: int, indices: npt.NDArray[np.int64], length: int) -> dict[str, Tensor]:
        """Read the windows with these numbers.

        Parameters
        ----------
        stream
            Stage of the length warm-up.
        indices
            int64 (n,): running numbers inside the stage.
        length
            Positions that the model reads.

        Returns
        -------
        dict
            ``codes`` uint8 (n, length + extra), forward strand, soft-mask bit kept, padding code
            outside the contig; ``reverse`` bool (n,), rows to read as their reverse complement (on
            the device, by :func:`megabase.data.augment.reverse_complement_codes`); ``mask_seed``
            int64 (n,), random bits that belong to the sequence, for objectives that mask.
        """
        windows = self.source.draw(stream, indices, length, self.extra)
        codes = self.store.fetch_many(windows.contig, windows.start, windows.length)
        _pad_outside(codes, windows)
        key = derive_key(self.source.seed, stream, _MASK_SEED)
        return {
            "codes": torch.from_numpy(codes),
            "reverse": torch.from_numpy(windows.reverse),
            "mask_seed": torch.from_numpy(draw_bits(key, indices).view(np.int64)),
        }


def _pad_outside(codes: npt.NDArray[np.uint8], windows: WindowBatch) -> None:
    """Overwrite positions outside [lower, upper) with padding; few windows have any."""
    stop = windows.start + windows.length
    if windows.upper is not None:
        for row in np.flatnonzero(windows.upper < stop).tolist():
            codes[row, max(int(windows.upper[row] - windows.start[row]), 0) :] = alphabet.PAD
    if windows.lower is not None:
        for row in np.flatnonzero(windows.lower > windows.start).tolist():
            codes[row, : int(windows.lower[row] - windows.start[row])] = alphabet.PAD
