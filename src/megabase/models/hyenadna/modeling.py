"""HyenaDNA as transformers models.

State-dict names are those of the published ``LongSafari/hyenadna-*-hf`` folders. One thing differs
there: the published port stores the positional table ``pos_emb.z`` as a trainable parameter. Here
it is a buffer unless ``config.lr_pos_emb`` is above 0, as in the published training runs; its
values are taken from the checkpoint either way.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from megabase.layers.attention import SelfAttention
from megabase.layers.backbone import Backbone, Embeddings
from megabase.layers.hyena import Bidirectional, FilterLayout, HyenaOperator
from megabase.models.hyenadna.configuration import HyenaDNAConfig
from megabase.models.shell import ShellBlock, ShellModel
from megabase.models.shell_heads import (
    ShellForCausalLM,
    ShellForSequenceClassification,
    ShellForTokenClassification,
)

__all__ = [
    "HyenaDNAForCausalLM",
    "HyenaDNAForSequenceClassification",
    "HyenaDNAForTokenClassification",
    "HyenaDNAModel",
]


def _mixer(config: HyenaDNAConfig, layer: int) -> nn.Module:
    if layer in (config.attention_layers or []):
        return SelfAttention(
            config.d_model,
            config.attention_heads,
            causal=config.is_causal_model,
            dropout=config.attention_dropout,
        )
    return HyenaOperator(
        config.d_model,
        config.max_seq_len,
        order=config.hyena_order,
        short_filter_order=config.short_filter_order,
        filter_layout=cast("FilterLayout", config.filter_layout),
        bidirectional=cast("Bidirectional", config.bidirectional),
        output_activation=config.output_activation,
        dropout=config.hyena_dropout,
        filter_options={
            "emb_dim": config.emb_dim,
            "width": config.filter_order,
            "num_inner_mlps": config.num_inner_mlps,
            "sine_freq": config.activation_freq,
            "train_freq": config.train_freq,
            "modulate": config.modulate,
            "window": {
                "fast_decay": config.fast_decay_pct,
                "slow_decay": config.slow_decay_pct,
                "target": config.decay_target,
                "shift": config.window_shift,
            },
            "normalized": config.normalized_filter,
            "use_bias": config.use_bias,
            "train_positions": config.lr_pos_emb > 0,
        },
    )


def _backbone(config: HyenaDNAConfig) -> Backbone:
    layers = [
        ShellBlock(
            _mixer(config, i),
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


class _FilterTables:
    # In bfloat16 most lags would share their times with others.
    _keep_in_fp32_modules_strict = ["pos_emb", "modulation"]  # noqa: RUF012


class HyenaDNAModel(_FilterTables, ShellModel):
    """HyenaDNA without a head: one vector per position.

    Parameters
    ----------
    config
        The model's settings.
    """

    config_class = HyenaDNAConfig
    base_model_prefix = "hyena"

    def __init__(self, config: HyenaDNAConfig, **_: Any) -> None:
        super().__init__(config)
        self.backbone = _backbone(config)
        self.post_init()


class HyenaDNAForCausalLM(_FilterTables, ShellForCausalLM):
    """HyenaDNA with the next-token head it is pretrained with.

    Parameters
    ----------
    config
        The model's settings.
    """

    config_class = HyenaDNAConfig
    base_model_prefix = "hyena"

    def __init__(self, config: HyenaDNAConfig, **_: Any) -> None:
        super().__init__(config)
        self.hyena = HyenaDNAModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_rows, bias=False)
        self.post_init()


class HyenaDNAForSequenceClassification(_FilterTables, ShellForSequenceClassification):
    """HyenaDNA with a pooled linear head, for labels of whole sequences.

    Parameters
    ----------
    config
        The model's settings; ``pooling``, ``head_bias`` and ``num_labels`` shape the head.
    """

    config_class = HyenaDNAConfig
    base_model_prefix = "hyena"

    def __init__(self, config: HyenaDNAConfig, **_: Any) -> None:
        super().__init__(config)
        self.hyena = HyenaDNAModel(config)
        self.score = nn.Linear(config.d_model, config.num_labels or 2, bias=config.head_bias)
        self.post_init()


class HyenaDNAForTokenClassification(_FilterTables, ShellForTokenClassification):
    """HyenaDNA with a linear head at every position, for labels of nucleotides.

    Parameters
    ----------
    config
        The model's settings; ``head_bias`` and ``num_labels`` shape the head.
    """

    config_class = HyenaDNAConfig
    base_model_prefix = "hyena"

    def __init__(self, config: HyenaDNAConfig, **_: Any) -> None:
        super().__init__(config)
        self.hyena = HyenaDNAModel(config)
        self.score = nn.Linear(config.d_model, config.num_labels or 2, bias=config.head_bias)
        self.post_init()
