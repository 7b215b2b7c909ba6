"""The generate() of transformers is refused with a word on what to use."""

import pytest
import torch
from transformers import PreTrainedModel

from megabase.models.gpt import GPTConfig, GPTForCausalLM
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.mamba import MambaConfig, MambaForCausalLM
from megabase.models.validation import ModelConfigError


@pytest.mark.parametrize(
    "model",
    [
        HyenaDNAForCausalLM(HyenaDNAConfig(d_model=8, n_layer=1)),
        GPTForCausalLM(GPTConfig(d_model=8, n_layer=1, num_heads=2)),
        MambaForCausalLM(MambaConfig(d_model=8, n_layer=1)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_generate_says_what_writes_sequences(model: PreTrainedModel) -> None:
    with pytest.raises(ModelConfigError, match=r"megabase\.inference\.generate\(model"):
        model.generate(torch.tensor([[7, 8]]), max_new_tokens=3)  # pyright: ignore
