from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megabase.errors import InputError
from megabase.evaluate.metrics import measure, measure_table
from megabase.objectives.labels import (
    SCORE_BINS,
    NucleotideLabels,
    _align_strands,
    _count_table,
)

NAMES = ("accuracy", "mcc", "f1", "auroc", "auprc")


def table_size(classes: int) -> int:
    return classes * classes + 2 * classes * SCORE_BINS


class Fixed(torch.nn.Module):
    """Says the same logits whatever it is asked."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


def run(logits: list[Any], labels: list[Any], **options: Any) -> Any:
    given = torch.tensor(logits)
    batch = {"input_ids": torch.zeros(given.shape[:2]), "labels": torch.tensor(labels)}
    return NucleotideLabels(**options)(Fixed(given), batch)


def test_loss_by_hand() -> None:
    logits = [[[0.0, 0.0], [0.0, math.log(3.0)], [5.0, -5.0]]]
    found = run(logits, [[0, 1, -100]])
    # -log 1/2 - log 3/4; the third base has no label.
    assert float(found.loss_sum) == pytest.approx(math.log(2) - math.log(0.75))
    assert float(found.count) == 2
    assert {k: float(v) for k, v in found.metrics.items()} == {"targets": 2, "correct": 2}
    assert found.table is None
    weighted = run(logits, [[0, 1, -100]], class_weights=[2.0, 1.0])
    assert float(weighted.loss_sum) == pytest.approx(2 * math.log(2) - math.log(0.75))
    assert float(weighted.count) == 3
    smooth = run(logits, [[-100, 1, -100]], label_smoothing=0.2)
    want = -0.9 * math.log(0.75) - 0.1 * math.log(0.25)
    assert float(smooth.loss_sum) == pytest.approx(want)


def test_no_label_gives_no_loss_and_a_gradient_of_zero() -> None:
    logits = torch.zeros(1, 3, 2, requires_grad=True)
    found = NucleotideLabels().compare(logits, torch.full((1, 3), -100))
    found.loss_sum.backward()
    assert found.loss_sum.item() == found.count.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_strands_are_averaged_base_by_base() -> None:
    # Row 0 has 3 tokens, row 1 has 4; the other strand is padded on the same side.
    forward = torch.tensor([[1.0, 2.0, 3.0, 90.0], [1.0, 2.0, 3.0, 4.0]])
    other = torch.tensor([[30.0, 20.0, 10.0, 90.0], [40.0, 30.0, 20.0, 10.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).repeat(2, 1)
    logits = torch.cat([forward, other])[..., None]
    found = _align_strands(logits, mask)[..., 0]
    assert found[0, :3].tolist() == [5.5, 11.0, 16.5]
    assert found[1].tolist() == [5.5, 11.0, 16.5, 22.0]
    left = torch.tensor([[90.0, 1.0, 2.0, 3.0], [90.0, 30.0, 20.0, 10.0]])[..., None]
    mask = torch.tensor([[0, 1, 1, 1]]).repeat(2, 1)
    assert _align_strands(left, mask)[0, 1:, 0].tolist() == [5.5, 11.0, 16.5]
    whole = _align_strands(logits[[1, 3]], None)[0, :, 0]
    assert whole.tolist() == found[1].tolist()
    batch = run(logits.expand(-1, -1, 2).tolist(), [[0, 0, 0, -100], [0, 0, 0, 0]])
    assert batch.outputs.shape == (2, 4, 2)


def test_figures_by_hand() -> None:
    # Log odds of class 1: -2, 1, 3 of class 0 and 2, 4 of class 1.
    logits = torch.tensor([[0.0, -2.0], [0.0, 1.0], [0.0, 3.0], [0.0, 2.0], [0.0, 4.0]])
    table = _count_table(logits, torch.tensor([0, 0, 0, 1, 1]))
    assert len(table) == table_size(2)
    found = measure_table([*NAMES, "f1_positive"], 2, table.numpy())
    assert table[:4].tolist() == [1, 2, 0, 2]
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["mcc"] == pytest.approx((2 * 1 - 2 * 0) / math.sqrt(4 * 2 * 3 * 1))
    assert found["f1_positive"] == pytest.approx(4 / 6)
    assert found["f1"] == pytest.approx((2 / 4 + 4 / 6) / 2)
    assert found["auroc"] == pytest.approx(5 / 6)
    assert found["auprc"] == pytest.approx((1 / 1 + 2 / 3) / 2)


@pytest.mark.parametrize("classes", [2, 3])
def test_counts_add_up_to_the_figures_of_the_whole(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 3000)
    logits = (rng.normal(size=(3000, classes)) * 3 + 2 * np.eye(classes)[labels]).astype("float32")
    parts = [
        _count_table(torch.tensor(logits[part]), torch.tensor(labels[part]))
        for part in np.array_split(np.arange(3000), 7)
    ]
    found = measure_table(NAMES, classes, torch.stack(parts).sum(dim=0).numpy())
    ignored = np.concatenate([labels, [-100, -100]])
    padded = np.concatenate([logits, logits[:2]])
    want = measure(NAMES, "nucleotides", padded, ignored)
    for name in ("accuracy", "mcc", "f1"):
        assert found[name] == want[name]
    for name in ("auroc", "auprc"):
        assert found[name] == pytest.approx(want[name], abs=1e-4)


def test_figures_that_are_not_defined() -> None:
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    one = measure_table(NAMES, 2, _count_table(logits, torch.tensor([1, 1])).numpy())
    assert math.isnan(one["auroc"])
    assert one["accuracy"] == 0.5
    none = measure_table(NAMES, 2, np.zeros(table_size(2), dtype=np.int64))
    assert all(math.isnan(value) for value in none.values())
    with pytest.raises(InputError, match="pearson is not a metric of nucleotides"):
        measure_table(["pearson"], 2, np.zeros(table_size(2), dtype=np.int64))


def test_shapes_are_checked() -> None:
    with pytest.raises(InputError, match="every base needs one answer"):
        run([[[0.0, 1.0]]], [[0, 1]])
    with pytest.raises(InputError, match="3 class weights for a model with 2 classes"):
        run([[[0.0, 1.0]]], [[0]], class_weights=[1.0, 1.0, 1.0])
