"""Many sequences of many lengths through a model, in bounded batches, results in input order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megabase.genome.alphabet import PAD

__all__ = ["run_batched"]

_Result = TypeVar("_Result")
_Codes = NDArray[np.uint8]


def run_batched(
    items: Sequence[_Codes],
    function: Callable[[_Codes, NDArray[np.int64]], Sequence[_Result]],
    *,
    batch_tokens: int = 1 << 16,
    pad: bool = False,
) -> list[_Result]:
    """Run a function over batches of sequences.

    Longer sequences go first, so that running out of memory happens at once or never.

    Parameters
    ----------
    items
        Base codes, uint8 (length,) each.
    function
        Called with codes (rows, length) and the numbers of these rows in `items` (rows,); gives
        one result for each row.
    batch_tokens
        Most positions of a batch; a longer sequence is a batch of its own.
    pad
        Whether rows of different lengths may share a batch, filled up on the right with padding
        codes. Right for causal models only: a padded position never changes an earlier one. When
        False, all rows of a batch have the same length and nothing is padded.

    Returns
    -------
    list
        Results in the order of `items`.
    """
    lengths = np.array([len(item) for item in items], dtype=np.int64)
    results: list[_Result | None] = [None] * len(items)
    order = np.argsort(-lengths, kind="stable")
    low = 0
    while low < len(order):
        width = int(lengths[order[low]])
        most = max(1, batch_tokens // max(width, 1))
        high = low + 1
        while high < len(order) and high - low < most:
            length = int(lengths[order[high]])
            # Padding up to a quarter costs less than another batch; more than that does not.
            if length != width and not (pad and length >= 0.75 * width):
                break
            high += 1
        rows = order[low:high]
        codes = np.full((len(rows), width), PAD, dtype=np.uint8)
        for row, number in zip(codes, rows.tolist(), strict=True):
            row[: lengths[number]] = items[number]
        for number, result in zip(rows.tolist(), function(codes, rows), strict=True):
            results[number] = result
        low = high
    return [result for result in results if result is not None]
