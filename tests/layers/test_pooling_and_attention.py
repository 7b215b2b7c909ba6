"""Pooling sees real tokens only; attention hides what it should."""

from __future__ import annotations

import pytest
import torch

from megabase.errors import MegabaseError
from megabase.layers.backbone import SelfAttention
from megabase.layers.pooling import pool

HIDDEN = torch.arange(1.0, 11.0).reshape(1, 5, 2).repeat(3, 1, 1)
MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("mode", "right", "left", "full"),
    [
        ("mean", 3.0, 7.0, 5.0),
        ("last", 5.0, 9.0, 9.0),
        ("first", 1.0, 5.0, 1.0),
        ("max", 5.0, 9.0, 9.0),
        ("sum", 9.0, 21.0, 25.0),
        ("published_mean", 5.0, 5.0, 5.0),
        ("hf", 5.0, 9.0, 9.0),
    ],
)
def test_pooling(mode: str, right: float, left: float, full: float) -> None:
    pooled = pool(HIDDEN, mode, MASK)  # pyright: ignore[reportArgumentType]
    assert pooled[:, 0].tolist() == [right, left, full]
    assert pool(HIDDEN, mode)[0, 0].item() == full  # pyright: ignore[reportArgumentType]


def test_pooling_ignores_what_padding_holds() -> None:
    spoilt = torch.where(MASK[..., None].bool(), HIDDEN, torch.tensor(1e9))
    for mode in ("mean", "last", "first", "max", "sum"):
        assert torch.equal(pool(spoilt, mode, MASK), pool(HIDDEN, mode, MASK))


def test_the_largest_of_negative_numbers_is_no_zero() -> None:
    # Rows hold -1, -3, -5, -7, -9 in their first channel.
    assert pool(-HIDDEN, "max", MASK)[:, 0].tolist() == [-1.0, -5.0, -1.0]
    assert pool(-HIDDEN, "sum", MASK)[:, 0].tolist() == [-9.0, -21.0, -25.0]


def test_pooling_with_gaps_in_the_mask() -> None:
    # Real tokens 1, 7 of the first channel: mean 4, last 7, first 1, and 9 is never seen.
    gaps = torch.tensor([[1, 0, 0, 1, 0]])
    values = {mode: pool(HIDDEN[:1], mode, gaps)[0, 0].item() for mode in ("mean", "sum", "max")}
    assert values == {"mean": 4.0, "sum": 8.0, "max": 7.0}
    assert pool(HIDDEN[:1], "last", gaps)[0, 0].item() == 7.0
    assert pool(HIDDEN[:1], "first", gaps)[0, 0].item() == 1.0


def test_pooling_of_nothing_is_zero() -> None:
    nothing = torch.zeros(3, 5)
    for mode in ("mean", "max", "sum"):
        assert torch.equal(pool(HIDDEN, mode, nothing), torch.zeros(3, 2))


def test_unknown_pooling_is_refused() -> None:
    with pytest.raises(MegabaseError, match=r"mean, last.*'median'"):
        pool(HIDDEN, "median")  # pyright: ignore[reportArgumentType]


def test_attention_is_the_plain_softmax() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(8, 2).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    q, k, v = layer.Wqkv(x).reshape(2, 7, 3, 2, 4).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-1, -2) / 2).masked_fill(
        ~torch.ones(7, 7, dtype=torch.bool).tril(), float("-inf")
    )
    want = layer.out_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 7, 8))
    torch.testing.assert_close(layer(x), want)
    every = torch.ones(2, 7, dtype=torch.bool)
    torch.testing.assert_close(layer(x, every), want)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_does_not_see_padding(causal: bool) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(8, 2, causal=causal)
    x = torch.randn(1, 7, 8)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    padded = layer(x, mask)
    assert bool(padded.isfinite().all())
    torch.testing.assert_close(padded[:, 2:], layer(x[:, 2:]))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(MegabaseError, match="divides the width 8, got 3"):
        SelfAttention(8, 3)
