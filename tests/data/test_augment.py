from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from published import reverse_complement_text

from megabase.data.vocabulary import (
    codes_to_ids,
    reverse_complement_codes,
)
from megabase.genome.alphabet import PAD, decode, encode


def batch(*texts: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([encode(text) for text in texts]))


@given(st.lists(st.text("ACGTNacgtn", min_size=9, max_size=9), min_size=1, max_size=5), st.data())
def test_reverse_complement_of_codes_is_that_of_the_text(
    texts: list[str], data: st.DataObject
) -> None:
    mask = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    turned = reverse_complement_codes(batch(*texts), torch.tensor(mask))
    got = [decode(row.numpy(), soft_mask=True) for row in turned]
    want = [
        reverse_complement_text(text) if flip else text
        for text, flip in zip(texts, mask, strict=True)
    ]
    assert got == want


def test_padding_moves_to_the_other_end() -> None:
    codes = torch.tensor([[0, 1, PAD], [0, 1, PAD]], dtype=torch.uint8)
    got = reverse_complement_codes(codes, torch.tensor([True, False]))
    assert got.tolist() == [[PAD, 2, 3], [0, 1, PAD]]


def test_ids_are_the_published_ones_in_either_case() -> None:
    ids = codes_to_ids(batch("ACGTN", "acgtn"))
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[7, 8, 9, 10, 11]] * 2
    assert codes_to_ids(torch.tensor([PAD], dtype=torch.uint8)).tolist() == [4]
