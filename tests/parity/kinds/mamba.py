"""Mamba: language models, and the same one token at a time."""

from __future__ import annotations

from typing import Any

import torch
from harness import Case, covers
from shell_cases import Results, ids, load_weights, run
from torch import nn
from torch.nn import functional as F

from megabase.models.mamba import MambaConfig, MambaForCausalLM


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """Translate the plain names of a case, those that Mamba and Caduceus share."""
    assert config["d_inner"] == config["expand"] * config["d_model"]
    same = ("vocab_size", "pad_vocab_size_multiple", "d_model", "n_layer", "rms_norm")
    mixer = ("d_state", "d_conv", "expand", "dt_rank", "conv_bias")
    return {
        **{name: config[name] for name in (*same, "residual_in_fp32")},
        "norm_epsilon": config["norm_eps"],
        "ssm_cfg": {**{name: config[name] for name in mixer}, "bias": config["proj_bias"]},
    }


@covers("mamba_lm")
def mamba_lm(case: Case) -> None:
    config = case.config
    model = MambaForCausalLM(
        MambaConfig(**settings(config), tie_word_embeddings=config["tie_embeddings"])
    )
    load_weights(model, case.weights, "")
    tokens, labels = ids(case), ids(case, "labels")

    def forward(model: nn.Module) -> Results:
        output = model(tokens, output_hidden_states=True)
        loss = F.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
        first, _, _ = model.backbone.layers[0](model.backbone.embedding(tokens))
        return {
            "logits": output.logits,
            "hidden": output.hidden_states[-1],
            "loss": loss,
            "layer0_mixer_out": first,
        }

    run(case, model, forward, "")

    # One token at a time, in float64: the model was widened above.
    tokens = tokens[:, :200]
    cache, steps = None, []
    for t in range(tokens.shape[1]):
        logits, cache = model.step(tokens[:, t], cache)
        steps.append(logits)
    torch.testing.assert_close(
        torch.stack(steps, dim=1), model(tokens).logits, atol=1e-10, rtol=1e-10
    )
