"""How well scores of variants find the positive ones, with intervals from resampled groups.

Ties count half in AUROC and in pairs; average precision takes tied scores as one step, as
scikit-learn does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megabase.evaluate.metrics import auprc_of_counts, auroc_of_counts

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

VARIANT_METRICS = {
    "auprc_by_chromosome": "AUPRC by chromosome",
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "auprc_macro": "AUPRC, mean of subsets",
    "auroc_macro": "AUROC, mean of subsets",
    "pairwise": "pairs in order",
}
"""Metrics by name, and as tables show them. By chromosome: the mean over chromosomes, each weighing
as many rows as it has (TraitGym); pairs are those of a positive and a negative of one match group;
a chromosome or subset without both labels does not count."""


class Estimate(NamedTuple):
    """A metric with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


class _Part(NamedTuple):
    """Rows in the order of their scores."""

    rows: _Ints
    starts: _Ints
    """Index of the first row of each score."""
    label: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: _Ints, score: _Floats, label: NDArray[np.bool_]) -> _Part:
        rows = rows[np.argsort(score[rows], kind="stable")]
        new = np.append(True, np.diff(score[rows]) != 0)
        return cls(rows, np.flatnonzero(new), label[rows])

    def value(self, weight: _Floats, metric: Callable[[_Floats, _Floats], float]) -> float:
        """Compute a metric of counts (negative, positive) by rising score."""
        own = weight[self.rows]
        yes = np.add.reduceat(own * self.label, self.starts)
        no = np.add.reduceat(own * ~self.label, self.starts)
        return metric(no, yes) if no.any() and yes.any() else math.nan


def numbered(names: Iterable[str]) -> _Ints:
    """Give each name the number of its place among the distinct ones."""
    return np.unique(np.asarray(names), return_inverse=True)[1].reshape(-1).astype(np.int64)


def measure_variants(
    score: _Floats, label: NDArray[np.bool_], chromosome: _Ints, subset: _Ints | None,
    group: _Ints, resamples: int,
) -> dict[str, Estimate]:  # fmt: skip
    """Measure scores (n,), higher for the positive, by every metric; NaN scores are left out.

    Each resample draws as many groups as there are, with replacement; the same groups are drawn for
    every score of the same rows. A group that is all alone has no pairs.
    """
    known = np.flatnonzero(np.isfinite(score))

    def parts(code: _Ints) -> list[_Part]:
        split = [known[code[known] == number] for number in np.unique(code[known])]
        # One without both labels has no value in any resample.
        both = [rows for rows in split if label[rows].any() and not label[rows].all()]
        return [_Part.of(rows, score, label) for rows in both]

    chromosomes, whole = parts(chromosome), parts(np.zeros_like(chromosome))
    subsets = parts(subset) if subset is not None else []
    wins, pairs = _pairs(score, label, group, known)

    def all_of(by_group: _Floats) -> list[float]:
        weight = by_group[group]

        def mean(of: list[_Part], metric: Callable[..., float], by_rows: bool = False) -> float:
            values = np.array([part.value(weight, metric) for part in of])
            rows = np.array([weight[part.rows].sum() if by_rows else 1.0 for part in of])
            seen = ~np.isnan(values)
            return float((values * rows)[seen].sum() / rows[seen].sum()) if seen.any() else math.nan

        count = float(by_group @ pairs)
        return [
            mean(chromosomes, auprc_of_counts, True), mean(whole, auprc_of_counts),
            mean(whole, auroc_of_counts), mean(subsets, auprc_of_counts),
            mean(subsets, auroc_of_counts), float(by_group @ wins) / count if count else math.nan,
        ]  # fmt: skip

    size, rng = int(group.max()) + 1, np.random.default_rng(0)
    values = all_of(np.ones(size))
    drawn = np.array([
        all_of(np.bincount(rng.integers(0, size, size), minlength=size).astype(np.float64))
        for _ in range(resamples)
    ]).reshape(resamples, len(values))  # fmt: skip
    found = {}
    for name, value, column in zip(VARIANT_METRICS, values, drawn.T, strict=True):
        ends = [math.nan, math.nan]
        if not math.isnan(value) and not np.isnan(column).all() and resamples:
            ends = np.nanpercentile(column, [2.5, 97.5]).tolist()
        found[name] = Estimate(value, *ends)
    return found


def _pairs(
    score: _Floats, label: NDArray[np.bool_], group: _Ints, known: _Ints
) -> tuple[_Floats, _Floats]:
    """Count, by group, the pairs in the right order (ties half) and all pairs."""
    wins, pairs = (np.zeros(int(group.max()) + 1) for _ in range(2))
    order = known[np.argsort(group[known], kind="stable")]
    cuts = np.flatnonzero(np.diff(group[order])) + 1
    for rows in np.split(order, cuts):
        if len(rows) > 1:
            apart = score[rows][label[rows]][:, None] - score[rows][~label[rows]]
            wins[group[rows[0]]] = ((np.sign(apart) + 1) / 2).sum()
            pairs[group[rows[0]]] = apart.size
    return wins, pairs
