"""Confidence intervals of a figure, by drawing the test rows again."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from megabase.evaluate import metrics

__all__ = ["interval"]


@lru_cache(maxsize=4096)
def interval(
    runs: tuple[tuple[str, str], ...], kind: str, metric: str, resamples: int
) -> tuple[float | None, float | None]:
    """Give the 95 % interval of the mean over runs, by drawing test rows again.

    Runs that were tested on the same rows get the same draws, so the interval says how much the
    figure would move with other test rows, the models being what they are.

    Parameters
    ----------
    runs
        (run folder, digest of its test rows) pairs.
    kind
        What the labels are.
    metric
        Which figure.
    resamples
        Number of draws.

    Returns
    -------
    low, high : float or None
        Percentiles 2.5 and 97.5; None where outputs are missing or labels are many.
    """
    held: list[tuple[int, int, Callable[[Any], float]]] = []
    for folder, digest in runs:
        file = Path(folder) / "outputs.npz"
        if not file.is_file():
            return None, None
        with np.load(file) as kept:
            outputs, labels = kept["test"], kept["test_labels"]
        if labels.ndim > 1 and labels.shape[1] > 16:  # a thousand rankings for each draw
            return None, None
        held.append(
            (zlib.crc32(digest.encode()), len(labels), _figure(kind, metric, outputs, labels))
        )
    drawn: list[float] = []
    for number in range(resamples):
        values: list[float] = []
        for seed, rows, figure in held:
            chosen = np.random.default_rng((seed, number)).integers(0, rows, rows)
            values.append(figure(chosen))
        drawn.append(sum(values) / len(values))
    known = np.array(drawn)[~np.isnan(drawn)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _figure(kind: str, metric: str, outputs: Any, labels: Any) -> Callable[[Any], float]:
    """Give a function from rows to a figure over them, quick where counts are enough."""
    if kind == "classes" and metric in metrics.COUNTED:
        classes = outputs.shape[1]
        pairs = labels * classes + outputs.argmax(axis=1)

        def counted(rows: Any) -> float:
            table = np.bincount(pairs[rows], minlength=classes * classes)
            return metrics.COUNTED[metric](table.reshape(classes, classes).astype(np.float64))

        return counted
    return lambda rows: metrics.measure([metric], kind, outputs[rows], labels[rows])[metric]
