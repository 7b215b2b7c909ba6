"""Metrics of variant scores against counting pairs, scikit-learn and a plain bootstrap."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from megabase.evaluate.metrics import VARIANT_METRICS, measure_variants


def made_up() -> tuple[np.ndarray, ...]:
    """Scores with ties and gaps, on chromosomes and subsets of which one has negatives alone."""
    rng = np.random.default_rng(1)
    label = np.tile([True, False, False], 40)
    score = np.round(rng.normal(size=120) + label, 1)
    score[5] = math.nan
    chromosome = np.repeat([0, 1, 2, 3], [30, 45, 42, 3])
    label[117] = False
    return score, label, chromosome, rng.integers(0, 3, 120), np.repeat(np.arange(40), 3)


def test_values_are_those_of_plain_counting() -> None:
    score, label, chromosome, subset, group = made_up()
    found = measure_variants(score, label, chromosome, subset, group, 0)
    ok = np.isfinite(score)
    score, label, chromosome, subset, group = (
        x[ok] for x in (score, label, chromosome, subset, group)
    )
    assert found["auroc"].value == pytest.approx(roc_auc_score(label, score))
    assert found["auprc"].value == pytest.approx(average_precision_score(label, score))
    rows, sums = 0, 0.0
    for one in range(3):  # the fourth has no positive row
        own = chromosome == one
        rows += own.sum()
        sums += own.sum() * average_precision_score(label[own], score[own])
    assert found["auprc_by_chromosome"].value == pytest.approx(sums / rows)
    for name, function in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        each = [function(label[subset == s], score[subset == s]) for s in range(3)]
        assert found[f"{name}_macro"].value == pytest.approx(np.mean(each))
    right = pairs = 0.0
    for one, other in itertools.product(range(len(score)), repeat=2):
        if label[one] and not label[other] and group[one] == group[other]:
            pairs += 1
            right += (score[one] > score[other]) + 0.5 * (score[one] == score[other])
    assert found["pairwise"].value == pytest.approx(right / pairs)
    assert all(math.isnan(one.low) for one in found.values())


def test_intervals_draw_whole_groups_and_are_the_same_twice() -> None:
    score, label, chromosome, subset, group = made_up()
    found = measure_variants(score, label, chromosome, subset, group, 300)
    assert found == measure_variants(score, label, chromosome, subset, group, 300)
    rng, drawn = np.random.default_rng(0), []
    for _ in range(300):
        rows = np.concatenate([np.flatnonzero(group == g) for g in rng.integers(0, 40, 40)])
        rows = rows[np.isfinite(score[rows])]
        drawn.append(roc_auc_score(label[rows], score[rows]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found["auroc"][1:] == pytest.approx((low, high))
    assert list(found) == list(VARIANT_METRICS)
    alone = measure_variants(score, label, chromosome, None, np.arange(120), 50)
    assert math.isnan(alone["pairwise"].value)
    assert math.isnan(alone["auprc_macro"].value)
