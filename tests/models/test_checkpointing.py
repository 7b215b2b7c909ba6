"""Activation checkpointing through one door for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megabase.errors import ConfigError
from megabase.models.base import checkpoint_activations
from megabase.models.bigbird import GenomicBigBirdConfig, GenomicBigBirdModel
from megabase.models.dnabert import DNABERTConfig, DNABERTModel
from megabase.models.gpt import GPTConfig, GPTModel
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAModel
from megabase.models.mamba import MambaConfig, MambaModel

_SMALL = {"d_model": 16, "n_layer": 3}
_BERT = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip
MODELS: dict[str, Any] = {
    "hyenadna": lambda: HyenaDNAModel(HyenaDNAConfig(**_SMALL, max_seq_len=66)),
    "gpt": lambda: GPTModel(GPTConfig(**_SMALL, attention_heads=2, max_seq_len=66)),
    "mamba": lambda: MambaModel(MambaConfig(**_SMALL)),
    "dnabert": lambda: DNABERTModel(DNABERTConfig(**_BERT)),
    "bigbird": lambda: GenomicBigBirdModel(GenomicBigBirdConfig(**_BERT)),
}


def _gradients(model: Any, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(1)  # of the dropout
    hidden = model(input_ids=ids).last_hidden_state
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", list(MODELS))
def test_gradients_stay_as_they_are(family: str) -> None:
    torch.manual_seed(0)
    model, ids = MODELS[family]().train(), torch.randint(7, 11, (2, 33))
    calls: list[torch.nn.Module] = []
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: calls.append(module))
    want = _gradients(model, ids)
    once = len(calls)
    checkpoint_activations(model)
    got = _gradients(model, ids)
    assert len(calls) > 2.5 * once  # the blocks again
    assert got.keys() == want.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", ["hyenadna", "gpt"])
def test_segments(family: str) -> None:
    torch.manual_seed(0)
    model, ids = MODELS[family]().train(), torch.randint(7, 11, (2, 33))
    want = _gradients(model, ids)
    checkpoint_activations(model, segment=2)
    for name, gradient in _gradients(model, ids).items():
        torch.testing.assert_close(gradient, want[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", ["mamba", "dnabert", "bigbird"])
def test_families_without_stretches_say_so(family: str) -> None:
    with pytest.raises(ConfigError, match="only HyenaDNA and GPT can"):
        checkpoint_activations(MODELS[family](), segment=2)
