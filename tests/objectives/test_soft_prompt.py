from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from megabase.errors import InputError
from megabase.objectives.labels import LabelTokens

LOGITS = torch.tensor([[math.log(4.0), math.log(2.0), math.log(2.0)], [0.0, 3.0, 1.0]])


def run(objective: LabelTokens, logits: Tensor, labels: list[int], views: int = 1) -> Any:
    batch = {
        "input_ids": torch.zeros(views * len(labels), 2).long(),
        "labels": torch.tensor(labels),
    }
    return objective(lambda **inputs: SimpleNamespace(token_logits=logits), batch)  # pyright: ignore


def test_the_softmax_runs_over_all_tokens() -> None:
    out = run(LabelTokens([0, 2]), LOGITS, [0, 1])
    second = math.log(1 + math.exp(3) + math.exp(1)) - 1
    assert out.loss_sum.item() == pytest.approx(math.log(2) + second)
    assert out.count.item() == 2
    # The second answer is the better letter, but another token is more likely still.
    assert (out.metrics["correct"].item(), out.metrics["strict"].item()) == (2, 1)


def test_or_over_the_letters_alone() -> None:
    out = run(LabelTokens([0, 2], restricted=True), LOGITS, [1, 1])
    expected = math.log(3.0) + math.log(1 + math.exp(-1))
    assert out.loss_sum.item() == pytest.approx(expected)
    assert torch.equal(out.outputs, LOGITS)


def test_both_strands_are_averaged() -> None:
    out = run(LabelTokens([0, 1]), torch.cat([LOGITS, LOGITS + 2]), [0, 1], views=2)
    torch.testing.assert_close(out.outputs, LOGITS + 1)


def test_wrong_label_tokens() -> None:
    with pytest.raises(InputError, match="two or more different"):
        LabelTokens([7, 7])
    with pytest.raises(InputError, match=r"for labels of shape \(3,\)"):
        run(LabelTokens([0, 1]), LOGITS, [0, 1, 0])
