"""The Transformer baseline."""

from __future__ import annotations

import torch
from harness import Case, covers
from shell_cases import Results, ids, load_weights, run
from torch import nn
from torch.nn import functional as F

from megabase.models.gpt import GPTConfig, GPTForCausalLM


@covers("gpt_lm")
def gpt_lm(case: Case) -> None:
    config = case.config
    assert config["rotary_dim"] == 0
    model = GPTForCausalLM(
        GPTConfig(
            vocab_size=config["vocab_size"],
            pad_vocab_size_multiple=config["pad_vocab_size_multiple"],
            d_model=config["d_model"],
            n_layer=config["n_layer"],
            d_inner=config["d_inner"],
            num_heads=config["num_heads"],
            causal=config["causal"],
            max_position_embeddings=config["max_position_embeddings"],
            layer_norm_epsilon=config["layer_norm_eps"],
            residual_in_fp32=config["residual_in_fp32"],
            tie_word_embeddings=config["tie_embeddings"],
        )
    )
    load_weights(model, case.weights, "gpt.")
    tokens, labels = ids(case), ids(case, "labels")

    def forward(model: nn.Module) -> Results:
        output = model(tokens, output_hidden_states=True)
        loss = F.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
        assert torch.equal(output.hidden_states[-1], model.base_model(tokens).last_hidden_state)
        return {"logits": output.logits, "hidden": output.hidden_states[-1], "loss": loss}

    run(case, model, forward, "gpt.")
