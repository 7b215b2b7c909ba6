"""Model folders written by earlier code still load, and give the same logits.

The folders are tiny models with random weights; ``logits.npy`` holds what the code that wrote them
gave for the ids below (the first 64 columns of a large vocabulary).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megabase.models import load_tokenizer
from megabase.models.loading import load

FOLDERS = sorted((Path(__file__).parent / "old_folders").iterdir())
IDS = [7, 8, 9, 10, 7, 7, 9, 8]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_of_before_gives_the_same_logits(folder: Path) -> None:
    expected = np.load(folder / "logits.npy")
    model = load(folder).model
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([IDS])).logits.numpy()
    np.testing.assert_allclose(found[..., : expected.shape[-1]], expected, atol=1e-6)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_tokenizer_loads(folder: Path) -> None:
    ids = load_tokenizer(folder)("ACGTACGTACGT", add_special_tokens=False)["input_ids"]
    assert len(ids) == (12 if "dnabert" not in folder.name else 7)
