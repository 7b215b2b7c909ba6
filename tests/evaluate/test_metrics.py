from __future__ import annotations

import math

import numpy as np
import pytest

from megabase.errors import InputError
from megabase.evaluate.metrics import (
    METRICS,
    _by_label,
    confusion,
    default_metrics,
    higher_is_better,
    measure,
    median_by_group,
)

# Truth 0 0 0 1 1; said 0 0 1 1 0: TP 1, FN 1, FP 1, TN 2.
LOGITS = np.array([[2.0, 0.0], [1.0, 0.5], [0.0, 3.0], [0.0, 1.0], [1.0, 0.8]])
LABELS = np.array([0, 0, 0, 1, 1])


def one(name: str, outputs: np.ndarray = LOGITS, labels: np.ndarray = LABELS) -> float:
    return measure([name], "classes", outputs, labels)[name]


def test_two_classes_by_hand() -> None:
    assert confusion(LOGITS, LABELS).tolist() == [[2, 1], [1, 1]]
    assert one("accuracy") == pytest.approx(3 / 5)
    assert one("mcc") == pytest.approx((1 * 2 - 1 * 1) / math.sqrt(2 * 2 * 3 * 3))
    assert one("f1_positive") == pytest.approx(2 / 4)
    assert one("f1") == pytest.approx((4 / 6 + 2 / 4) / 2)
    # Scores -2, -0.5, 3 of class 0 and 1, -0.2 of class 1: 4 of 6 pairs are in order.
    assert one("auroc") == pytest.approx(4 / 6)
    # By falling score: 3 (no), 1 (yes, 1 of 2), -0.2 (yes, 2 of 3).
    assert one("auprc") == pytest.approx((1 / 2 + 2 / 3) / 2)


BY_HAND = {
    # The mean of two labels. Scores 1, -1, 2, -2 for yes, no, no, yes: TP 1, TN 1, FP 1, FN 1; one
    # of four pairs in order; by falling score no, yes (1 of 2), no, yes (2 of 4). And 5, -5, 3 for
    # no, yes, yes, one unknown: TP 1, FP 1, FN 1; no pair in order; no, yes (1 of 2), yes (2 of 3).
    "accuracy": (1 / 2 + 1 / 3) / 2,
    "mcc": (0 - 1 / 2) / 2,
    "f1": (1 / 2 + 1 / 4) / 2,
    "f1_weighted": (1 / 2 + (2 / 3 * 1 / 2 + 1 / 3 * 0)) / 2,
    "f1_positive": (1 / 2 + 1 / 2) / 2,
    "auroc": (1 / 4 + 0) / 2,
    "auprc": ((1 / 2 + 2 / 4) / 2 + (1 / 2 + 2 / 3) / 2) / 2,
    # Outputs 1, 3, 2 and 0, 0, 6 against 1, 2, 3 and 0, 3, 3: squares 0, 1, 1 and 0, 9, 9.
    "mse": (2 / 3 + 18 / 3) / 2,
    # Deviations -1, 1, 0 and -1, 0, 1: 1 / 2. And -2, -2, 4 and -2, 1, 1: 6 / sqrt(24 * 6).
    "pearson": (1 / 2 + 1 / 2) / 2,
    # Places 1, 3, 2 and 1, 2, 3: 1 / 2. And 1.5, 1.5, 3 and 1, 2.5, 2.5: 0.75 / 1.5.
    "spearman": (1 / 2 + 1 / 2) / 2,
}


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_of_several_labels_by_hand(name: str) -> None:
    if "regression" in METRICS[name].kinds:
        kind = "regression"
        outputs = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 6.0]])
        labels = np.array([[1.0, 0.0], [2.0, 3.0], [3.0, 3.0]])
    else:
        kind = "multi_label"
        outputs = np.array([[1.0, 5.0], [-1.0, -5.0], [2.0, 1.0], [-2.0, 3.0]])
        labels = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, np.nan], [1.0, 1.0]])
    assert measure([name], kind, outputs, labels)[name] == pytest.approx(BY_HAND[name])


def test_ranks_of_three_classes_by_hand() -> None:
    shares = [[0.55, 0.35, 0.1], [0.2, 0.5, 0.3], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]
    logits, true = np.log(shares), np.array([0, 1, 1, 2])
    # Classes 0 and 2 are in order. Class 1: yes 0.5 and 0.3, no 0.35 and 0.2.
    assert one("auroc", logits, true) == pytest.approx((1 + 3 / 4 + 1) / 3)
    assert one("auprc", logits, true) == pytest.approx((1 + (1 + 2 / 3) / 2 + 1) / 3)


