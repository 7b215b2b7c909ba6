from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megabase.errors import InputError
from megabase.objectives.labels import InContext


def batch() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([[0, 1, 2, 1]]),
        "places": torch.tensor([[1, 3]]),
        "answers": torch.tensor([[1, 0]]),
        "labels": torch.tensor([0]),
    }


def logits() -> torch.Tensor:
    found = torch.zeros(1, 4, 3)
    found[0, 1, 2] = math.log(2.0)  # the example's answer: 2 of 4
    found[0, 3, 0] = math.log(6.0)  # the question's answer: 6 of 8
    return found


def test_losses_are_read_at_the_separators() -> None:
    model: Any = lambda **inputs: SimpleNamespace(logits=logits())  # noqa: E731
    every = InContext([0, 2], every_answer=True)(model, batch())
    assert every.loss_sum.item() == pytest.approx(math.log(2) + math.log(8 / 6))
    assert every.count.item() == 2
    only = InContext([0, 2])(model, batch())
    assert only.loss_sum.item() == pytest.approx(math.log(8 / 6))
    assert only.outputs.tolist() == logits()[:, 3].tolist()
    assert only.metrics["strict"].item() == only.metrics["correct"].item() == 1
    letters = InContext([0, 2], restricted=True)(model, batch())
    assert letters.loss_sum.item() == pytest.approx(math.log(7 / 6))


def test_a_prompted_model_is_told_the_places() -> None:
    def model(input_ids: torch.Tensor, positions: torch.Tensor) -> Any:
        assert positions.tolist() == [[3]]
        return SimpleNamespace(token_logits=logits()[:, 3:])

    out = InContext([0, 2], prompted=True)(model, batch())  # pyright: ignore[reportArgumentType]
    assert out.loss_sum.item() == pytest.approx(math.log(8 / 6))


def test_wrong_label_tokens() -> None:
    with pytest.raises(InputError, match="two or more different"):
        InContext([7])
