"""Small models of every family, for tests that say only what has to differ."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedModel

from megabase.models.families import FAMILIES

_DECODER: dict[str, Any] = {"d_model": 16, "n_layer": 2}
_STATES: dict[str, Any] = {**_DECODER, "ssm_cfg": {"d_state": 4}}
_BERT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "hyenadna": {**_DECODER, "max_seq_len": 66, "filter_order": 8, "attention_heads": 2},
    "gpt": {**_DECODER, "num_attention_heads": 2, "max_position_embeddings": 66},
    "mamba": _STATES,
    "caduceus": _STATES,
    "dnabert": {**_BERT, "k": 3},
    "bigbird": {**_BERT, "vocab_size": 64},
    "cnn": {"max_length": 64, "embedding_dim": 4},
    "deepsea": {"max_length": 200, "channels": (4, 4, 4), "hidden": 8, "num_labels": 2},
}
"""The smallest settings that tests of all families share."""


def make(family: str, kind: str, **settings: Any) -> Any:
    """Make a model of a kind (:data:`megabase.models.families.KINDS`); settings are added."""
    known = FAMILIES[family]
    return known.classes()[kind](known.config_class()(**{**SETTINGS[family], **settings}))


needs_name = pytest.mark.skipif(
    not hasattr(PreTrainedModel, "activation_checkpointing_enable"),
    reason="transformers before 5.23 says gradient_checkpointing",
)
