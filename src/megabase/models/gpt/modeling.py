"""The Transformer baseline as transformers models.

State-dict names are those of HyenaDNA with the prefix ``gpt.``; within a block, ``mixer.Wqkv`` and
``mixer.out_proj`` take the place of the Hyena operator.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from megabase.layers.attention import SelfAttention
from megabase.layers.backbone import Backbone, Embeddings
from megabase.models.gpt.configuration import GPTConfig
from megabase.models.shell import ShellBlock, ShellModel
from megabase.models.shell_heads import (
    ShellForCausalLM,
    ShellForSequenceClassification,
    ShellForTokenClassification,
)

__all__ = [
    "GPTForCausalLM",
    "GPTForSequenceClassification",
    "GPTForTokenClassification",
    "GPTModel",
]


def _backbone(config: GPTConfig) -> Backbone:
    layers = [
        ShellBlock(
            SelfAttention(
                config.d_model, config.num_heads, config.causal, config.attention_dropout
            ),
            config.d_model,
            cast("int", config.d_inner),
            norm_eps=config.layer_norm_epsilon,
            dropout_in=config.embed_dropout if i == 0 else config.resid_dropout,
            dropout=config.resid_dropout,
            residual_in_fp32=config.residual_in_fp32,
        )
        for i in range(config.n_layer)
    ]
    embeddings = Embeddings(config.vocab_rows, config.d_model, config.max_position_embeddings)
    return Backbone(
        embeddings, layers, config.d_model, config.layer_norm_epsilon, config.resid_dropout
    )


class GPTModel(ShellModel):
    """The Transformer baseline without a head: one vector per position.

    Parameters
    ----------
    config
        The model's settings.
    """

    config_class = GPTConfig
    base_model_prefix = "gpt"

    def __init__(self, config: GPTConfig, **_: Any) -> None:
        super().__init__(config)
        self.backbone = _backbone(config)
        self.post_init()


class GPTForCausalLM(ShellForCausalLM):
    """The Transformer baseline with a next-token head.

    Parameters
    ----------
    config
        The model's settings.
    """

    config_class = GPTConfig
    base_model_prefix = "gpt"

    def __init__(self, config: GPTConfig, **_: Any) -> None:
        super().__init__(config)
        self.gpt = GPTModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_rows, bias=False)
        self.post_init()


class GPTForSequenceClassification(ShellForSequenceClassification):
    """The Transformer baseline with a pooled linear head.

    Parameters
    ----------
    config
        The model's settings; ``pooling``, ``head_bias`` and ``num_labels`` shape the head.
    """

    config_class = GPTConfig
    base_model_prefix = "gpt"

    def __init__(self, config: GPTConfig, **_: Any) -> None:
        super().__init__(config)
        self.gpt = GPTModel(config)
        self.score = nn.Linear(config.d_model, config.num_labels or 2, bias=config.head_bias)
        self.post_init()


class GPTForTokenClassification(ShellForTokenClassification):
    """The Transformer baseline with a linear head at every position.

    Parameters
    ----------
    config
        The model's settings; ``head_bias`` and ``num_labels`` shape the head.
    """

    config_class = GPTConfig
    base_model_prefix = "gpt"

    def __init__(self, config: GPTConfig, **_: Any) -> None:
        super().__init__(config)
        self.gpt = GPTModel(config)
        self.score = nn.Linear(config.d_model, config.num_labels or 2, bias=config.head_bias)
        self.post_init()
