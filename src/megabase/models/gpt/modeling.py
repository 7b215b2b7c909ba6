"""The Transformer baseline as transformers models.

State-dict names are those of HyenaDNA with the prefix ``gpt.``; within a block, ``mixer.Wqkv`` and
``mixer.out_proj`` take the place of the Hyena operator.
"""

from __future__ import annotations

from megabase.models.decoder import DecoderModel, DecoderPreTrainedModel
from megabase.models.gpt.configuration import GPTConfig
from megabase.models.heads import CausalLM, SequenceClassifier, TokenClassifier


class _GPT(DecoderPreTrainedModel):
    config_class = GPTConfig
    base_model_prefix = "gpt"


class GPTModel(_GPT, DecoderModel):
    """The Transformer baseline without a head: one vector per position."""


class GPTForCausalLM(_GPT, CausalLM):
    """The Transformer baseline with a next-token head."""

    base_class = GPTModel


class GPTForSequenceClassification(_GPT, SequenceClassifier):
    """The Transformer baseline with a pooled linear head."""

    base_class = GPTModel


class GPTForTokenClassification(_GPT, TokenClassifier):
    """The Transformer baseline with a linear head at every position."""

    base_class = GPTModel
