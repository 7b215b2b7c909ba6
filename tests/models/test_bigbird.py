"""BigBird: size, the choice of attention, random blocks, random numbers, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megabase.errors import MegabaseError
from megabase.models.bigbird import (
    GenomicBigBirdConfig,
    GenomicBigBirdForMaskedLM,
    GenomicBigBirdForSequenceClassification,
)


def _config(**settings: object) -> GenomicBigBirdConfig:
    shape = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 24, "max_position_embeddings": 64, "block_size": 4,
             "num_random_blocks": 1, "initializer_range": 0.3, "hidden_dropout_prob": 0.0,
             "attention_probs_dropout_prob": 0.0}  # fmt: skip
    return GenomicBigBirdConfig(**{**shape, **settings})


def _model(**settings: object) -> GenomicBigBirdForSequenceClassification:
    torch.manual_seed(0)
    return GenomicBigBirdForSequenceClassification(_config(**settings)).eval()


def _ids(length: int) -> torch.Tensor:
    return torch.randint(5, 30, (2, length), generator=torch.Generator().manual_seed(length))


def test_a_short_batch_leaves_longer_ones_as_they_were() -> None:
    model = _model()
    names = list(model.state_dict())
    before = model(_ids(60)).logits
    assert model.bert.attention_type == "block_sparse"
    state = torch.get_rng_state()
    model(_ids(model.config.shortest_sparse - 1))
    assert model.bert.attention_type == "original_full"
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(_ids(60)).logits, before)
    assert list(model.state_dict()) == names
    full = _model(attention_type="original_full")
    full.load_state_dict(model.state_dict())
    assert not torch.allclose(full(_ids(60)).logits, before)


def test_evaluation_uses_the_random_blocks_of_training() -> None:
    model = _model()
    evaluated = model(_ids(60)).logits
    torch.testing.assert_close(model.train()(_ids(60)).logits, evaluated)
    other = _model(random_blocks="training-only")
    assert not torch.allclose(other(_ids(60)).logits, evaluated)
    torch.testing.assert_close(other.train()(_ids(60)).logits, evaluated)


def test_global_random_numbers_are_left_alone() -> None:
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    _model().train()(_ids(60))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_a_model_survives_saving_and_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GenomicBigBirdForMaskedLM(_config()).eval()
    model.save_pretrained(tmp_path)
    again = GenomicBigBirdForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(again(_ids(60)).logits, model(_ids(60)).logits)
    loss = model.train()(_ids(60), labels=_ids(60)).loss
    loss.backward()
    # The pooler has no part in masked prediction.
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {"bert.pooler.weight", "bert.pooler.bias"}
    groups = model.parameter_groups(1e-4, 0.01)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_bad_input_is_refused() -> None:
    model = _model()
    with pytest.raises(MegabaseError, match="65 tokens, this BigBird reads 64"):
        model(_ids(65))
    assert model(_ids(20), labels=torch.tensor([0, 1])).loss.ndim == 0
    with pytest.raises(MegabaseError, match="must be a multiple of block_size 4"):
        _config(max_position_embeddings=63)
    with pytest.raises(MegabaseError, match="must divide hidden_size"):
        _config(num_attention_heads=3)
