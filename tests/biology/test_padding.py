"""Padding never changes what a model says about the real bases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megabase.models.gpt import GPTConfig, GPTForSequenceClassification
from megabase.models.hyenadna import (
    HyenaDNAConfig,
    HyenaDNAForSequenceClassification,
    HyenaDNAModel,
)

PAD, REAL = 4, 23


def _ids(left: int, right: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    bases = torch.randint(7, 11, (2, REAL))
    ids = torch.nn.functional.pad(bases, (left, right), value=PAD)
    return ids, (ids != PAD).long()


def _hyena(**settings: Any) -> HyenaDNAModel:
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=16, max_seq_len=66, **settings)
    return HyenaDNAModel(config).double().eval()


@pytest.mark.parametrize("mode", ["none", "two_sided"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(("left", "right"), [(0, 9), (9, 0), (4, 5)])
def test_real_positions_do_not_see_padding(mode: str, order: int, left: int, right: int) -> None:
    model = _hyena(bidirectional=mode, hyena_order=order)
    alone = model(_ids(0, 0)[0]).last_hidden_state
    ids, mask = _ids(left, right)
    padded = model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(padded[:, left : left + REAL], alone, atol=1e-11, rtol=1e-9)


def test_right_padding_needs_no_mask_in_a_causal_model() -> None:
    model = _hyena()
    ids, mask = _ids(0, 9)
    with_mask = model(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(with_mask, model(ids).last_hidden_state)


def test_the_published_way_is_an_option() -> None:
    ids, mask = _ids(9, 0)
    published, ours = _hyena(mask_padding=False), _hyena()
    blind = published(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(blind, published(ids).last_hidden_state)
    assert not torch.allclose(blind, ours(ids, attention_mask=mask).last_hidden_state)


@pytest.mark.parametrize("pooling", ["mean", "last", "first", "max", "sum"])
@pytest.mark.parametrize("family", ["hyena", "gpt"])
def test_classifier_is_blind_to_right_padding(pooling: str, family: str) -> None:
    torch.manual_seed(0)
    if family == "hyena":
        model: Any = HyenaDNAForSequenceClassification(
            HyenaDNAConfig(d_model=16, max_seq_len=66, pooling=pooling)
        )
    else:
        model = GPTForSequenceClassification(
            GPTConfig(d_model=16, num_heads=2, max_position_embeddings=66, pooling=pooling)
        )
    model = model.double().eval()
    alone = model(_ids(0, 0)[0]).logits
    ids, mask = _ids(0, 9)
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, alone)
    # Without a mask, pad tokens say where the padding is.
    torch.testing.assert_close(model(ids).logits, alone)


def test_the_amount_of_left_padding_does_not_matter_to_a_classifier() -> None:
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=16, max_seq_len=66, bidirectional="two_sided")
    model = HyenaDNAForSequenceClassification(config).double().eval()
    alone = model(_ids(0, 0)[0]).logits
    for left in (1, 7, 30):
        ids, mask = _ids(left, 0)
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, alone)