def test_three_classes_by_hand() -> None:
    said, true = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])
    logits = np.eye(3)[said]
    assert one("accuracy", logits, true) == 0.75
    assert one("f1", logits, true) == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    # c s - sum p t = 3 * 4 - (1 * 1 + 1 * 2 + 2 * 1); roots of 16 - (1 + 1 + 4), 16 - (1 + 4 + 1).
    assert one("mcc", logits, true) == pytest.approx(7 / 10)
    with pytest.raises(InputError, match="two classes"):
        one("f1_positive", logits, true)


def test_ranks_survive_large_logits() -> None:
    logits = np.array([[0.0, 50.0], [0.0, 60.0], [0.0, 70.0], [0.0, 55.0]])
    assert one("auroc", logits, np.array([0, 1, 1, 0])) == 1.0
    assert one("auroc", logits, np.array([1, 0, 0, 1])) == 0.0
    tied = np.array([[0.0, 1.0], [0.0, 1.0]])
    assert one("auroc", tied, np.array([0, 1])) == 0.5


def test_one_class_only() -> None:
    labels = np.zeros(5, dtype=np.int64)
    assert one("mcc", LOGITS, labels) == 0.0
    assert math.isnan(one("auroc", LOGITS, labels))


def test_several_labels_are_measured_one_by_one() -> None:
    outputs = np.array([[1.0, 5.0], [-1.0, -5.0], [2.0, 1.0]])
    labels = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, np.nan]])
    found = measure(["accuracy", "auroc"], "multi_label", outputs, labels)
    assert found == {"accuracy": 0.5, "auroc": 0.5}
    labels[:, 1] = [0.0, 0.0, np.nan]  # one answer only: no AUROC, left out of the mean
    assert measure(["auroc"], "multi_label", outputs, labels)["auroc"] == 1.0


def test_numbers_by_hand() -> None:
    outputs, labels = np.array([[1.0], [2.0], [4.0]]), np.array([[1.0], [3.0], [2.0]])
    found = measure(["pearson", "spearman", "mse"], "regression", outputs, labels)
    # Deviations (-4/3, -1/3, 5/3) and (-1, 1, 0): sum of products 1, of squares 14/3 and 2.
    assert found["pearson"] == pytest.approx(1 / math.sqrt(14 / 3 * 2), rel=1e-6)
    assert found["spearman"] == pytest.approx(0.5, rel=1e-6)
    assert found["mse"] == pytest.approx(5 / 3)
    tied = np.array([[1.0], [1.0], [5.0]])  # places 1.5, 1.5, 3 against 1, 3, 2
    expected = (-0.5 * -1 - 0.5 * 1) / math.sqrt(1.5 * 2)
    assert measure(["spearman"], "regression", tied, labels)["spearman"] == pytest.approx(expected)
    same = measure(["pearson"], "regression", np.ones((3, 1)), labels)
    assert math.isnan(same["pearson"])


def test_names() -> None:
    for kind in ("classes", "multi_label", "regression"):
        names = default_metrics(kind)
        measure(names, kind, LOGITS, LABELS if kind == "classes" else (LOGITS > 0.9).astype(float))
    assert higher_is_better("mcc")
    assert not higher_is_better("mse")
    assert not higher_is_better("loss")
    with pytest.raises(InputError, match="there is no metric 'acc'"):
        measure(["acc"], "classes", LOGITS, LABELS)
    with pytest.raises(InputError, match="pearson is not a metric of classes"):
        measure(["pearson"], "classes", LOGITS, LABELS)


def test_weighted_f1_by_hand() -> None:
    said, true = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])
    # F1 of the classes: 1, 2/3, 2/3; they have 1, 2 and 1 rows.
    assert one("f1_weighted", np.eye(3)[said], true) == pytest.approx((1 + 2 * 2 / 3 + 2 / 3) / 4)


def test_median_by_group_by_hand() -> None:
    labels = np.array([[1.0, 0, 1, 1], [0, 1, 0, 1], [0, 0, math.nan, 1]])
    outputs = np.array([[3.0, 2, 1, 0], [2, 1, 2, 0], [1, 3, 9, 0]])
    # By label: 1 (first), 0 (second), 0 (third, two rows known), none (fourth: all yes).
    assert _by_label("auroc", outputs, labels)[:3] == [1.0, 0.0, 0.0]
    found = median_by_group("auroc", outputs, labels, {"A": (0, 2), "B": (2, 4), "C": (3, 4)})
    assert (found["A"], found["B"]) == (0.5, 0.0)
    assert math.isnan(found["C"])
