from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megabase.errors import InputError
from megabase.objectives.labels import SequenceLabels


def fixed(logits: Tensor) -> Any:
    """A model that gives these logits."""
    return lambda **inputs: SimpleNamespace(logits=logits)


def run(objective: SequenceLabels, logits: Tensor, labels: Tensor, views: int = 1) -> Any:
    batch = {"input_ids": torch.zeros(views * len(labels), 3).long(), "labels": labels}
    return objective(fixed(logits), batch)


def test_classes_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    out = run(SequenceLabels("classes"), logits, torch.tensor([0, 1]))
    assert out.loss_sum.item() == pytest.approx(-math.log(0.75) - math.log(0.5))
    assert out.count.item() == 2
    assert out.metrics["targets"].item() == 2
    assert out.metrics["correct"].item() == 1
    assert torch.equal(out.outputs, logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
def test_mean_is_that_of_torch(smoothing: float, weights: list[float] | None) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 3), torch.randint(0, 3, (9,))
    out = run(
        SequenceLabels("classes", class_weights=weights, label_smoothing=smoothing), logits, labels
    )
    weight = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
    assert (out.loss_sum / out.count).item() == pytest.approx(expected.item(), rel=1e-6)


def test_splitting_a_batch_changes_nothing() -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(8, 2), torch.randint(0, 2, (8,))
    objective = SequenceLabels("classes", class_weights=[1.0, 4.0])
    whole = run(objective, logits, labels)
    parts = [run(objective, logits[a], labels[a]) for a in (slice(0, 3), slice(3, 8))]
    assert sum(p.loss_sum.item() for p in parts) == pytest.approx(whole.loss_sum.item(), rel=1e-6)
    assert sum(p.count.item() for p in parts) == whole.count.item()


def test_several_labels_with_unknown_ones() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0]])
    labels = torch.tensor([[1.0, math.nan], [0.0, 0.0]])
    out = run(SequenceLabels("multi_label"), logits, labels)
    expected = math.log(2) + math.log(1 + math.e) + math.log(1 + math.exp(-1))
    assert out.loss_sum.item() == pytest.approx(expected, rel=1e-6)
    assert out.count.item() == out.metrics["targets"].item() == 3
    assert out.metrics["correct"].item() == 1


def test_positive_weights_of_several_labels() -> None:
    logits, labels = torch.tensor([[0.3]]), torch.tensor([[1.0]])
    plain = run(SequenceLabels("multi_label"), logits, labels)
    heavy = run(SequenceLabels("multi_label", class_weights=[8.0]), logits, labels)
    assert heavy.loss_sum.item() == pytest.approx(8 * plain.loss_sum.item())


def test_regression() -> None:
    logits = torch.tensor([[1.0], [2.0]])
    out = run(SequenceLabels("regression"), logits, torch.tensor([[0.0], [4.0]]))
    assert (out.loss_sum.item(), out.count.item()) == (5.0, 2.0)
    assert "correct" not in out.metrics


def test_two_strands_are_averaged() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0]], requires_grad=True)
    out = run(SequenceLabels("classes"), logits, torch.tensor([0, 1]), views=2)
    assert out.outputs.tolist() == [[1.0, 1.0], [0.0, 2.0]]
    out.loss_sum.backward()
    assert logits.grad is not None


def test_double_sigmoid_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0]])
    out = run(SequenceLabels("classes", double_sigmoid=True), logits, torch.tensor([1]))
    # The sigmoid of 0 is 0.5, taken for a logit: -log sigmoid(0.5).
    assert out.loss_sum.item() == pytest.approx(math.log(1 + math.exp(-0.5)))


def test_double_sigmoid_is_that_of_the_cnn() -> None:
    modeling = pytest.importorskip("megabase.models.cnn")
    configuration = pytest.importorskip("megabase.models.cnn")
    torch.manual_seed(0)
    config = configuration.GenomicCNNConfig(max_length=60, double_sigmoid=True, num_labels=2)
    model = modeling.GenomicCNNForSequenceClassification(config).eval()
    ids, labels = torch.randint(7, 11, (3, 60)), torch.tensor([0, 1, 1])
    out = SequenceLabels("classes", double_sigmoid=True)(
        model, {"input_ids": ids, "labels": labels}
    )
    expected = model(ids, labels=labels).loss
    assert (out.loss_sum / out.count).item() == pytest.approx(expected.item(), rel=1e-6)


def test_refusals() -> None:
    with pytest.raises(InputError, match="not for regression"):
        SequenceLabels("regression", class_weights=[1.0])
    with pytest.raises(InputError, match="two classes, not of 3"):
        run(SequenceLabels("classes", double_sigmoid=True), torch.zeros(1, 3), torch.tensor([0]))
    with pytest.raises(InputError, match="3 class weights for a model with 2"):
        run(
            SequenceLabels("classes", class_weights=[1, 1, 1]), torch.zeros(1, 2), torch.tensor([0])
        )
    with pytest.raises(InputError, match=r"shape \(1, 2\) for labels of shape \(3,\)"):
        run(SequenceLabels("classes"), torch.zeros(1, 2), torch.tensor([0, 1, 0]))


def test_mask_reaches_the_model() -> None:
    seen: dict[str, Tensor] = {}

    class Model(nn.Module):
        def forward(self, **inputs: Tensor) -> SimpleNamespace:
            seen.update(inputs)
            return SimpleNamespace(logits=torch.zeros(2, 2))

    batch = {"input_ids": torch.zeros(2, 3).long(), "labels": torch.tensor([0, 1])}
    SequenceLabels("classes")(Model(), batch)
    assert set(seen) == {"input_ids"}
    SequenceLabels("classes")(Model(), {**batch, "attention_mask": torch.ones(2, 3)})
    assert set(seen) == {"input_ids", "attention_mask"}
