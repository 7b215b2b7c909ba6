"""The Transformer baseline: size, settings, saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megabase.errors import ConfigError, InputError
from megabase.models.gpt import (
    GPTConfig,
    GPTForCausalLM,
    GPTForSequenceClassification,
    GPTForTokenClassification,
)


def _ids() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(7, 11, (2, 30))


@pytest.mark.parametrize(
    ("width", "positions", "parameters"),
    [(128, 1024, 529_920), (128, 32_768, 4_593_152), (256, 1024, 1_846_272)],
)
def test_parameters_of_the_published_sizes(width: int, positions: int, parameters: int) -> None:
    with torch.device("meta"):
        model = GPTForCausalLM(GPTConfig(d_model=width, max_position_embeddings=positions))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_settings_are_checked_together() -> None:
    with pytest.raises(ConfigError, match=r"n_layer .*num_heads must divide d_model 128"):
        GPTConfig(n_layer=0, num_heads=3)


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPTForCausalLM(GPTConfig(d_model=16, num_heads=2, max_position_embeddings=40)).eval()
    model.save_pretrained(tmp_path)
    again, report = GPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(again(_ids()).logits, model(_ids()).logits)


def test_positions_limit_the_length() -> None:
    model = GPTForCausalLM(GPTConfig(d_model=16, num_heads=2, max_position_embeddings=29))
    with pytest.raises(InputError, match=r"30 positions.*at most 29"):
        model(_ids())


def test_heads() -> None:
    config = GPTConfig(d_model=16, num_heads=2, max_position_embeddings=40, num_labels=3)
    assert GPTForSequenceClassification(config)(_ids()).logits.shape == (2, 3)
    assert GPTForTokenClassification(config)(_ids()).logits.shape == (2, 30, 3)


def test_optimizer_groups() -> None:
    model = GPTForCausalLM(GPTConfig(d_model=16, num_heads=2, max_position_embeddings=40))
    (published,) = model.parameter_groups(1e-3, 0.1)
    assert len(published["params"]) == len(list(model.parameters()))
