from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from megabase.genome.alphabet import PAD, encode


def _codes(text: str) -> np.ndarray:
    """Codes of a text in either case; ``.`` is padding."""
    row = encode(text.replace(".", "N")).copy()
    row[[letter == "." for letter in text]] = PAD
    return row


def _make_batch(*texts: str, reverse: list[bool] | None = None) -> dict[str, Tensor]:
    return {
        "codes": torch.from_numpy(np.stack([_codes(text) for text in texts])),
        "reverse": torch.tensor(reverse or [False] * len(texts)),
        "mask_seed": torch.arange(len(texts)) * 7_919 + 3,
    }


class TableModel(nn.Module):
    """Logits depend on the token at the position alone, so losses can be worked out by hand."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Tensor]]:
    return _make_batch


@pytest.fixture
def uniform_model() -> TableModel:
    return TableModel(torch.zeros(16, 16))


@pytest.fixture
def table_model() -> Callable[[Tensor], TableModel]:
    return TableModel
