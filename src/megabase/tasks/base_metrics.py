"""Metrics of a class for every nucleotide, from counts: memory does not grow with the genome."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from megabase.objectives.nucleotides import SCORE_BINS
from megabase.tasks.metrics import COUNTED, check

__all__ = ["measure_table"]

_Counts = npt.NDArray[np.floating[Any]]


def measure_table(
    names: Iterable[str], classes: int, table: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Compute metrics from the table of :func:`megabase.objectives.nucleotides.count_table`.

    Parameters
    ----------
    names
        Metrics of the kind ``nucleotides``.
    classes
        Number of classes.
    table
        int64 (size,), summed over the whole data set.

    Returns
    -------
    dict
        Name to figure, as :func:`megabase.tasks.metrics.measure` gives it for the same outputs; for
        AUROC and AUPRC, log odds less than 0.001 apart count as equal. NaN where a figure is not
        defined.

    Raises
    ------
    MetricError
        For a metric that is unknown or not for nucleotides.
    """
    names = tuple(names)
    check(names, "nucleotides")
    confusion = table[: classes * classes].reshape(classes, classes)
    histograms = table[classes * classes :].reshape(classes, 2, SCORE_BINS).astype(np.float64)
    found: dict[str, float] = {}
    for name in names:
        if not confusion.sum():
            found[name] = math.nan
        elif name in COUNTED:
            found[name] = COUNTED[name](confusion)
        else:
            figure = _auroc if name == "auroc" else _auprc
            # Of two classes the second is the positive one; of more, each is, in turn.
            chosen = histograms[1:] if classes == 2 else histograms
            each = [figure(no, yes) for no, yes in chosen if no.any() and yes.any()]
            found[name] = float(np.mean(each)) if each else math.nan
    return found


def _auroc(no: _Counts, yes: _Counts) -> float:
    """Share of (yes, no) pairs in the right order; equal ones count half."""
    below = np.cumsum(no) - no
    return float((yes * (below + no / 2)).sum() / (yes.sum() * no.sum()))


def _auprc(no: _Counts, yes: _Counts) -> float:
    """Average precision: the mean over yes of the precision at its score."""
    yes, no = yes[::-1], no[::-1]
    hits, said = np.cumsum(yes), np.cumsum(yes + no)
    seen = yes > 0
    return float((yes[seen] * hits[seen] / said[seen]).sum() / yes.sum())
